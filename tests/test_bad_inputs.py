"""The table of bad inputs on the native front: each gets its status and its reason, and the server goes on."""

import io
import json
import select
import socket
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from encoder.session import Encoder
from tests.bad_case import Case, ask, assert_answered, converse, http
from tests.bad_http import SLOW
from tests.bad_inputs import BOMBS, TABLE
from tests.bad_json import BULK, EMBEDDINGS, INFER, NDJSON, ROW, SEARCH
from tests.bad_pictures import FOREIGN, PHOTO, pillow_would_take, plain
from tests.pictures import scene
from tests.server import Server, running_server
from tests.serving import JPEG, vector_of

ALLOWED = {"JPEG", "MPO", "PNG", "WEBP", "GIF"}  # an MPO is a JPEG, of which the first picture counts
MAX_GROWTH = 200 << 20  # bytes


@pytest.fixture(scope="module")
def encoder(seeded_store: Path) -> Encoder:
    return Encoder.load(seeded_store)


@pytest.fixture(scope="module")
def right(encoder: Encoder) -> np.ndarray:
    """The embedding of a good request."""
    return vector_of(encoder, JPEG)


@pytest.fixture(scope="module")
def patient(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the limits as they come, for all rows but the slow ones."""
    with running_server(seeded_store, tmp_path_factory.mktemp("patient"), ["--thumbnails"]) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits half a second for a head or a body."""
    limits = ["--header-seconds", "0.5", "--body-seconds", "0.5"]
    with running_server(seeded_store, tmp_path_factory.mktemp("hasty"), limits) as server:
        yield server


def rows(server: Server) -> int:
    """How many the index holds."""
    return ask(server.port, http(path="/index", method="GET")).json["rows"]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_it_gets_its_status_and_its_reason_and_the_server_goes_on(
    case: Case, request: pytest.FixtureRequest, encoder: Encoder, right: np.ndarray
) -> None:
    server: Server = request.getfixturevalue("hasty" if case in SLOW else "patient")
    before = rows(server)
    answer = converse(server.port, case)
    assert_answered(answer, case, encoder)
    assert answer.headers["x-request-id"] and "total;dur=" in answer.headers["server-timing"]
    assert server.process.poll() is None
    good = ask(server.port, http(JPEG))
    assert good.status == 200
    np.testing.assert_allclose(good.json["embedding"], right, atol=1e-6)
    assert rows(server) == before
    assert "Traceback" not in server.log


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)


def test_the_pictures_of_the_table_are_told_apart_by_their_embeddings(encoder: Encoder) -> None:
    others = [ImageOps.mirror(PHOTO), ImageOps.flip(PHOTO), PHOTO.rotate(90, expand=True), scene(60, 44, 1)]
    right = vector_of(encoder, plain(PHOTO))
    for other in others:
        assert right @ vector_of(encoder, plain(other)) < 0.9


def test_every_format_that_pillow_knows_has_its_row() -> None:
    Image.init()
    assert {*Image.OPEN, *Image.SAVE} - ALLOWED <= FOREIGN.keys()
    for name, data in FOREIGN.items():
        assert pillow_would_take(name, data), name


def memory(server: Server, field: str) -> int:
    """Bytes of the server's process: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return int(kilobytes) << 10


def test_bombs_do_not_make_the_server_grow(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path) as server, ThreadPoolExecutor(4) as clients:
        assert ask(server.port, http(JPEG)).status == 200
        before = memory(server, "VmRSS")
        for answer, case in zip(clients.map(converse, repeat(server.port), BOMBS * 3), BOMBS * 3, strict=True):
            assert answer.status == case.status
        assert memory(server, "VmHWM") - before < MAX_GROWTH


def test_nothing_is_fetched_from_a_url_that_stands_for_an_image(patient: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.jpg"
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}
        for method, path, kind, given in (
            ("POST", SEARCH, "application/json", {"image": url}),
            ("PUT", ROW, "application/json", {"image": url}),
            ("POST", BULK, NDJSON, {"id": "a", "image": url}),
            ("POST", EMBEDDINGS, "application/json", {"model": "encoder", "input": url}),
            ("POST", INFER, "application/json", {"inputs": [tensor]}),
        ):
            request = http(json.dumps(given).encode(), f"content-type: {kind}", path=path, method=method)
            assert b"this server fetches none" in ask(patient.port, request).body, path
        assert not select.select([listener], [], [], 0.2)[0]
        with socket.create_connection(listener.getsockname()):  # which the listener would have seen
            assert select.select([listener], [], [], 10)[0]


def test_an_id_that_climbs_is_an_id_and_no_path(patient: Server) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("../../escaped/2.png")
        info.size = len(plain(PHOTO))
        archive.addfile(info, io.BytesIO(plain(PHOTO)))
    with httpx.Client(base_url=patient.url, timeout=30) as client:
        assert (
            client.put("/index/..%2f..%2fescaped%2f1.png", content=plain(PHOTO)).json()["id"] == "../../escaped/1.png"
        )
        packed = {"content-type": "application/x-tar"}
        assert client.post("/index/bulk", content=tar.getvalue(), headers=packed).json()["id"] == info.name
        for id in ("..%2f..%2fescaped%2f1.png", "..%2f..%2fescaped%2f2.png"):
            assert client.get(f"/thumbnails/{id}").headers["content-type"] == "image/webp"
            assert client.delete(f"/index/{id}").json()["removed"] is True
    assert not [*patient.log_file.parents[1].rglob("*escaped*")]
