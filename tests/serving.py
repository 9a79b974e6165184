"""What the tests of the front share: a model with a seeded gallery, pictures, and how to talk to a server."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.admission import Admission
from handlers.app import build_app
from handlers.exchange import Front
from handlers.metrics import Metrics
from handlers.models import Models
from handlers.service import Service
from handlers.tokens import Access
from images.decode import decode
from index.gallery import Gallery
from tests.pictures import encode, scene
from tests.server import Server, running_server
from tests.tiny_encoder import write_tiny_encoder

PATH = "/predictions/encoder"
JPEG = encode(scene(60, 44), quality=90)
OTHER = encode(scene(60, 44, seed=1), "PNG")
SEEDED = [encode(scene(50, 50, seed), "PNG") for seed in range(10, 13)]  # ids zero, one, two


@pytest.fixture(scope="session")
def seeded_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store of a tiny encoder with a seed; not to be changed."""
    folder = tmp_path_factory.mktemp("seeded") / "model_store"
    write_seeded_store(folder)
    return folder


@pytest.fixture(scope="session")
def server(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for all tests that do not need their own: it must bear whatever each of them sends."""
    with running_server(seeded_store, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of `server`."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def index_server(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for all tests that write: a gallery of its own, thumbnails."""
    folder = tmp_path_factory.mktemp("index_server")
    with running_server(seeded_store, folder, ["--index", "gallery", "--thumbnails"]) as server:
        yield server


@pytest.fixture
def writer(index_server: Server, seeded_store: Path) -> Iterator[httpx.Client]:
    """A client of `index_server`, whose gallery is empty; no request may leave a traceback in its log."""
    with httpx.Client(base_url=index_server.url, timeout=30) as client:
        yield client
    assert index_server.process.poll() is None
    assert "Traceback" not in index_server.log
    manifest = Manifest.read(seeded_store)
    folder = index_server.log_file.parent / "gallery"
    with Gallery.open(folder, manifest.model_digest, manifest.dimension) as gallery:
        gallery.remove([record.id for batch in gallery.records() for record in batch])


def write_seeded_store(folder: Path) -> Manifest:
    """A tiny encoder, with the SEEDED pictures as the seed of its gallery."""
    manifest = write_tiny_encoder(folder)
    np.savez(
        folder / "gallery.npz",
        ids=np.array(["zero", "one", "two"]),
        labels=np.array(["cat", "dog", "cat"]),
        vectors=np.stack([vector_of(Encoder.load(folder), photo) for photo in SEEDED]).astype(np.float16),
    )
    digest = sha256((folder / "gallery.npz").read_bytes()).hexdigest()
    seeded = replace(manifest, gallery_seed={"file": "gallery.npz", "sha256": digest, "rows": 3})
    seeded.write(folder)
    return seeded


def vector_of(encoder: Encoder, photo: bytes) -> np.ndarray:
    """(D,) float32: what the encoder itself gives."""
    return encoder.embed(decode(photo, encoder.manifest.preprocess)[None]).vectors[0]


def assert_refused(answer: httpx.Response, status: int, *words: str) -> None:
    """An error answer as every route gives it: status outside and inside, and a reason that has `words`."""
    body = answer.json()
    assert answer.status_code == status == body["status"], body
    assert answer.headers["content-type"] == "application/json"
    for word in words:
        assert word in body["error"]


def samples(metrics: str) -> dict[str, float]:
    """The text of /metrics as values by name and labels, these sorted."""
    lines = (line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    return {_in_order(name): float(value) for name, value in lines}


def _in_order(name: str) -> str:
    """A sample's name with its labels sorted."""
    family, brace, labels = name.partition("{")
    return family + brace + (",".join(sorted(labels[:-1].split(","))) + "}" if brace else "")


def talk(front: Front, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run `scenario` with a client that is wired straight to the application."""

    async def run() -> None:
        transport = httpx.ASGITransport(build_app(front))
        async with httpx.AsyncClient(transport=transport, base_url="http://akin") as client:
            await scenario(client)

    try:
        asyncio.run(run())
    finally:
        front.admission.close()


def front_with(service: Service | None, capacity: int = 8, access: Access | None = None) -> Front:
    """What the application shares, in this process. capacity 0: there is no worker, and every request is refused."""
    admission, models = Admission(min(1, capacity), capacity), Models("encoder")
    metrics = Metrics(admission, models)
    if service is not None:
        service.observe = metrics.observer(service.encoder.manifest.model_id, service.encoder.provider)
        models.put("encoder", service)
    return Front(models, admission, metrics, access or Access())


def connect(server: Server) -> socket.socket:
    """A bare connection, for what no HTTP library would send."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def post_head(*headers: str) -> bytes:
    """The head of a prediction request."""
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "host: akin", *headers, "", ""]).encode()
