"""TorchServe in the foreground, as `make torchserve` runs it.

    akin archive && akin torchserve --port 8080 --workers 2
    curl -T photo.jpg -H 'akin-k: 5' http://127.0.0.1:8080/predictions/encoder

Reads   var/encoder.mar, and the gallery in var/gallery, which a first start seeds
Listens PORT predictions, +1 management, +2 metrics, +3 and +4 the first two over gRPC
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder.golden import GoldenMismatch
from encoder.manifest import Manifest, ManifestError
from handlers.torchserve.listen import PORTS, ListenError, is_loopback, reserve
from handlers.torchserve.process import HERE, StartError, TorchServe
from handlers.torchserve.readiness import wait_until_right

STARTUP_ERRORS = (ListenError, ManifestError, StartError, GoldenMismatch, OSError)
LOOPBACK = "127.0.0.1"
DEATH_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """The knobs of the server."""

    archive: Path = Path("var/encoder.mar")
    gallery: Path = Path("var/gallery")
    host: str = LOOPBACK  # of predictions; everything else stays on loopback
    port: int = 8080  # 0: any free ones
    workers: int = 2
    queue: int = 128  # requests that may wait for a worker
    token_auth: bool = False

    @property
    def tokens(self) -> bool:
        """Whether requests need a token: where others can reach the port they do."""
        return self.token_auth or not is_loopback(self.host)

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(
            prog="akin torchserve", description="Serve the archive with TorchServe, in the foreground."
        )
        add = parser.add_argument
        shown = " (default: %(default)s)"
        add("--archive", type=Path, default=cls.archive, help="what `akin archive` wrote" + shown)
        add("--gallery", type=Path, default=cls.gallery, help="folder of the gallery" + shown)
        add("--host", default=cls.host, help="address for predictions" + shown)
        add("--port", type=int, default=cls.port, help="first of five; 0 takes free ones" + shown)
        add("--workers", type=int, default=cls.workers, help="processes" + shown)
        add("--queue", type=int, default=cls.queue, help="requests that may wait" + shown)
        add("--token-auth", action="store_true", help="ask for a token (always, beyond loopback)")
        chosen = parser.parse_args(argv)
        for name, low, high in (("port", 0, 65536 - PORTS), ("workers", 1, 256), ("queue", 1, 100_000)):
            if not low <= getattr(chosen, name) <= high:
                parser.error(f"--{name} {getattr(chosen, name)} is not within {low} to {high}")
        return cls(**vars(chosen))


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit code."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        manifest = archived_manifest(settings.archive)
        port = reserve(settings.host, settings.port)
        # Not in var/: the workers' sockets lie there, and a socket's path has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="akin-") as folder:
            return _serve(settings, manifest, port, Path(folder), stopped)
    except STARTUP_ERRORS as error:
        print(f"akin: {error}", file=sys.stderr, flush=True)
        return 1


def _serve(settings: Settings, manifest: Manifest, port: int, folder: Path, stopped: threading.Event) -> int:
    server = TorchServe(settings.archive, folder, environment(settings, port))
    keys = folder / "key_file.json" if settings.tokens else None
    probed = settings.host if settings.host != "0.0.0.0" else LOOPBACK
    try:
        if not wait_until_right(server, manifest, (probed, port), lambda: bearer(keys), stopped):
            return 0
        server.forward_output()
        print(announcement(settings, manifest, f"http://{probed}:{port}", port, keys), flush=True)
        while not stopped.wait(DEATH_POLL_SECONDS):
            server.check()
        return 0
    finally:
        server.end()


def environment(settings: Settings, port: int) -> dict[str, str]:
    """What config.properties and the workers read."""
    return {
        "AKIN_INFERENCE": f"{settings.host}:{port}",
        "AKIN_MANAGEMENT": f"{LOOPBACK}:{port + 1}",
        "AKIN_METRICS": f"{LOOPBACK}:{port + 2}",
        "AKIN_GRPC_INFERENCE_PORT": str(port + 3),
        "AKIN_GRPC_MANAGEMENT_PORT": str(port + 4),
        "AKIN_WITHOUT_TOKENS": str(not settings.tokens).lower(),
        "AKIN_WORKERS": str(settings.workers),
        "AKIN_QUEUE": str(settings.queue),
        "AKIN_METRICS_CONFIG": str(HERE / "metrics.yaml"),
        "AKIN_GALLERY": str(settings.gallery.resolve()),
        "OMP_NUM_THREADS": "1",  # workers that each take every core get in each other's way
    }


def archived_manifest(archive: Path) -> Manifest:
    """The manifest inside the archive."""
    try:
        with zipfile.ZipFile(archive) as members:
            return Manifest.from_json(json.loads(members.read("model_store/encoder.json")))
    except FileNotFoundError as error:
        raise StartError(f"no archive at {archive}; make it with `akin archive`") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise StartError(f"{archive} is not an archive of akin's ({error}); run `akin archive` again") from error


def bearer(keys: Path | None) -> dict[str, str]:
    """The header that a prediction needs; none before TorchServe has written all of its keys."""
    if keys is None:
        return {}
    try:
        return {"authorization": f"Bearer {json.loads(keys.read_bytes())['inference']['key']}"}
    except (FileNotFoundError, ValueError):
        return {}


def announcement(settings: Settings, manifest: Manifest, url: str, port: int, keys: Path | None) -> str:
    """The block that says where everything is."""
    metrics, management = f"http://{LOOPBACK}:{port + 2}/metrics", f"http://{LOOPBACK}:{port + 1}"
    lines = [
        f"akin serves {manifest.model_id} with TorchServe at {url}",
        f"  gallery  {settings.gallery}",
        f"  workers  {settings.workers} processes, at most {settings.queue} requests waiting",
        f"  metrics  {metrics}   management {management}",
    ]
    token = ""
    if keys is not None:
        token = "-H 'authorization: Bearer KEY' "
        lines += [
            f"  tokens   KEY is inference.key in {keys}, for 60 minutes; the next one:",
            f"           curl -H 'authorization: Bearer API.KEY' '{management}/token?type=inference'",
        ]
    lines += [
        f"  try      curl -T photo.jpg -H 'akin-k: 5' {token}{url}/predictions/encoder",
        "  stop     Ctrl-C",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return serve(Settings.from_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
