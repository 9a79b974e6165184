"""The native front: predictions on a plain ASGI path, everything else on FastAPI, one process, no torch.

    python -m handlers.native --port 8080        # or: akin serve
    curl -T photo.jpg 'http://127.0.0.1:8080/predictions/encoder?k=5'

Reads model_store/ (never writes there) and the live gallery in var/, which it seeds at first start.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
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
from images.sources import SourceError, open_source
from index.build import add_images
from index.errors import GalleryError
from index.gallery import Gallery
from index.seed import seed_gallery

log = logging.getLogger("akin")

# What a user can put right; anything else is our mistake and gets its traceback.
STARTUP_ERRORS = (ManifestError, ArtifactError, GoldenMismatch, SourceError, GalleryError, OSError)
DEFAULT_GALLERY = Path("var/gallery")
DRAIN_SECONDS = 10  # how long Ctrl-C waits for requests under way


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """The knobs of the server."""

    model_store: Path = Path("model_store")
    name: str = "encoder"
    gallery: Path | None = None  # None: the default one, or that of `images`
    images: Path | None = None  # embedded into a gallery of its own before serving
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    threads: int = cores()
    queue: int = 128  # requests that may wait for a worker
    require_provider: str | None = None  # the execution provider that must run the model; None: the fastest there is

    @property
    def gallery_folder(self) -> Path:
        """Where the gallery lies; every source of images has one of its own."""
        if self.gallery is not None or self.images is None:
            return self.gallery or DEFAULT_GALLERY
        source = self.images.resolve()
        return Path("var/galleries") / f"{source.name}-{sha256(str(source).encode()).hexdigest()[:8]}"

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
        add("--gallery", type=Path, help=f"folder of the gallery (default: {DEFAULT_GALLERY}, seeded)")
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
        listener = socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        return _fail(f"cannot listen on {address} ({error.strerror}); choose another --port")

    port = listener.getsockname()[1]
    admission = Admission(settings.threads, settings.queue)
    front = Front(settings.name, admission, Metrics(lambda: admission.depth))
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
            _announce(settings, front.service, port)
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
    if front.service is not None and front.service.gallery is not None:
        front.service.gallery.close()
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
    gallery = _open_gallery(settings, encoder)
    # FAISS and its BLAS take 30 ms to wake at their first search; nobody's request shall wait for that.
    gallery.search(encoder.embed(golden_batch(manifest.golden, manifest.preprocess.size)).vectors, 1)
    metrics.serving(manifest.model_id, encoder.provider)
    return Service(encoder, gallery, metrics.observe)


def _open_gallery(settings: Settings, encoder: Encoder) -> Gallery:
    """The default gallery, seeded where it is new, or the one of `settings.images`, brought up to date."""
    manifest, folder = encoder.manifest, settings.gallery_folder
    source = open_source(settings.images) if settings.images is not None else None
    if folder == DEFAULT_GALLERY:
        seed_gallery(settings.model_store, manifest, folder)
    gallery = Gallery.open(folder, manifest.model_digest, manifest.dimension)
    if source is not None:
        print(f"embedding what is new in {settings.images}", flush=True)
        print(add_images(gallery, encoder, source, settings.threads), flush=True)
        if not gallery.count:
            raise GalleryError(f"no image in {settings.images} could be added; name a folder of images")
    return gallery


def _announce(settings: Settings, service: Service, port: int) -> None:
    encoder = service.encoder
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    url = f"http://{host}:{port}"
    rows = service.gallery.count if service.gallery else 0
    print(
        f"akin serves {encoder.manifest.model_id} at {url}\n"
        f"  encoder  {encoder.artifact.precision} ({encoder.artifact.quantization}) on {encoder.provider},"
        f" {len(encoder.manifest.golden)} golden vectors agree\n"
        f"  gallery  {rows} images in {settings.gallery_folder}\n"
        f"  workers  {settings.threads} threads, at most {settings.queue} requests waiting\n"
        f"  try      curl -T photo.jpg '{url}{PREFIX}{settings.name}?k=5'\n"
        f"  read     {url}/docs   stop with Ctrl-C",
        flush=True,
    )


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
