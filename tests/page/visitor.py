"""Someone who visits the page: a browser's tab, and the notes that are taken on what it did."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # only `make test-page` needs it
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

DESKTOP = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
PHONE = {
    "viewport": {"width": 375, "height": 720},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
PATIENCE_S = 15.0


class Drawn(NamedTuple):
    """What can be counted on the map's canvas."""

    pixels: int  # on which something was drawn
    colours: int
    ink: int  # pixels in the colour of marks


class Visitor:
    """A tab on the page. `refusals` are the statuses of answers that the browser complained of."""

    def __init__(self, page: "Page", url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.refusals: list[int] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        page.on("requestfailed", self._failed)

    def _said(self, message: "ConsoleMessage") -> None:
        if message.text.startswith("Failed to load resource: the server responded with a status of "):
            self.refusals.append(int(message.text.split("status of ")[1][:3]))
        elif message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _failed(self, request: "Request") -> None:
        if not request.url.startswith((self.url, "blob:")):
            self.complaints.append(f"asked for {request.url}")

    def get(self, selector: str) -> "Locator":
        return self.page.locator(selector)

    def drop(self, file: Path, selector: str = "#drop") -> None:
        """Drag a file from the desktop onto the page and let it go, as the operating system would report it."""
        box = self.get(selector).bounding_box()
        assert box is not None
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        session.detach()

    def fingers(self, steps: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Put fingers down at the first places, move them along the others, and lift them."""
        session = self.page.context.new_cdp_session(self.page)
        for number, places in enumerate(steps):
            points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
            kind = "touchMove" if number else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        session.detach()

    def until(self, condition: str) -> None:
        """Wait for what a piece of JavaScript says. The page forbids eval, so Playwright's own way is closed."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"never came true: {condition}"
            time.sleep(0.02)

    def searched(self, text: str) -> None:
        """Wait until the answer about this is shown."""
        self.get("#caption > :last-child").get_by_text(text, exact=True).wait_for()
        self.until("!document.getElementById('near').classList.contains('busy')")

    def neighbours(self) -> list[str]:
        return [item.get_attribute("title") or "" for item in self.get(".neighbours button").all()]

    def map_is_drawn(self) -> None:
        """Wait until the map shows its points, and the pictures that it has room for."""
        self.until("document.getElementById('map-wait').hidden")
        self.map_picture()
        self.until("document.getElementById('canvas').ariaBusy !== 'true'")
        self.map_picture()

    def map_picture(self) -> str:
        """What the canvas shows once it has been drawn again."""
        frame = "await new Promise((done) => requestAnimationFrame(done));"
        shown = "document.getElementById('canvas').toDataURL()"
        return self.page.evaluate(f"async () => {{ {frame} {frame} return {shown}; }}")

    def drawn(self) -> Drawn:
        """What is on the map, once its pictures are there."""
        self.map_is_drawn()
        return Drawn(
            **self.page.evaluate(
                """() => {
                  const canvas = document.getElementById("canvas");
                  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
                  copy.drawImage(canvas, 0, 0);
                  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
                  const colours = [];
                  for (let i = 0; i < data.length; i += 4) {
                    if (data[i + 3]) colours.push(65536 * data[i] + 256 * data[i + 1] + data[i + 2]);
                  }
                  const ink = colours.filter((colour) => colour === 0x1d1f21).length;
                  return { pixels: colours.length, colours: new Set(colours).size, ink };
                }"""
            )
        )

    def place_of_a_point(self) -> tuple[float, float]:
        """Where on the screen a mouse finds a point of the map, and is told so."""
        box = self.get("#canvas").bounding_box()
        assert box is not None
        for y in range(20, int(box["height"]) - 20, 24):
            for x in range(20, int(box["width"]) - 70, 24):
                self.page.mouse.move(box["x"] + x, box["y"] + y)
                if self.get("#tip").is_visible():
                    return box["x"] + x, box["y"] + y
        raise AssertionError("no point of the map is under any place of it")


@contextmanager
def visit(browser: "Browser", url: str, path: str = "/", **how: Any) -> Iterator[Visitor]:
    """A visit in which only the server at `url` can be reached, and of which the browser has nothing to complain."""
    context = browser.new_context(**(how or DESKTOP))
    context.set_default_timeout(1e3 * PATIENCE_S)
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
    visitor = Visitor(context.new_page(), url)
    try:
        visitor.page.goto(url + path)
        yield visitor
        assert not visitor.complaints, visitor.complaints
    finally:
        context.close()
