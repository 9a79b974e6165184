"""What the page does, in headless Chromium, against a real server on this machine and nothing else.

    make test-page          # screenshots: var/page/
"""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.page.in_process import serving_without_gallery
from tests.page.visitor import PHONE, Visitor, visit
from tests.pictures import encode, scene
from tests.server import Server, running_server
from tests.serving import write_seeded_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.page

ROWS = 60
HOSTILE = "<img src=x onerror=alert(1)>"


def photo_in(folder: Path, seed: int, name: str = "my photo.jpg", size: tuple[int, int] = (240, 180)) -> Path:
    file = folder / name
    file.write_bytes(encode(scene(*size, seed), quality=90))
    return file


def fill(url: str, rows: int, headers: dict[str, str] | None = None) -> None:
    """Add pictures of two classes and some without one."""
    with httpx.Client(base_url=url, timeout=30, headers=headers) as client:
        for row in range(rows):
            label = ("", "?label=cat", "?label=dog")[row % 3]
            picture = encode(scene(160, 160, 1000 + row), quality=90)
            client.put(f"/index/pictures/{row:03d}.jpg{label}", content=picture).raise_for_status()


@pytest.fixture(scope="session")
def server(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a gallery of ROWS pictures, and thumbnails."""
    folder = tmp_path_factory.mktemp("page")
    with running_server(seeded_store, folder, ["--index", "gallery", "--thumbnails"]) as server:
        fill(server.url, ROWS)
        yield server


@pytest.fixture
def visitor(chromium: "Browser", server: Server) -> Iterator[Visitor]:
    with visit(chromium, server.url) as visitor:
        yield visitor


def test_a_dropped_photo_shows_labels_timings_and_neighbours_as_pictures(
    visitor: Visitor, server: Server, tmp_path: Path, shots: Path
) -> None:
    photo = photo_in(tmp_path, 7)
    visitor.map_is_drawn()
    visitor.page.screenshot(path=shots / "start.png")
    visitor.drop(photo)
    visitor.searched("my photo.jpg")
    expected = httpx.post(server.url + "/predictions/encoder?k=12", content=photo.read_bytes()).json()

    names = [name.inner_text() for name in visitor.get("#labels .name").all()]
    shares = [float(value.inner_text().removesuffix(" %")) for value in visitor.get("#labels .value").all()]
    assert sorted(names) == ["cat", "dog"]
    assert names[0] == expected["label"]
    assert shares[0] == pytest.approx(100 * expected["confidence"], abs=0.6)
    assert sum(shares) == pytest.approx(100, abs=1.1)

    assert visitor.neighbours() == [neighbor["id"] for neighbor in expected["neighbors"]]
    visitor.until("[...document.querySelectorAll('.neighbours img')].every((image) => image.naturalWidth === 128)")
    assert visitor.get(".neighbours img").count() == 12
    stages = dict(zip(*(visitor.get(f"#timing {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert {"decode", "embed", "search", "network, browser"} <= stages.keys()
    assert all(float(ms.removesuffix(" ms")) >= 0 for ms in stages.values())
    assert visitor.get("#timing .stack i").count() == len(stages)
    assert visitor.get("#subject img").evaluate("(image) => image.complete && image.naturalWidth") == 240
    said = f"{names[0]}, {visitor.get('#labels .value').first.inner_text()}. 12 neighbours found."
    assert visitor.get("[role=status]").inner_text() == said
    assert visitor.refusals == []
    visitor.map_is_drawn()
    visitor.page.screenshot(path=shots / "found.png", full_page=True)
    visitor.page.emulate_media(color_scheme="dark")
    visitor.page.screenshot(path=shots / "found-dark.png", full_page=True)


def test_a_photo_that_was_added_is_its_own_nearest_neighbour(
    visitor: Visitor, server: Server, tmp_path: Path
) -> None:
    id = "from/the page?#%.jpg"
    visitor.drop(photo_in(tmp_path, 8))
    visitor.searched("my photo.jpg")
    assert id not in visitor.neighbours()
    visitor.get("#add").get_by_label("Name").fill(id)
    visitor.get("#add").get_by_label("Label").fill("cat")
    visitor.page.get_by_role("button", name="Add", exact=True).click()
    visitor.get("#status").get_by_text(f"Added as {id}.").wait_for()
    first = visitor.get(".neighbours button").first
    assert first.get_attribute("title") == id
    assert first.inner_text().split()[0] == "cat"
    assert first.locator(".value").inner_text() == "1.000"
    assert httpx.post(server.url + "/index/search", json={"id": id}).status_code == 200
    httpx.delete(server.url + "/index/from%2Fthe%20page%3F%23%25.jpg").raise_for_status()


def add(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="Add", exact=True).click()


def test_photos_of_one_name_become_rows_of_their_own(visitor: Visitor, server: Server, tmp_path: Path) -> None:
    names = ["image.jpg", "image-2.jpg", "image-3.jpg"]
    for seed, name in enumerate(names, 20):
        visitor.drop(photo_in(tmp_path, seed, "image.jpg"))
        visitor.searched("image.jpg")
        add(visitor)
        visitor.get("#status").get_by_text(f"Added as {name}.").wait_for()
        assert visitor.neighbours()[0] == name
    assert set(visitor.refusals) == {404}  # that a name is free
    for name in names:
        httpx.delete(f"{server.url}/index/{name}").raise_for_status()


def test_a_row_is_replaced_only_by_those_who_say_so_twice(visitor: Visitor, server: Server, tmp_path: Path) -> None:
    def vector() -> list[float]:
        return httpx.get(server.url + "/index/mine").raise_for_status().json()["vector"]

    httpx.put(server.url + "/index/mine", content=photo_in(tmp_path, 30).read_bytes()).raise_for_status()
    before = vector()
    visitor.drop(photo_in(tmp_path, 31))
    visitor.searched("my photo.jpg")
    visitor.get("#add").get_by_label("Name").fill("mine")
    add(visitor)
    visitor.get("#problem").get_by_text("There is a row mine already.").wait_for()
    assert vector() == before
    add(visitor)
    visitor.get("#status").get_by_text("Added as mine.").wait_for()
    assert vector() != before
    httpx.delete(server.url + "/index/mine").raise_for_status()


def test_a_photo_may_be_pasted(visitor: Visitor, server: Server, tmp_path: Path) -> None:
    data = b64encode(photo_in(tmp_path, 32).read_bytes()).decode()
    visitor.page.evaluate(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([bytes], "image.jpg", { type: "image/jpeg" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        data,
    )
    visitor.searched("image.jpg")
    assert len(visitor.neighbours()) == 12


def test_of_several_models_each_has_its_page_with_its_own_answers_and_its_own_map(
    chromium: "Browser", seeded_store: Path, tmp_path: Path, shots: Path
) -> None:
    write_seeded_store(tmp_path / "other")
    arguments = ["--index", "gallery", "--also", f"other={tmp_path / 'other'}"]
    with running_server(seeded_store, tmp_path / "server", arguments) as server:
        fill(server.url, 6)
        with visit(chromium, server.url) as visitor:
            visitor.map_is_drawn()
            assert visitor.get("#map-note").inner_text() == "6 rows"
            visitor.page.get_by_role("link", name="other").click()
            visitor.page.wait_for_url("**/?model=other")
            visitor.map_is_drawn()
            assert visitor.get("#map-note").inner_text() == "3 rows"
            assert visitor.get("#links [aria-current=page]").inner_text() == "other"
            photo = photo_in(tmp_path, 33)
            visitor.drop(photo)
            visitor.searched("my photo.jpg")
            expected = httpx.post(server.url + "/predictions/other?k=3", content=photo.read_bytes()).json()
            assert visitor.get("#labels .name").first.inner_text() == expected["label"]
            assert visitor.neighbours() == [one["id"] for one in expected["neighbors"]]
            visitor.get(".neighbours button").first.click()
            visitor.searched(expected["neighbors"][0]["id"])
            visitor.page.reload()
            visitor.searched(expected["neighbors"][0]["id"])
            assert "?model=other#id=" in visitor.page.url
            visitor.page.screenshot(path=shots / "other-model.png")
            assert visitor.refusals == []
        with visit(chromium, server.url, "/?model=nobody") as visitor:
            visitor.get("#problem").get_by_text("There is no model nobody here; there is encoder, other.").wait_for()


def test_where_reads_want_the_token_the_page_asks_for_it_and_may_be_asked_again(
    chromium: "Browser", seeded_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("open-sesame")
    arguments = ["--index", "gallery", "--thumbnails", "--token-file", str(tmp_path / "token"), "--protect-reads"]
    with running_server(seeded_store, tmp_path / "server", arguments) as server:
        fill(server.url, 12, {"authorization": "Bearer open-sesame"})
        with visit(chromium, server.url) as visitor:
            visitor.get("#token").get_by_role("button", name="Cancel").click()
            visitor.get("#problem").get_by_text("token").wait_for()
            visitor.drop(photo_in(tmp_path, 34))
            visitor.page.get_by_label("Bearer token").fill("open-sesame")
            visitor.page.get_by_role("button", name="Send").click()
            visitor.searched("my photo.jpg")
            images = "[...document.querySelectorAll('.neighbours img')]"
            visitor.until(f"{images}.length === 12 && {images}.every((image) => image.naturalWidth === 128)")
            sources = visitor.get(".neighbours img").evaluate_all("(images) => images.map((one) => one.src)")
            assert all(source.startswith("blob:") for source in sources)
            assert visitor.drawn().colours > 1_000  # pictures on the map, which come as blobs too
            assert visitor.refusals == [401, 401]


def test_a_click_on_a_neighbour_searches_by_it_and_back_returns(
    visitor: Visitor, server: Server, tmp_path: Path
) -> None:
    visitor.drop(photo_in(tmp_path, 9))
    visitor.searched("my photo.jpg")
    of_the_photo = visitor.neighbours()
    visitor.get(".neighbours button").nth(1).click()
    visitor.searched(of_the_photo[1])
    asked = httpx.post(server.url + "/index/search", json={"id": of_the_photo[1], "k": 12}).json()
    assert visitor.neighbours() == [neighbor["id"] for neighbor in asked["neighbors"]]
    assert visitor.get("#labels h2").inner_text() == "What its neighbours say"
    assert [name.inner_text() for name in visitor.get("#labels .name").all()] == [
        vote["label"] for vote in asked["vote"]
    ]
    assert not visitor.get("#add").is_visible()
    visitor.page.go_back()
    visitor.searched("my photo.jpg")
    assert visitor.neighbours() == of_the_photo
    visitor.page.go_forward()
    visitor.page.reload()
    visitor.searched(of_the_photo[1])


def test_points_of_the_map_are_drawn_and_a_click_searches_by_one(visitor: Visitor, server: Server) -> None:
    visitor.map_is_drawn()
    rows = httpx.get(server.url + "/index/map").json()["rows"]
    assert visitor.get("#map-note").inner_text() == f"{rows} rows"
    assert visitor.drawn().pixels > 20 * ROWS
    place = visitor.place_of_a_point()
    id = visitor.get("#tip span").last.inner_text()
    visitor.page.mouse.click(*place)
    visitor.searched(id)
    assert visitor.page.url.endswith("#id=" + id.replace("/", "%2F"))
    assert len(visitor.neighbours()) == 12


def test_points_that_have_room_are_pictures(visitor: Visitor) -> None:
    whole = visitor.drawn()
    assert whole.colours > 5_000  # dots have a dozen, and their edges some more
    visitor.get("#legend button").filter(has_text="cat").click()
    assert visitor.drawn().pixels < whole.pixels / 2  # twenty of sixty keep their pictures


def test_the_map_is_zoomed_dragged_and_shown_whole_again(visitor: Visitor) -> None:
    visitor.map_is_drawn()
    box = visitor.get("#canvas").bounding_box()
    assert box is not None
    whole = visitor.map_picture()
    for _ in range(4):
        visitor.page.get_by_role("button", name="Zoom in").click()
    closer = visitor.map_picture()
    assert closer != whole
    visitor.page.mouse.move(box["x"] + 200, box["y"] + 200)
    visitor.page.mouse.down()
    visitor.page.mouse.move(box["x"] + 320, box["y"] + 260, steps=4)
    visitor.page.mouse.up()
    visitor.page.mouse.move(0, 0)
    assert visitor.map_picture() not in (closer, whole)
    assert not visitor.get("#subject").is_visible()  # a drag is no click
    visitor.page.get_by_role("button", name="Show all").click()
    assert visitor.map_picture() == whole


def test_the_legend_shows_one_label_alone(visitor: Visitor) -> None:
    visitor.map_is_drawn()
    assert sorted(visitor.get("#legend button").all_inner_texts()) == ["cat", "dog"]
    cat = visitor.get("#legend button").filter(has_text="cat")
    cat.click()
    assert cat.get_attribute("aria-pressed") == "true"
    visitor.place_of_a_point()
    assert visitor.get("#tip b").inner_text() == "cat"
    cat.click()
    assert cat.get_attribute("aria-pressed") == "false"


def test_everything_can_be_done_by_keyboard(visitor: Visitor, shots: Path) -> None:
    visitor.map_is_drawn()
    reached = []
    for _ in range(8):
        visitor.page.keyboard.press("Tab")
        reached.append(visitor.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert visitor.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if reached[-1] == "canvas":
            break
    assert reached == ["Skip to the content", "API", "choose", "random", "canvas"]
    whole = before = visitor.map_picture()
    for key in ("ArrowRight", "+", "+", "ArrowDown", "ArrowLeft", "Shift+ArrowUp", "-", "Escape"):
        visitor.page.keyboard.press(key)
        now = visitor.map_picture()
        assert now != before, key
        before = now
    visitor.page.keyboard.press("0")
    assert visitor.map_picture() == whole
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.screenshot(path=shots / "keyboard.png")
    spoken = visitor.get("#map-spoken").inner_text()
    id = visitor.get("#tip span").last.inner_text()
    assert spoken.endswith(", " + id)
    visitor.page.keyboard.press("Enter")
    visitor.searched(id)


def tab_to(visitor: Visitor, text: str) -> None:
    """Press Tab until what has this text, or is labelled so, has the focus."""
    labels = "...(document.activeElement.labels ?? [])"
    focused = f"[document.activeElement, {labels}].map((one) => one.textContent.trim())"
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        if any(one.startswith(text) for one in visitor.page.evaluate(focused)):
            return
    raise AssertionError(f"Tab never comes to {text}")


def test_a_photo_is_chosen_added_and_searched_from_without_a_mouse(
    visitor: Visitor, server: Server, tmp_path: Path
) -> None:
    visitor.page.on("filechooser", lambda _: None)  # the browser is told early that nobody sits before it
    visitor.map_is_drawn()
    tab_to(visitor, "Choose a photo")
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.keyboard.press("Enter")
    chooser.value.set_files(photo_in(tmp_path, 35, "keys.jpg"))
    visitor.searched("keys.jpg")
    tab_to(visitor, "Label")
    visitor.page.keyboard.type("cat")
    tab_to(visitor, "Add")
    visitor.page.keyboard.press("Enter")
    visitor.get("#status").get_by_text("Added as keys.jpg.").wait_for()
    try:
        assert visitor.neighbours()[0] == "keys.jpg"
        tab_to(visitor, "dog")  # of the legend
        visitor.page.keyboard.press("Space")
        assert visitor.page.evaluate("document.activeElement.ariaPressed") == "true"
        second = visitor.neighbours()[1]
        visitor.page.keyboard.press("Shift+Tab")
        for _ in range(60):
            if visitor.page.evaluate("document.activeElement.title") == second:
                break
            visitor.page.keyboard.press("Shift+Tab")
        visitor.page.keyboard.press("Enter")
        visitor.searched(second)
    finally:
        httpx.delete(server.url + "/index/keys.jpg").raise_for_status()


def test_only_the_left_button_takes_a_point(visitor: Visitor) -> None:
    visitor.map_is_drawn()
    place = visitor.place_of_a_point()
    for button in ("right", "middle"):
        visitor.page.mouse.click(*place, button=button)
        assert not visitor.get("#subject").is_visible()
    visitor.page.mouse.click(*place)
    visitor.get("#subject").wait_for()


def test_two_fingers_come_closer_and_one_drags(chromium: "Browser", server: Server) -> None:
    with visit(chromium, server.url, **PHONE) as visitor:
        visitor.map_is_drawn()
        visitor.get("#canvas").scroll_into_view_if_needed()
        box = visitor.get("#canvas").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        whole = visitor.map_picture()
        visitor.fingers([[(x - 20, y), (x + 20, y)], [(x - 60, y), (x + 60, y)], [(x - 120, y), (x + 120, y)]])
        closer = visitor.map_picture()
        assert closer != whole
        assert "closer" in (visitor.get("#canvas").get_attribute("class") or "")
        visitor.fingers([[(x, y)], [(x + 30, y + 20)], [(x + 80, y + 40)]])
        assert visitor.map_picture() not in (whole, closer)
        assert not visitor.get("#subject").is_visible()  # no point was taken
        visitor.page.get_by_role("button", name="Show all").tap()
        assert visitor.map_picture() == whole


def test_on_a_phone_nothing_is_wider_than_the_screen_and_fingers_work(
    chromium: "Browser", server: Server, tmp_path: Path, shots: Path
) -> None:
    with visit(chromium, server.url, **PHONE) as visitor:
        visitor.map_is_drawn()
        place = visitor.place_of_a_point()
        visitor.page.touchscreen.tap(*place)
        visitor.page.wait_for_url("**/#id=*")
        visitor.get(".neighbours button").first.wait_for()
        with visitor.page.expect_file_chooser() as chooser:
            visitor.page.get_by_role("button", name="Choose a photo").tap()
        chooser.value.set_files(photo_in(tmp_path, 11, "a_very_long_name_without_any_space_" * 4 + ".jpg"))
        visitor.get("#add").wait_for()
        visitor.until("document.querySelectorAll('.neighbours img').length === 12")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == 375
        heights = visitor.get("button:visible").evaluate_all("(buttons) => buttons.map((one) => one.offsetHeight)")
        assert min(heights) >= 32
        assert visitor.get("#map-help .pointed:visible").count() == 0
        height = visitor.page.evaluate("document.documentElement.scrollHeight")
        visitor.page.set_viewport_size({"width": 375, "height": height})  # full_page would pretend to have a mouse
        visitor.map_is_drawn()
        visitor.page.screenshot(path=shots / "phone.png")


def test_what_is_no_photo_is_refused_with_the_servers_reason(
    visitor: Visitor, tmp_path: Path, shots: Path
) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    visitor.drop(tmp_path / "notes.txt")
    visitor.get("#problem").get_by_text("JPEG, PNG, WebP or GIF").wait_for()
    assert not visitor.get("#near").is_visible()
    visitor.page.screenshot(path=shots / "refused.png")
    visitor.drop(photo_in(tmp_path, 12), "body")
    visitor.searched("my photo.jpg")
    assert not visitor.get("#problem").is_visible()
    assert visitor.refusals == [415]


def test_hostile_ids_and_labels_stay_text(chromium: "Browser", server: Server, tmp_path: Path) -> None:
    photo = photo_in(tmp_path, 13, f"{HOSTILE.replace('/', '')}.jpg")
    answer = httpx.post(server.url + "/predictions/encoder", content=photo.read_bytes()).json()
    row = {"label": HOSTILE, "vector": answer["embedding"]}
    path = "/index/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"
    httpx.put(server.url + path, json=row).raise_for_status()
    try:
        with visit(chromium, server.url) as visitor:
            visitor.drop(photo)
            visitor.searched(photo.name)
            first = visitor.get(".neighbours button").first
            assert first.get_attribute("title") == HOSTILE
            assert HOSTILE in first.inner_text()
            first.click()
            visitor.searched(HOSTILE)
            assert visitor.get("[src=x]").count() == 0
            assert set(visitor.refusals) <= {404}  # it has no thumbnail: a tile
            assert visitor.get("#picture.tile").inner_text() == HOSTILE
    finally:
        httpx.delete(server.url + path).raise_for_status()


def test_a_server_with_a_token_asks_for_it_once(
    chromium: "Browser", seeded_store: Path, tmp_path: Path, shots: Path
) -> None:
    (tmp_path / "token").write_text("open-sesame")
    arguments = ["--index", "gallery", "--token-file", str(tmp_path / "token")]
    with (
        running_server(seeded_store, tmp_path / "server", arguments) as server,
        visit(chromium, server.url) as visitor,
    ):
        visitor.get("#map-wait").get_by_text("empty").wait_for()
        visitor.drop(photo_in(tmp_path, 14))
        visitor.get("#near").get_by_text("The gallery is empty").wait_for()
        for wrong in (True, False):
            add = visitor.page.get_by_role("button", name="Add", exact=True)
            if wrong:
                add.click()
            visitor.get("#token").wait_for()
            if wrong:
                visitor.page.screenshot(path=shots / "token.png")
            visitor.page.get_by_label("Bearer token").fill("not this one" if wrong else "open-sesame")
            visitor.page.get_by_role("button", name="Send").click()
        visitor.get("#status").get_by_text("Added as").wait_for()
        assert visitor.neighbours() == ["my photo.jpg"]
        assert visitor.refusals.count(401) == 2
        visitor.get("#add").get_by_label("Name").fill("again")
        visitor.page.get_by_role("button", name="Add", exact=True).click()
        visitor.get("#status").get_by_text("Added as again").wait_for()
        assert visitor.refusals.count(401) == 2


def test_without_thumbnails_neighbours_are_tiles_in_the_colour_of_their_label(
    chromium: "Browser", seeded_store: Path, tmp_path: Path, shots: Path
) -> None:
    with running_server(seeded_store, tmp_path / "server", ["--index", "gallery"]) as server:
        fill(server.url, 12)
        with visit(chromium, server.url) as visitor:
            visitor.drop(photo_in(tmp_path, 15))
            visitor.searched("my photo.jpg")
            visitor.until("document.querySelectorAll('.neighbours .tile').length === 12")
            colours = visitor.get(".neighbours .tile").evaluate_all(
                "(tiles) => tiles.map((tile) => [tile.textContent, getComputedStyle(tile).backgroundImage])"
            )
            assert len({tuple(one) for one in colours}) == len({name for name, _ in colours}) == 3
            visitor.map_is_drawn()
            visitor.page.screenshot(path=shots / "tiles.png", full_page=True)
            for _ in range(6):  # around the photo, which so stays in view
                visitor.page.get_by_role("button", name="Zoom in").click()
            assert visitor.drawn().ink > 100  # the photo's frame is in ink
            assert visitor.refusals == []


def test_the_only_row_of_a_gallery_is_shown_alone(
    chromium: "Browser", seeded_store: Path, tmp_path: Path, shots: Path
) -> None:
    with running_server(seeded_store, tmp_path / "server", ["--index", "gallery", "--thumbnails"]) as server:
        fill(server.url, 1)
        with visit(chromium, server.url) as visitor:
            visitor.map_is_drawn()
            assert visitor.get("#map-note").inner_text() == "1 row"
            visitor.page.get_by_role("button", name="Surprise me").click()
            visitor.searched("pictures/000.jpg")
            visitor.get("#near").get_by_text("There is no other row.").wait_for()
            assert visitor.get("[role=status]").inner_text() == "0 neighbours found."
            visitor.map_is_drawn()
            visitor.page.screenshot(path=shots / "one-row.png")
            assert visitor.refusals == []


@pytest.mark.parametrize("probe", [True, False])
def test_a_model_without_gallery_or_probe_still_looks_right(
    chromium: "Browser", tmp_path: Path, probe: bool, shots: Path
) -> None:
    with (
        serving_without_gallery(tmp_path / "store", ("cat", "dog") if probe else ()) as url,
        visit(chromium, url) as visitor,
    ):
        visitor.get("#about").get_by_text("no gallery").wait_for()
        visitor.drop(photo_in(tmp_path, 16))
        visitor.searched("my photo.jpg")
        assert visitor.get("#timing").is_visible()
        assert "--images" in visitor.get("#status").inner_text()
        assert visitor.get("#labels").is_visible() == probe
        for hidden in ("#near", "#map", "#add", "#random", "#problem"):
            assert not visitor.get(hidden).is_visible()
        assert visitor.refusals == []
        visitor.page.screenshot(path=shots / f"no-gallery-{'probe' if probe else 'bare'}.png")


def test_the_api_can_be_read_where_nothing_but_the_server_can_be_reached(
    chromium: "Browser", server: Server, shots: Path
) -> None:
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    with visit(chromium, server.url, "/docs") as visitor:
        visitor.get(".opblock").first.wait_for()
        assert visitor.get(".opblock").count() == sum(map(len, paths.values()))
        visitor.page.screenshot(path=shots / "docs.png")
