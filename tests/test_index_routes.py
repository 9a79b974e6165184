"""The index over HTTP, row by row: a real server with a real gallery, and in one process what seldom happens."""

import asyncio
import logging
import threading
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.index_routes import MEASURING
from handlers.service import Service
from index.errors import GalleryAway, GalleryBusy, GalleryCorrupt, GalleryError, GalleryFull, GalleryReadOnly
from index.thumbnails import Thumbnails
from tests.brute_index import BruteIndex
from tests.index_requests import DIMENSION, SEARCH, found, put, unit
from tests.server import Server
from tests.serving import JPEG, OTHER, PATH, assert_refused, front_with, samples, talk, vector_of

IDS = [
    "photo.jpg",
    "cats/deep/1.jpg",
    "/leading//double/",
    "größe 猫 🐈.jpg",
    "100%.jpg",
    "a%2Fb",
    "what? #1 & more=2;x+y",
    "search",
    "bulk",
    "'quotes\" and \\",
    "x" * 1024,
]


# One row


def test_an_image_that_was_put_is_found_by_the_very_next_search(writer: httpx.Client, seeded_store: Path) -> None:
    stored = writer.put("/index/cats/1.jpg", params={"label": "cat", "metadata": '{"year": 1998}'}, content=JPEG)
    neighbors = writer.post(SEARCH, content=JPEG).json()["neighbors"]
    assert neighbors == [
        {"id": "cats/1.jpg", "score": pytest.approx(1, abs=1e-5), "label": "cat", "metadata": {"year": 1998}}
    ]
    manifest = Manifest.read(seeded_store)
    predicted = writer.post(PATH, content=JPEG).json()
    answer = stored.json()
    assert {key: answer[key] for key in ("id", "model", "label")} == {
        "id": "cats/1.jpg",
        "model": manifest.model_id,
        "label": "cat",
    }
    assert answer["predicted"] == {key: predicted[key] for key in ("label", "confidence")}
    assert set(answer["timing_ms"]) == {"decode", "embed"}


def test_a_row_comes_back_as_it_was_put(writer: httpx.Client, seeded_store: Path) -> None:
    metadata = {"year": 1998, "tags": ["a", {"b": None}], "ratio": 0.5, "indoors": True}
    put(writer, "vector", [3.0, 4.0] + [0.0] * 14, label="dog", metadata=metadata)
    row = writer.get("/index/vector").json()
    assert (row["id"], row["label"], row["metadata"]) == ("vector", "dog", metadata)
    np.testing.assert_allclose(row["vector"], [0.6, 0.8] + [0.0] * 14, atol=1e-7)

    assert writer.put("/index/image", content=OTHER).status_code == 200
    row = writer.get("/index/image").json()
    assert (row["label"], row["metadata"]) == (None, {})
    np.testing.assert_allclose(row["vector"], vector_of(Encoder.load(seeded_store), OTHER), atol=1e-6)


def test_an_image_may_come_as_a_file_in_json_or_under_any_type_of_image(writer: httpx.Client) -> None:
    text = b64encode(JPEG).decode()
    for id, request in {
        "curl -T": {"content": JPEG},
        "curl --data-binary": {"content": JPEG, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        "typed": {"content": JPEG, "headers": {"content-type": "image/jpeg; q=1"}},
        "bytes": {"content": JPEG, "headers": {"content-type": "application/octet-stream"}},
        "base64": {"json": {"image": text}},
        "data URI": {"json": {"image": f"data:image/jpeg;base64,{text}"}},
        "curl -d": {
            "content": b' {"image": "%s"}' % text.encode(),
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    }.items():
        assert writer.put(f"/index/{id}", **request).status_code == 200, id
    neighbors = writer.post(SEARCH, content=JPEG).json()["neighbors"]
    assert len(neighbors) == 7 and all(neighbor["score"] > 0.9999 for neighbor in neighbors)


@pytest.mark.parametrize("id", IDS)
def test_any_text_is_an_id(writer: httpx.Client, id: str) -> None:
    for path in {f"/index/{quote(id, safe='')}", f"/index/{quote(id)}"}:
        assert writer.put(path, json={"vector": unit(0)}).json()["id"] == id
        assert writer.get(path).json()["id"] == id
        assert found(writer.post(SEARCH, json={"vector": unit(0)})) == [id]
        assert writer.delete(path).json() == {"id": id, "removed": True}
        assert_refused(writer.get(path), 404, "no row")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/index/%FF.jpg", 400, ["UTF-8"]),
        ("/index/%00", 400, ["NUL"]),
        ("/index/", 404, ["names no id"]),
        ("/index/" + "x" * 1025, 400, ["1025", "1024"]),
        ("/index/a?label=%FF", 400, ["UTF-8"]),
        ("/index/map", 400, ["'map'", "GET /index/map is the map", "another id"]),  # nobody could read it
        ("/index/%6Dap", 400, ["'map'"]),
        ("/models/encoder/index/map", 400, ["'map'"]),
    ],
)
def test_what_cannot_be_an_id_is_refused(writer: httpx.Client, path: str, status: int, words: list[str]) -> None:
    assert_refused(writer.put(path, content=JPEG), status, *words)
    assert writer.get("/index").json()["rows"] == 0


def test_a_removed_row_is_found_no_more(writer: httpx.Client) -> None:
    put(writer, "a", unit(0))
    put(writer, "b", unit(0, 1))
    assert found(writer.post(SEARCH, json={"vector": unit(0)})) == ["a", "b"]
    assert writer.delete("/index/a").status_code == 200
    assert found(writer.post(SEARCH, json={"vector": unit(0)})) == ["b"]
    for gone in (writer.delete("/index/a"), writer.get("/index/a"), writer.post(SEARCH, json={"id": "a"})):
        assert_refused(gone, 404, "'a'")


def test_putting_an_id_again_replaces_its_row(writer: httpx.Client) -> None:
    put(writer, "a", unit(0), label="cat", metadata={"x": 1})
    put(writer, "a", unit(1))
    row = writer.get("/index/a").json()
    assert (row["vector"], row["label"], row["metadata"]) == (unit(1), None, {})
    assert writer.get("/index").json()["rows"] == 1


def test_another_method_is_refused_by_naming_those_there_are(writer: httpx.Client) -> None:
    for answer, allowed in (
        (writer.post("/index/a", json={}), "GET, PUT, DELETE"),
        (writer.put("/index", json={}), "GET"),
        (writer.delete("/thumbnails/a"), "GET"),
    ):
        assert_refused(answer, 405, answer.request.method)
        assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/index", "/index/a", "/thumbnails/a"])
def test_what_is_only_read_takes_no_body(writer: httpx.Client, path: str) -> None:
    assert_refused(writer.request("GET", path, content=b"x"), 413, "1 bytes", "limit is 0")


def test_the_times_that_a_put_has_waited_for_its_two_turns_are_added_up(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        gate = threading.Event()
        busy = front.admission.submit(gate.wait)
        putting = asyncio.create_task(client.put("/index/a", json={"vector": unit(0)}))
        await asyncio.sleep(0.1)
        gate.set()
        assert await busy
        answer = await putting
        assert answer.status_code == 200
        queue_ms = float(answer.headers["server-timing"].partition("queue;dur=")[2].partition(",")[0])
        assert queue_ms > 50  # of the first turn; the second found a worker idle

    front = front_with(Service(Encoder.load(seeded_store), BruteIndex("", DIMENSION)))
    talk(front, scenario)


def test_a_refusal_ends_the_connection_only_where_a_body_was_left_unread(writer: httpx.Client) -> None:
    assert "connection" not in writer.request("POST", "/index").headers
    assert writer.request("POST", "/index", content=b"x").headers["connection"] == "close"


# What it holds


def test_the_index_says_what_it_holds_and_measures_recall_when_asked(
    writer: httpx.Client, seeded_store: Path
) -> None:
    random = np.random.default_rng(0)
    for row in range(12):
        put(writer, str(row), random.standard_normal(DIMENSION).tolist())
    stats = writer.get("/index").json()
    assert stats["model"] == Manifest.read(seeded_store).model_id
    assert (stats["dimension"], stats["rows"], stats["factory"]) == (DIMENSION, 12, "Flat")
    assert set(stats) >= {"delta", "tombstones", "memory_bytes", "snapshot", "rebuilding", "recall"}
    measured = writer.get("/index", params={"recall": 1}).json()
    assert (measured["recall"]["at"], measured["recall"]["value"]) == (10, 1)
    assert writer.get("/index").json()["recall"] == measured["recall"]
    assert_refused(writer.get("/index", params={"recall": "yes"}), 400, "'yes'", "recall=1")
    assert_refused(writer.get("/index", params={"recal": "1"}), 400, "'recal'")


def test_a_thumbnail_is_that_of_the_image_the_row_came_from(writer: httpx.Client) -> None:
    writer.put("/index/cats/1.jpg", content=JPEG)
    picture = writer.get("/thumbnails/cats/1.jpg")
    assert picture.status_code == 200 and picture.headers["content-type"] == "image/webp"
    assert Image.open(BytesIO(picture.content)).size == (128, 128)
    put(writer, "cats/1.jpg", unit(0))  # the row is no image's any more
    assert_refused(writer.get("/thumbnails/cats/1.jpg"), 404, "has no thumbnail")
    assert_refused(writer.get("/thumbnails/none"), 404, "no row")


def test_a_removed_row_takes_its_thumbnail_with_it(index_server: Server, writer: httpx.Client) -> None:
    writer.put("/index/a", content=JPEG)
    writer.put("/index/b", content=JPEG)
    bulk = {"content": b'{"id": "b", "delete": true}', "headers": {"content-type": "application/x-ndjson"}}
    with Thumbnails.open(index_server.log_file.parent / "gallery") as kept:
        assert set(kept.contents(["a", "b"])) == {"a", "b"}
        writer.delete("/index/a")
        assert set(kept.contents(["a", "b"])) == {"b"}
        writer.post("/index/bulk", **bulk)
        assert set(kept.contents(["a", "b"])) == set()


class NoRoom(Thumbnails):
    def put(self, rows: object) -> None:
        raise GalleryFull("no room for pictures")

    drop = put


def test_a_row_is_durable_and_said_to_be_where_only_its_thumbnail_found_no_room(
    seeded_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.put("/index/a", content=JPEG)).status_code == 200
        assert_refused(await client.get("/thumbnails/a"), 404, "has no thumbnail")
        assert (await client.delete("/index/a")).status_code == 200
        assert caplog.text.count("no room for pictures") == 2

    index = BruteIndex("", DIMENSION)
    thumbnails = NoRoom.open(tmp_path)
    talk(front_with(Service(Encoder.load(seeded_store), index, thumbnails=thumbnails)), scenario)


def test_writes_and_rows_are_in_the_metrics(writer: httpx.Client) -> None:
    before = samples(writer.get("/metrics").text)
    put(writer, "a", unit(0))
    put(writer, "b", unit(1))
    writer.delete("/index/a")
    writer.delete("/index/a")
    after = samples(writer.get("/metrics").text)
    assert [rows for name, rows in after.items() if name.startswith("akin_index_rows{")] == [1]
    for kind, rows in (("put", 2), ("remove", 1)):
        name = f'akin_index_writes_total{{kind="{kind}"}}'
        assert after[name] - before.get(name, 0) == rows


def test_puts_and_searches_side_by_side_never_fail_and_every_put_is_found_at_once(writer: httpx.Client) -> None:
    wrong: list[str] = []

    def work(worker: int) -> None:
        random = np.random.default_rng(worker)
        with httpx.Client(base_url=writer.base_url, timeout=30) as client:
            for turn in range(15):
                id, vector = f"{worker}/{turn}", random.standard_normal(DIMENSION).tolist()
                put(client, id, vector)
                ids = found(client.post(SEARCH, json={"vector": vector, "k": 5}))
                if ids[:1] != [id]:
                    wrong.append(f"{id} put, {ids} found")
                if turn % 3 == 0:
                    client.delete(f"/index/{id}")
                    if id in found(client.post(SEARCH, json={"vector": vector, "k": 5})):
                        wrong.append(f"{id} removed and found")

    threads = [threading.Thread(target=work, args=[worker]) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert writer.get("/index").json()["rows"] == 8 * 10


# In one process: what a real gallery does too seldom


class Failing(BruteIndex):
    """An index that fails whatever it is asked."""

    def __init__(self, error: GalleryError) -> None:
        super().__init__("", DIMENSION)
        self.error = error

    def _fail(self, *_: object, **__: object) -> Any:
        raise self.error

    add = remove = get = search = stats = _fail
    count = property(_fail)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GalleryFull("the disk is full; free some space"), 507),
        (GalleryAway("no answer within 5 s; try again"), 503),
        (GalleryBusy("another process writes; try again"), 503),
        (GalleryReadOnly("may only be read; give the right"), 403),
    ],
)
def test_what_befalls_the_index_has_a_status_of_its_own(
    seeded_store: Path, caplog: pytest.LogCaptureFixture, error: GalleryError, status: int
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in (
            await client.put("/index/a", json={"vector": unit(0)}),
            await client.put("/index/a", content=JPEG),
            await client.delete("/index/a"),
            await client.get("/index/a"),
            await client.get("/index"),
            await client.post(SEARCH, json={"vector": unit(0)}),
            await client.post(SEARCH, json={"id": "a"}),
            await client.post(PATH, params={"k": 1}, content=JPEG),
        ):
            assert_refused(answer, status, str(error))
            assert ("retry-after" in answer.headers) == (status == 503)
        assert (await client.post(PATH, content=JPEG)).status_code == 200
        assert (await client.get("/")).json()["gallery_rows"] is None
        assert (await client.get("/metrics")).status_code == 200

    talk(front_with(Service(Encoder.load(seeded_store), Failing(error))), scenario)
    assert caplog.text == ""


def test_a_damaged_index_is_500_with_its_reason_and_a_line_in_the_log(
    seeded_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        with caplog.at_level(logging.ERROR, "akin"):
            assert_refused(await client.get("/index/a"), 500, "row 7 fails its checksum")
        assert "row 7 fails its checksum" in caplog.text

    broken = Failing(GalleryCorrupt("row 7 fails its checksum; restore it"))
    talk(front_with(Service(Encoder.load(seeded_store), broken)), scenario)


def test_the_metrics_say_nan_while_the_index_is_away(seeded_store: Path) -> None:
    front = front_with(Service(Encoder.load(seeded_store), Failing(GalleryAway("away"))))
    found = samples(front.metrics.render().decode())
    assert [str(rows) for name, rows in found.items() if name.startswith("akin_index_rows{")] == ["nan"]
    front.admission.close()


def test_a_server_without_an_index_says_so(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in (
            await client.put("/index/a", json={"vector": unit(0)}),
            await client.get("/index"),
            await client.post(SEARCH, json={"vector": unit(0)}),
            await client.post("/index/bulk", content=b"", headers={"content-type": "application/x-tar"}),
        ):
            assert_refused(answer, 409, "no gallery")

    talk(front_with(Service(Encoder.load(seeded_store))), scenario)


def test_without_thumbnails_the_way_to_them_is_named(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.put("/index/a", content=JPEG)
        assert_refused(await client.get("/thumbnails/a"), 404, "--thumbnails")

    talk(front_with(Service(Encoder.load(seeded_store), BruteIndex("", DIMENSION))), scenario)


def test_recall_is_measured_for_one_at_a_time(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.put("/index/a", json={"vector": unit(0)})
        with MEASURING:
            assert_refused(await client.get("/index", params={"recall": 1}), 503, "send again")
            assert (await client.get("/index")).json()["recall"] is None
        assert (await client.get("/index", params={"recall": 1})).json()["recall"]["value"] == 1

    talk(front_with(Service(Encoder.load(seeded_store), BruteIndex("", DIMENSION))), scenario)


def test_before_the_golden_vectors_passed_nothing_is_written() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for early in (
            await client.put("/index/a", json={"vector": unit(0)}),
            await client.post("/index/bulk", content=b"", headers={"content-type": "application/x-tar"}),
        ):
            assert_refused(early, 503, "loading")
            assert early.headers["retry-after"] == "1"

    talk(front_with(None), scenario)
