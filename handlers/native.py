"""The native front: predictions on a plain ASGI path, everything else on FastAPI, one process, no torch.

    python -m handlers.native --port 8080        # or: akin serve
    curl -T photo.jpg 'http://127.0.0.1:8080/predictions/encoder?k=5'
    curl -T photo.jpg 'http://127.0.0.1:8080/index/cats/1.jpg?label=cat'

Reads model_store/ (never writes there) and the live gallery in var/, which it seeds at first start.
"""

import argparse
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from encoder.golden import GoldenMismatch, golden_batch
from encoder.manifest import ManifestError
from encoder.session import PROVIDERS, ArtifactError, Encoder
from handlers.admission import Admission
from handlers.app import build_app
from handlers.exchange import Front
from handlers.metrics import Metrics
from handlers.predictions import PREFIX
from handlers.service import Service
from handlers.tokens import VARIABLE, Access, TokenError, read_token
from images.sources import SourceError, open_source
from index.build import add_images
from index.errors import GalleryError, RowRefused
from index.face import Index
from index.gallery import cores
from index.open import DEFAULT_GALLERY, MILVUS, open_index, parse_bytes
from index.seed import seed_gallery
from index.thumbnails import Thumbnails

log = logging.getLogger("akin")

# What a user can put right; anything else is our mistake and gets its traceback.
STARTUP_ERRORS = (ManifestError, ArtifactError, GoldenMismatch, SourceError, GalleryError, TokenError, OSError)
WRITER_THREADS = 4  # rows are committed one transaction at a time; these wait for their turn and for the disk
DRAIN_SECONDS = 10  # how long Ctrl-C waits for requests under way


@dataclass(frozen=True)
class Settings:
    """The knobs of the server."""

    model_store: Path = Path("model_store")
    name: str = "encoder"
    gallery: Path | None = None  # None: the default one, or that of `images`
    index: str | None = None  # in place of `gallery`: a folder, or milvus://host:port
    images: Path | None = None  # embedded into a gallery of its own before serving
    ram: int | None = None  # bytes that the search of a large gallery may take; None: half of the machine's
    factory: str | None = None  # how a large gallery is searched, in FAISS's words; None: by size and memory
    thumbnails: bool = False  # kept of the images that are added
    token_file: Path | None = None  # what writes need; None: AKIN_TOKEN, or nothing
    open_writes: bool = False  # without a token, from other machines too
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    threads: int = cores()
    queue: int = 128  # requests that may wait for a worker
    require_provider: str | None = None  # the execution provider that must run the model; None: the fastest there is

    @property
    def where(self) -> str | Path:
        """Where the gallery lies, a folder or the address of a server; every source of images has one of its own."""
        if self.index is not None:
            return self.index if self.index.startswith(MILVUS) else Path(self.index)
        if self.gallery is not None or self.images is None:
            return self.gallery or DEFAULT_GALLERY
        source = self.images.resolve()
        return Path("var/galleries") / f"{source.name}-{sha256(str(source).encode()).hexdigest()[:8]}"

    @property
    def thumbnails_folder(self) -> Path:
        """Beside the gallery; where that is another machine's, below var/."""
        if isinstance(self.where, Path):
            return self.where
        return Path("var/thumbnails") / sha256(self.where.encode()).hexdigest()[:8]

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(
            prog="akin serve",
            description="Serve embeddings, logits, labels and neighbours over HTTP.",
        )
        add = parser.add_argument
        shown = " (default: %(default)s)"
        add("--model-store", type=Path, default=cls.model_store, help="folder of the artifacts" + shown)
        add("--name", default=cls.name, help="the model: NAME.json in the model store" + shown)
        add("--images", type=Path, help="search among these: folder, .zip, .tar.gz, .npy or STL-10")
        place = parser.add_mutually_exclusive_group()
        place.add_argument("--gallery", type=Path, help=f"folder of the gallery (default: {DEFAULT_GALLERY}, seeded)")
        place.add_argument("--index", metavar="WHERE", help="the gallery as a folder or milvus://host:port")
        add("--ram", type=_size, metavar="2GB", help="memory for the search of a large gallery (default: half)")
        add("--factory", help="how to search a large gallery, such as HNSW32,SQ8 (default: by size and memory)")
        add("--thumbnails", action="store_true", help="keep small pictures of the images that are added")
        add("--token-file", type=Path, help=f"file of the token that writes need (default: ${VARIABLE}, or none)")
        add("--open-writes", action="store_true", help="let other machines write without a token")
        add("--host", default=cls.host, help="address to listen on" + shown)
        add("--port", type=_whole(0, 65535), default=cls.port, help="0 takes a free one" + shown)
        add("--threads", type=_whole(1, 1024), default=cls.threads, help="worker threads" + shown)
        add("--queue", type=_whole(1, 100_000), default=cls.queue, help="requests that may wait" + shown)
        add("--require-provider", choices=PROVIDERS, metavar="NAME", help="do not fall back: " + ", ".join(PROVIDERS))
        return cls(**vars(parser.parse_args(argv)))


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM, then finish what is under way. Returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        token = read_token(settings.token_file)
    except TokenError as error:
        return _fail(str(error))
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        return _fail(f"cannot listen on {address} ({error.strerror}); choose another --port")

    address, port = listener.getsockname()[:2]
    access = Access(token, exposed=not (settings.open_writes or _is_loopback(address)))
    admission, writers = Admission(settings.threads, settings.queue), Admission(WRITER_THREADS, settings.queue)
    front = Front(settings.name, admission, Metrics(lambda: admission.depth), access=access, writers=writers)
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(front),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,  # longer than the 60 s of common proxies, so that they close first
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )
    failures: list[Exception] = []

    def bring_up() -> None:
        try:
            front.service = _load(settings, front.metrics)
            _announce(settings, front.service, access, port)
        except Exception as error:
            failures.append(error)
            server.should_exit = True

    # uvicorn has handlers of its own while it runs. These stand before, and after: it raises the signal that
    # ended it once more, which must not kill us then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    # Beside the event loop: /healthz and /readyz answer from the start, and Ctrl-C works while it loads.
    threading.Thread(target=bring_up, daemon=True).start()
    server.run(sockets=[listener])
    admission.close()
    writers.close()
    if front.service is not None:
        front.service.close()
    if failures:
        if not isinstance(failures[0], STARTUP_ERRORS):
            log.error("startup failed", exc_info=failures[0])
        return _fail(str(failures[0]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return serve(Settings.from_arguments(argv))


def _load(settings: Settings, metrics: Metrics) -> Service:
    """The encoder with its golden vectors passed, and the gallery to search."""
    encoder = Encoder.load(settings.model_store, settings.name, provider=settings.require_provider)
    manifest = encoder.manifest
    thumbnails = Thumbnails.open(settings.thumbnails_folder) if settings.thumbnails else None
    gallery = _open_gallery(settings, encoder, thumbnails)
    # FAISS and its BLAS take 30 ms to wake at their first search; nobody's request shall wait for that.
    gallery.search(encoder.embed(golden_batch(manifest.golden, manifest.preprocess.size)).vectors, 1)
    metrics.serving(manifest.model_id, encoder.provider, gallery)
    return Service(encoder, gallery, metrics.observe, thumbnails)


def _open_gallery(settings: Settings, encoder: Encoder, thumbnails: Thumbnails | None) -> Index:
    """The default gallery, seeded where it is new, or the one of `settings.images`, brought up to date."""
    manifest, where = encoder.manifest, settings.where
    source = open_source(settings.images) if settings.images is not None else None
    if where == DEFAULT_GALLERY:
        seed_gallery(settings.model_store, manifest, DEFAULT_GALLERY)
    gallery = open_index(where, manifest.model_digest, manifest.dimension, settings.ram, settings.factory)
    if source is not None:
        print(f"embedding what is new in {settings.images}", flush=True)
        print(add_images(gallery, encoder, source, settings.threads, thumbnails), flush=True)
        if not gallery.count:
            raise GalleryError(f"no image in {settings.images} could be added; name a folder of images")
    return gallery


def _announce(settings: Settings, service: Service, access: Access, port: int) -> None:
    encoder = service.encoder
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    url = f"http://{host}:{port}"
    rows = service.gallery.count if service.gallery else 0
    print(
        f"akin serves {encoder.manifest.model_id} at {url}\n"
        f"  encoder  {encoder.artifact.precision} ({encoder.artifact.quantization}) on {encoder.provider},"
        f" {len(encoder.manifest.golden)} golden vectors agree\n"
        f"  gallery  {rows} images in {settings.where}\n"
        f"  writes   {access}\n"
        f"  workers  {settings.threads} threads, at most {settings.queue} requests waiting\n"
        f"  try      curl -T photo.jpg '{url}{PREFIX}{settings.name}?k=5'\n"
        f"  read     {url}/docs   stop with Ctrl-C",
        flush=True,
    )


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _size(text: str) -> int:
    """An argparse type: an amount of memory."""
    try:
        return parse_bytes(text)
    except RowRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not within {low} to {high}")
        return number

    parse.__name__ = "whole number"  # what argparse calls it in "invalid ... value"
    return parse


def _fail(reason: str) -> int:
    print(f"akin: {reason}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
