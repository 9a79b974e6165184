"""Measure the fronts against the least that their work costs: where README's numbers come from.

    make bench        # or: .venv-full/bin/python -m load_tests.bench --fronts native --rounds 5 --seconds 3

Reads model_store/, starts each front as its make target does, on a free port with a new gallery, loads it with wrk
on the same cores, and writes var/bench.json. Every round visits every front, and takes the floor anew beside each,
so that noise hits all alike. Linux only: memory and CPU are read from /proc.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encoder.manifest import Manifest, ManifestError
from images.sources import SourceError
from load_tests import encodings, machine, overload, report, server, wrk
from load_tests.arguments import at_least_one
from load_tests.encodings import ENCODINGS
from load_tests.floor import Floor, measure_with
from load_tests.fronts import FRONTS, ROOT, Model, NativeOptions, native
from load_tests.photos import Photo, camera_photo, small_photo
from load_tests.visit import Extras, OneConnection, Visit, rows_of
from load_tests.wrk import Load

ERRORS = (ManifestError, SourceError, server.ServerError, wrk.LoadError, OSError)
NEIGHBORS = 5
ASK_FOR_NEIGHBORS = (("akin-k", str(NEIGHBORS)),)  # TorchServe drops a query
NATIVE = "native"  # the front with rows of its own
SLICE_SECONDS = 1  # of each encoding, before the next one's turn
WARM_UP_CONNECTIONS = 8


@dataclass(frozen=True)
class Settings:
    """The knobs of the benchmark."""

    fronts: tuple[str, ...] = ("native", "torchserve", "torchserve-torch")
    rounds: int = 5
    seconds: int = 3  # of load, for each quantity of each front in each round
    warm_up: int = 8  # seconds; TorchServe's Java gains a quarter of its throughput as it compiles itself
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
        named = f"which of {', '.join(FRONTS)} (default: {' '.join(cls.fronts)})"
        add("--fronts", nargs="+", choices=FRONTS, default=cls.fronts, metavar="FRONT", help=named)
        add("--rounds", type=at_least_one, default=cls.rounds, help="how often everything is measured" + shown)
        add("--seconds", type=at_least_one, default=cls.seconds, help="of load for each quantity" + shown)
        add("--warm-up", type=at_least_one, default=cls.warm_up, help="seconds before, for each front" + shown)
        add("--model-store", type=Path, default=cls.model_store, help="folder of the artifacts" + shown)
        add("--name", default=cls.name, help="the model: NAME.json in the model store" + shown)
        add("--images", type=Path, help="whose first image is sent (default: STL-10 if there, else generated)")
        add("--environment", type=Path, default=cls.environment, help="of native and floor (default: .venv)")
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        add("--markdown", type=Path, help="where a table for a README goes (default: nowhere)")
        chosen = vars(parser.parse_args(argv))
        return cls(**chosen | {"fronts": tuple(dict.fromkeys(chosen["fronts"]))})  # each once


@dataclass(frozen=True)
class Bench:
    """What stays the same in all rounds."""

    settings: Settings
    model: Model
    manifest: Manifest
    small: Path  # a JPEG file
    camera: Path
    options: NativeOptions
    variants: Mapping[str, Sequence[str]]  # of the native front, by name: the arguments to start it with

    def visit(self, front: str, folder: Path) -> Visit:
        """Start a front in `folder`, which is empty, twice; load it after the second start."""
        with self._started(front, folder) as first:
            self._check_answers(first)
        with self._started(front, folder) as served:
            url = f"{served.url}{self._path}"
            wrk.post(url, self.small, WARM_UP_CONNECTIONS, self.settings.warm_up)
            visit = Visit(
                floor=self._floor(self.small),
                one=self._load(url, self.small, connections=1),
                one_with_neighbors=self._load(url, self.small, connections=1, headers=ASK_FOR_NEIGHBORS),
                eight=self._load(url, self.small, connections=8),
                thirty_two=self._load(url, self.small, connections=32),
                first_start_s=first.ready_s,
                later_start_s=served.ready_s,
                memory=served.memory(),
            )
            if front != NATIVE:
                return visit
            camera, answers = self._one(url, self.camera), self._encodings(served)
            borne = overload.measure(
                served.port, self._path, self.small.read_bytes(), self.settings.seconds, self.options.max_wait_ms
            )
        return replace(visit, extras=Extras(camera, answers, self._variants(folder), borne))

    def _started(self, front: str, folder: Path) -> AbstractContextManager[server.Server]:
        """With the floor's number of threads for a request, wherever that can be said."""
        if front == NATIVE:
            return native(self.model, folder, self.options.idle_threads(1) or ())
        return FRONTS[front](self.model, folder)

    @property
    def _path(self) -> str:
        return f"/predictions/{self.settings.name}"

    def _check_answers(self, served: server.Server) -> None:
        """A quick answer without its content would be no achievement."""
        answer = served.post(self._path, self.small.read_bytes(), ASK_FOR_NEIGHBORS)
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

    def _encodings(self, served: server.Server) -> dict[str, list[Load]]:
        encodings.check(served, self._path, self.small.read_bytes())
        loads: dict[str, list[Load]] = {name: [] for name in ENCODINGS}
        for number in range(self.settings.seconds):
            # To and fro, so that a machine that slows down on the way hits all alike.
            for name, each in list(ENCODINGS.items())[:: -1 if number % 2 else 1]:
                url = f"{served.url}{self._path}{each.query}"
                loads[name].append(wrk.post(url, self.small, 1, SLICE_SECONDS, each.headers))
        return loads

    def _variants(self, folder: Path) -> dict[str, OneConnection]:
        taken = {}
        for name, options in self.variants.items():
            with native(self.model, folder, options) as served:
                url = f"{served.url}{self._path}"
                wrk.post(url, self.small, WARM_UP_CONNECTIONS, SLICE_SECONDS)
                taken[name] = self._one(url, self.small)
        return taken

    def _one(self, url: str, photo: Path) -> OneConnection:
        return OneConnection(self._floor(photo), self._load(url, photo, connections=1))

    def _floor(self, photo: Path) -> Floor:
        return measure_with(self.model.python, self.model.store, self.model.name, photo, self.settings.seconds)

    def _load(self, url: str, photo: Path, connections: int, headers: Sequence[tuple[str, str]] = ()) -> Load:
        return wrk.post(url, photo, connections, self.settings.seconds, headers)


def run(settings: Settings) -> int:
    """Measure, print, write. Returns the exit code: 0 also where a target is missed."""
    wrk.find_wrk()
    model = Model(settings.model_store, settings.name, settings.environment)
    described = machine.describe(model.python)
    manifest = Manifest.read(model.store, model.name)
    small, camera = small_photo(settings.images), camera_photo()
    about = described | _about(settings, manifest, small, camera)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    options = NativeOptions.of(model.python)
    visits: dict[str, list[Visit]] = {front: [] for front in settings.fronts}
    # Beside the result, as galleries lie on disk: /tmp is often memory, where a first start costs less.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.out.parent) as work:
        files = Path(work) / "small.jpg", Path(work) / "camera.jpg"
        bench = Bench(settings, model, manifest, *files, options, _variants(options, described["versions"]))
        bench.small.write_bytes(small.data)
        bench.camera.write_bytes(camera.data)
        for number in range(1, settings.rounds + 1):
            for front in settings.fronts:
                folder = Path(work) / f"{front}-{number}"
                folder.mkdir()
                visits[front].append(bench.visit(front, folder))
            print(f"round {number} of {settings.rounds}", file=sys.stderr, flush=True)
    rows = [row for front in settings.fronts for row in rows_of(front, visits[front])]
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


def _variants(options: NativeOptions, versions: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """How else the native front is started; what its environment does not have is left out."""
    openvino = options.openvino if {"openvino", "onnxruntime-openvino"} & versions.keys() else None
    possible = {"idle cores used": options.idle_threads(2), "on OpenVINO": openvino}
    return {name: arguments for name, arguments in possible.items() if arguments is not None}


def _about(settings: Settings, manifest: Manifest, small: Photo, camera: Photo) -> dict[str, Any]:
    return {
        "wrk": wrk.version(),
        "model": manifest.model_id,
        "fronts": list(settings.fronts),
        "photo": small.description,
        "camera_photo": camera.description,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "warm_up": settings.warm_up,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the server ends with us
    sys.exit(main())
