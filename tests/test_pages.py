"""The page's files as they are served, and the map as JSON. What the page does in a browser: tests/page."""

import asyncio
import gc
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from handlers import pages
from handlers.exchange import Receive, Scope, Send, exchange
from handlers.service import Service
from index.face import Index
from tests.brute_index import BruteIndex
from tests.serving import assert_refused, front_with

FOLDER = pages.FOLDER
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def encoder(seeded_store: Path) -> Encoder:
    return Encoder.load(seeded_store)


@pytest.fixture
def gallery(encoder: Encoder) -> BruteIndex:
    """Thirty rows, every third without a label."""
    index = BruteIndex(encoder.manifest.model_digest, encoder.manifest.dimension)
    vectors = np.random.default_rng(0).standard_normal((30, encoder.manifest.dimension))
    index.add([f"row/{i}" for i in range(30)], vectors, [("cat", "dog", None)[i % 3] for i in range(30)])
    return index


def ask(
    encoder: Encoder, gallery: Index | None, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> None:
    """Run `scenario` with a client of the page's routes; what is not theirs answers 418."""

    async def run() -> None:
        front = front_with(Service(encoder, gallery))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            route = pages.route_for(scope)
            if route is not None:
                await exchange(front, route, scope, receive, send)
            else:
                await send({"type": "http.response.start", "status": 418, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://akin") as client:
                await scenario(client)
        finally:
            front.close()

    asyncio.run(run())


def test_a_browser_gets_the_page_and_other_clients_do_not(encoder: Encoder) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        page = await client.get("/", headers=BROWSER)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.content == (FOLDER / "index.html").read_bytes()
        assert page.headers["vary"] == "accept"
        for accept in ("*/*", "application/json"):
            assert (await client.get("/", headers={"accept": accept})).status_code == 418
        assert (await client.post("/", headers=BROWSER)).status_code == 418

    ask(encoder, None, scenario)


def test_every_file_is_served_with_its_type_and_guarded(encoder: Encoder) -> None:
    types = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

    async def scenario(client: httpx.AsyncClient) -> None:
        for file in FOLDER.iterdir():
            answer = await client.get(f"/page/{file.name}")
            assert (answer.status_code, answer.content) == (200, file.read_bytes())
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"
            if file.name in types:
                assert answer.headers["content-type"].startswith(types[file.name])

    ask(encoder, None, scenario)


def test_a_file_that_the_browser_has_is_not_sent_again(encoder: Encoder) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        etag = (await client.get("/page/page.js")).headers["etag"]
        for known in (etag, f'W/{etag}, "other"'):
            again = await client.get("/page/page.js", headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        changed = await client.get("/page/page.js", headers={"if-none-match": '"0123456789abcdef"'})
        assert changed.status_code == 200
        assert (await client.get("/page/page.css")).headers["etag"] != etag

    ask(encoder, None, scenario)


@pytest.mark.parametrize(
    "path",
    ["", "pages.py", "../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "page.js/", "/page.js", "PAGE.JS", "a%00"],
)
def test_nothing_else_can_be_reached(encoder: Encoder, path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get(f"/page/{path}")).status_code == 418

    ask(encoder, None, scenario)


def test_a_file_is_only_read(encoder: Encoder) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.put("/page/page.js", content=b""), 405, "PUT is not for /page/page.js", "GET")
        assert_refused(await client.request("GET", "/page/page.js", content=b"a body"), 413, "6 bytes")

    ask(encoder, None, scenario)


def test_the_page_holds_no_script_no_style_and_nothing_from_elsewhere() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(.*?)>(.*?)</script>", html) == [(' type="module" src="page/page.js"', "")]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w|@import|url\(", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', (FOLDER / "index.html").read_text()))
    for script in FOLDER.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert named | {"index.html"} == {file.name for file in FOLDER.iterdir()}


def test_the_scripts_find_in_the_page_whatever_they_look_for() -> None:
    there = re.findall(r'\sid="([^"]+)"', (FOLDER / "index.html").read_text())
    assert len(there) == len(set(there))
    sought = set()
    for script in FOLDER.glob("*.js"):
        sought |= set(re.findall(r'(?:\bat|getElementById)\("([^"]+)"\)', script.read_text()))
    assert len(sought) > 15
    assert sought <= set(there)


def luminance(colour: str) -> float:
    """Of "#rrggbb", 0 to 1, as WCAG 2.2 defines it."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_the_ratio_that_wcag_gives_for_known_pairs() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_and_dots_can_be_told_from_what_they_are_on_by_day_and_by_night() -> None:
    day, night = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.DOTALL)
    ]
    labels = re.findall(r'"(#[0-9a-f]{6})"', (FOLDER / "colours.js").read_text())
    assert len(labels) == 13
    assert min(contrast(label, "#ffffff") for label in labels) >= 4.5  # a tile's text
    for colours in (day, day | night):
        for paper in ("paper", "card"):
            for text in ("ink", "quiet", "accent"):
                assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
            marks = [colours[name] for name in ("edge", "decode", "embed", "search", "queue", "rest")]
            for mark in labels + marks:
                assert contrast(mark, colours[paper]) >= 3, (mark, paper)
        assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
        assert contrast(colours["warn"], colours["warn-paper"]) >= 4.5


def test_the_map_has_every_row_of_a_small_gallery(encoder: Encoder, gallery: BruteIndex) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        drawn = (await client.get("/index/map")).json()
        assert (drawn["rows"], drawn["sampled"], len(drawn["points"])) == (30, False, 30)
        labels = {point["id"]: point["label"] for point in drawn["points"]}
        assert labels == {f"row/{i}": ("cat", "dog", None)[i % 3] for i in range(30)}
        places = np.array([[point["x"], point["y"]] for point in drawn["points"]])
        assert np.abs(places).max() == pytest.approx(1, abs=1e-3)
        assert len(np.unique(places, axis=0)) == 30

    ask(encoder, gallery, scenario)


def test_a_limit_shows_a_part_of_the_same_map(encoder: Encoder, gallery: BruteIndex) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        whole, part = [(await client.get(f"/index/map?limit={limit}")).json() for limit in (2000, 10)]
        assert (part["rows"], part["sampled"], part["points"]) == (30, True, whole["points"][:10])

    ask(encoder, gallery, scenario)


def test_everyone_who_waits_for_a_map_gets_the_one_that_was_drawn(
    encoder: Encoder, gallery: BruteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []
    sample = gallery.sample
    monkeypatch.setattr(gallery, "sample", lambda most: readings.append(1) or sample(most))

    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.get("/index/map") for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert len(readings) == 1

    ask(encoder, gallery, scenario)


@pytest.mark.parametrize("limit", ["0", "2001", "-1", "ten", "", "1e3", "9" * 5000, "٣"])
def test_a_limit_that_is_none_gets_400(encoder: Encoder, gallery: BruteIndex, limit: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.get("/index/map", params={"limit": limit}), 400, "limit is", "1 to 2000")

    ask(encoder, gallery, scenario)


def test_a_map_of_what_is_not_there_is_refused(encoder: Encoder, gallery: BruteIndex) -> None:
    async def without(client: httpx.AsyncClient) -> None:
        assert_refused(await client.get("/index/map"), 409, "gallery")

    async def misspelt(client: httpx.AsyncClient) -> None:
        assert_refused(await client.get("/index/map?limits=5"), 400, "'limits'", "limit")

    ask(encoder, None, without)
    ask(encoder, gallery, misspelt)


def test_what_else_is_done_to_the_path_of_the_map_is_not_the_page_s_affair(encoder: Encoder) -> None:
    for method in ("PUT", "DELETE"):
        assert pages.route_for({"path": "/index/map", "method": method, "headers": []}) is None


def test_the_thread_that_draws_is_each_servers_own_and_ends_with_it(encoder: Encoder) -> None:
    before = set(threading.enumerate())
    first, second = front_with(Service(encoder)), front_with(Service(encoder))
    assert first.drawers is first.drawers is not second.drawers
    assert len(set(threading.enumerate()) - before) == 4  # a worker and a drawer each
    first.close()
    second.close()
    assert set(threading.enumerate()) <= before


def test_a_gallery_that_is_gone_takes_its_map_with_it(encoder: Encoder) -> None:
    index = BruteIndex(encoder.manifest.model_digest, encoder.manifest.dimension)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/index/map")).json() == {"points": [], "rows": 0, "sampled": False}

    ask(encoder, index, scenario)
    assert index in pages._maps
    before = len(pages._maps)
    del index
    gc.collect()
    assert len(pages._maps) < before
