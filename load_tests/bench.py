"""Measure the native server against the least that its work costs: where README's numbers come from.

    make bench        # or: .venv-full/bin/python -m load_tests.bench --rounds 5 --seconds 3

Reads model_store/, starts `.venv/bin/akin serve` on a free port with a new gallery, loads it with wrk on the same
cores, and writes var/bench.json. Every round takes every quantity once, so that noise hits all alike.
Linux only: memory and CPU are read from /proc.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.manifest import Manifest, ManifestError
from images.sources import SourceError
from load_tests import machine, report, server, wrk
from load_tests.floor import ROOT, Floor, measure_with
from load_tests.photos import Photo, camera_photo, small_photo
from load_tests.report import Row, Target
from load_tests.wrk import Load

ERRORS = (ManifestError, SourceError, server.ServerError, wrk.LoadError, OSError)
NEIGHBORS = 5
WARM_UP_SECONDS, WARM_UP_CONNECTIONS = 1, 8


@dataclass(frozen=True)
class Settings:
    """The knobs of the benchmark."""

    rounds: int = 5
    seconds: int = 3  # of load, for each quantity in each round
    model_store: Path = Path("model_store")
    name: str = "encoder"
    images: Path | None = None
    environment: Path = ROOT / ".venv"
    out: Path = Path("var/bench.json")
    markdown: Path | None = None

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
        add = parser.add_argument
        shown = " (default: %(default)s)"
        add("--rounds", type=_at_least_one, default=cls.rounds, help="how often everything is measured" + shown)
        add("--seconds", type=_at_least_one, default=cls.seconds, help="of load a quantity and round" + shown)
        add("--model-store", type=Path, default=cls.model_store, help="folder of the artifacts" + shown)
        add("--name", default=cls.name, help="the model: NAME.json in the model store" + shown)
        add("--images", type=Path, help="whose first image is sent (default: STL-10 if there, else generated)")
        add("--environment", type=Path, default=cls.environment, help="what the server runs in (default: .venv)")
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        add("--markdown", type=Path, help="where a table for a README goes (default: nowhere)")
        return cls(**vars(parser.parse_args(argv)))


@dataclass(frozen=True)
class Round:
    """Everything, once."""

    floor: Floor
    one: Load  # one connection
    one_with_neighbors: Load
    eight: Load
    thirty_two: Load
    camera_floor: Floor
    camera: Load
    first_start_s: float  # with the gallery copied from its seed
    later_start_s: float
    memory_mb: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Bench:
    """What stays the same in all rounds."""

    settings: Settings
    manifest: Manifest
    small: Path  # a JPEG file
    camera: Path

    def take_round(self, folder: Path) -> Round:
        """Start a server in `folder`, which is empty, twice; load it after the second start."""
        with server.running(self._command(), folder) as first:
            self._check_answers(first)
        with server.running(self._command(), folder) as served:
            url = f"{served.url}{self._path}"
            wrk.post(url, self.small, WARM_UP_CONNECTIONS, WARM_UP_SECONDS)
            floor = self._floor(self.small)
            one = self._load(url, self.small, connections=1)
            with_neighbors = self._load(f"{url}?k={NEIGHBORS}", self.small, connections=1)
            eight = self._load(url, self.small, connections=8)
            thirty_two = self._load(url, self.small, connections=32)
            camera_floor = self._floor(self.camera)
            camera = self._load(url, self.camera, connections=1)
            memory_mb, peak_memory_mb = served.memory_mb()
        return Round(
            floor=floor,
            one=one,
            one_with_neighbors=with_neighbors,
            eight=eight,
            thirty_two=thirty_two,
            camera_floor=camera_floor,
            camera=camera,
            first_start_s=first.ready_s,
            later_start_s=served.ready_s,
            memory_mb=memory_mb,
            peak_memory_mb=peak_memory_mb,
        )

    @property
    def _path(self) -> str:
        return f"/predictions/{self.settings.name}"

    def _command(self) -> list[str]:
        """What the launcher `akin` executes."""
        chosen = self.settings
        akin = [str(_python(chosen)), str(ROOT / "akin.py")]
        return [*akin, "serve", "--model-store", str(chosen.model_store.resolve()), "--name", chosen.name]

    def _check_answers(self, served: server.Server) -> None:
        """A quick answer without its content would be no achievement."""
        answer = served.post(f"{self._path}?k={NEIGHBORS}", self.small.read_bytes())
        seed = self.manifest.gallery_seed
        expected = {
            "model": self.manifest.model_id,
            "embedding": self.manifest.dimension,
            "logits": len(self.manifest.class_names),
            "neighbors": min(NEIGHBORS, seed["rows"] if seed else 0),
        }
        found = {key: answer[key] if key == "model" else len(answer[key]) for key in expected}
        if found != expected:
            raise server.ServerError(f"the answer has {found}, the manifest says {expected}")

    def _floor(self, photo: Path) -> Floor:
        chosen = self.settings
        return measure_with(_python(chosen), chosen.model_store, chosen.name, photo, chosen.seconds)

    def _load(self, url: str, photo: Path, connections: int) -> Load:
        return wrk.post(url, photo, connections, self.settings.seconds)


def rows_of(rounds: Sequence[Round]) -> list[Row]:
    """The report's rows. Ratios are taken within each round."""

    def row(name: str, unit: str, of: Callable[[Round], float], target: Target | None = None) -> Row:
        return Row(name, unit, tuple(map(of, rounds)), target)

    return [
        row("floor: decode and session run, one thread, p50", "ms", lambda r: r.floor.p50_ms),
        row("floor: throughput", "images/s", lambda r: r.floor.images_per_s),
        row("1 connection, p50", "ms", lambda r: r.one.p50_ms),
        row("1 connection, p50 to the floor's", "×", lambda r: r.one.p50_ms / r.floor.p50_ms, Target("≤", 1.7)),
        row("1 connection, p99", "ms", lambda r: r.one.p99_ms),
        row("1 connection, k=5, p50", "ms", lambda r: r.one_with_neighbors.p50_ms),
        row("1 connection, k=5, p50 to the floor's", "×", lambda r: r.one_with_neighbors.p50_ms / r.floor.p50_ms),
        row("1 connection, k=5, p99", "ms", lambda r: r.one_with_neighbors.p99_ms),
        row("8 connections, throughput", "images/s", lambda r: r.eight.requests_per_s),
        row(
            "8 connections, throughput to the floor's",
            "×",
            lambda r: r.eight.requests_per_s / r.floor.images_per_s,
            Target("≥", 1.4),
        ),
        row("8 connections, p99", "ms", lambda r: r.eight.p99_ms),
        row("32 connections, throughput", "images/s", lambda r: r.thirty_two.requests_per_s),
        row(
            "32 connections, throughput to the floor's",
            "×",
            lambda r: r.thirty_two.requests_per_s / r.floor.images_per_s,
        ),
        row("32 connections, p99", "ms", lambda r: r.thirty_two.p99_ms),
        row("floor: 12-megapixel photo, p50", "ms", lambda r: r.camera_floor.p50_ms),
        row("12-megapixel photo, 1 connection, p50", "ms", lambda r: r.camera.p50_ms),
        row(
            "12-megapixel photo, p50 to its floor's",
            "×",
            lambda r: r.camera.p50_ms / r.camera_floor.p50_ms,
            Target("≤", 1.5),
        ),
        row("first start to ready, gallery seeded", "s", lambda r: r.first_start_s, Target("≤", 3.0)),
        row("later start to ready", "s", lambda r: r.later_start_s, Target("≤", 3.0)),
        row("memory after load, gallery open", "MB", lambda r: r.memory_mb, Target("≤", 350.0)),
        row("memory at its peak", "MB", lambda r: r.peak_memory_mb),
    ]


def run(settings: Settings) -> int:
    """Measure, print, write. Returns the exit code: 0 also where a target is missed."""
    wrk.find_wrk()
    if not _python(settings).exists():
        raise server.ServerError(f"{settings.environment} is not an environment to serve from; run make setup")
    manifest = Manifest.read(settings.model_store, settings.name)
    described = machine.describe(_python(settings))
    small, camera = small_photo(settings.images), camera_photo()
    about = described | _about(settings, manifest, small, camera)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result, as galleries lie on disk: /tmp is often memory, where a first start costs less.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.out.parent) as work:
        bench = Bench(settings, manifest, Path(work) / "small.jpg", Path(work) / "camera.jpg")
        bench.small.write_bytes(small.data)
        bench.camera.write_bytes(camera.data)
        rounds = []
        for number in range(1, settings.rounds + 1):
            folder = Path(work) / f"round-{number}"
            folder.mkdir()
            rounds.append(bench.take_round(folder))
            print(f"round {number} of {settings.rounds}", file=sys.stderr, flush=True)
    rows = rows_of(rounds)
    settings.out.write_text(
        json.dumps({**about, "rows": [row.to_json() for row in rows]}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    caption = report.caption(about)
    if settings.markdown is not None:
        settings.markdown.write_text(report.markdown(rows, caption), encoding="utf-8")
    print(f"{report.table(rows)}\n\n{caption}\nwritten to {settings.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    try:
        return run(Settings.from_arguments(argv))
    except ERRORS as error:
        print(f"bench: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _about(settings: Settings, manifest: Manifest, small: Photo, camera: Photo) -> dict[str, Any]:
    return {
        "wrk": wrk.version(),
        "model": manifest.model_id,
        "photo": small.description,
        "camera_photo": camera.description,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
    }


def _python(settings: Settings) -> Path:
    # Not resolved: an environment's interpreter is a link, and finds its packages by where the link lies.
    return settings.environment.absolute() / "bin/python"


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the server ends with us
    sys.exit(main())
