"""Measure the fronts against the least that their work costs: where README's numbers come from.

    make bench        # or: .venv-full/bin/python -m load_tests.bench --fronts native --parts camera --rounds 5

Reads model_store/, starts each front by the command of its make target, on a free port with a new gallery, loads it
with wrk on the same cores, and writes var/bench.json. The native front gets one thread a request, as the floor has;
as it is by default it has rows of its own. Every round visits every front, and takes the floor anew beside each, so
that noise hits all alike. Linux only: memory and CPU are read from /proc.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from encoder.machine import cores
from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.settings import Settings as ServerSettings
from load_tests import encodings, machine, overload, report, server, wrk
from load_tests.arguments import add_model, at_least_one, exit_code, exit_with
from load_tests.encodings import ENCODINGS
from load_tests.floor import Floor, measure_at_once, measure_with
from load_tests.fronts import FRONTS, ONE_THREAD, ROOT, Model, Started, native, variants
from load_tests.photos import Photo, camera_photo, pillow_full, small_photo
from load_tests.visit import Camera, Connections, OneConnection, Variant, Visit, rows_of
from load_tests.wrk import Load

NEIGHBORS = 5
ASK_FOR_NEIGHBORS = (("akin-k", str(NEIGHBORS)),)  # TorchServe drops a query
NATIVE = "native"  # the front with parts of its own
PARTS = ("connections", "camera", "encodings", "variants", "overload")
NATIVE_WARM_UP_SECONDS = 2  # at most: nothing of it compiles itself
SLICE_SECONDS = 1  # of each encoding, before the next one's turn
WARM_UP_CONNECTIONS = 8


@dataclass(frozen=True)
class Settings:
    """The knobs of the benchmark."""

    fronts: tuple[str, ...] = ("native", "torchserve", "torchserve-torch")
    parts: tuple[str, ...] = PARTS  # but for "connections", of the native front alone
    rounds: int = 3
    seconds: int = 4  # of load, for each quantity of each front in each round
    warm_up: int = 8  # seconds, of TorchServe: its Java gains a quarter of its throughput as it compiles itself
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
        measured = f"which of {', '.join(PARTS)} (default: all)"
        add("--parts", nargs="+", choices=PARTS, default=cls.parts, metavar="PART", help=measured)
        add("--rounds", type=at_least_one, default=cls.rounds, help="how often everything is measured" + shown)
        add("--seconds", type=at_least_one, default=cls.seconds, help="of load for each quantity" + shown)
        add("--warm-up", type=at_least_one, default=cls.warm_up, help="seconds before, for TorchServe" + shown)
        add_model(parser)
        add("--images", type=Path, help="whose first image is sent (default: STL-10 if there, else generated)")
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        add("--markdown", type=Path, help="where a table for a README goes too (default: nowhere)")
        chosen = vars(parser.parse_args(argv))
        each_once = {name: tuple(dict.fromkeys(chosen[name])) for name in ("fronts", "parts")}
        return cls(**chosen | each_once)


@dataclass(frozen=True)
class Bench:
    """What stays the same in all rounds."""

    settings: Settings
    model: Model
    manifest: Manifest
    small: Path  # a JPEG file
    camera: Path
    whole: np.ndarray  # (D,) float32: the embedding of `camera` decoded in full
    variants: Mapping[str, Started]  # of the native front, by name

    def visit(self, front: str, folder: Path) -> Visit:
        """Start a front in `folder`, which is empty, twice; load it after the second start."""
        parts = {*self.settings.parts} & {*(PARTS if front == NATIVE else ("connections",))}
        with self._started(front, folder) as first:
            self._check_answers(first)
        with self._started(front, folder) as served:
            url = f"{served.url}{self._path}"
            wrk.post(url, self.small, WARM_UP_CONNECTIONS, self._warm_up(front))
            connections = self._connections(url) if "connections" in parts else None
            memory = served.memory()
            camera = self._camera(served) if "camera" in parts else None
            answers = self._encodings(served) if "encodings" in parts else {}
            borne = self._overload(served.port) if "overload" in parts else None
            peak_mb = served.memory().peak_mb
        others = self._variants(folder) if "variants" in parts else {}
        resident_mb = memory.resident_mb
        return Visit(first.ready_s, served.ready_s, resident_mb, peak_mb, connections, camera, answers, others, borne)

    def _started(self, front: str, folder: Path) -> AbstractContextManager[server.Server]:
        """With the floor's number of threads for a request, wherever that can be said."""
        if front == NATIVE:
            return native(self.model, folder, ONE_THREAD)
        return FRONTS[front](self.model, folder)

    def _warm_up(self, front: str) -> int:
        return min(self.settings.warm_up, NATIVE_WARM_UP_SECONDS) if front == NATIVE else self.settings.warm_up

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

    def _connections(self, url: str) -> Connections:
        return Connections(
            floor=self._floor(self.model, self.small),
            floors_per_s=self._floors_at_once(),
            one=self._load(url, self.small, connections=1),
            with_neighbors=self._one(self.model, url, self.small, ASK_FOR_NEIGHBORS),
            eight=self._load(url, self.small, connections=8),
            thirty_two=self._load(url, self.small, connections=32),
        )

    def _camera(self, served: server.Server) -> Camera:
        vector = np.array(served.post(self._path, self.camera.read_bytes())["embedding"])
        load = self._one(self.model, f"{served.url}{self._path}", self.camera)
        return Camera(load, cosine=float(vector @ self.whole))

    def _encodings(self, served: server.Server) -> dict[str, list[Load]]:
        encodings.check(served, self._path, self.small.read_bytes())
        loads: dict[str, list[Load]] = {name: [] for name in ENCODINGS}
        turn = list(ENCODINGS.items())
        for _ in range(max(self.settings.seconds, len(turn))):
            turn.append(turn.pop(0))  # each has every place: a machine that slows down on the way hits all alike
            for name, each in turn:
                url = f"{served.url}{self._path}{each.query}"
                loads[name].append(wrk.post(url, self.small, 1, SLICE_SECONDS, each.headers))
        return loads

    def _overload(self, port: int) -> overload.Overload:
        image, seconds = self.small.read_bytes(), self.settings.seconds
        return overload.measure(port, self._path, image, seconds, ServerSettings.max_wait_ms)

    def _variants(self, folder: Path) -> dict[str, Variant]:
        taken = {}
        for name, (model, options) in self.variants.items():
            with native(model, folder, options) as served:
                url = f"{served.url}{self._path}"
                wrk.post(url, self.small, WARM_UP_CONNECTIONS, SLICE_SECONDS)
                taken[name] = Variant(self._one(model, url, self.small), self._load(url, self.small, connections=8))
        return taken

    def _one(self, model: Model, url: str, photo: Path, headers: Sequence[tuple[str, str]] = ()) -> OneConnection:
        return OneConnection(self._floor(model, photo), self._load(url, photo, connections=1, headers=headers))

    def _floor(self, model: Model, photo: Path) -> Floor:
        return measure_with(model.python, model.store, model.name, photo, self.settings.seconds)

    def _floors_at_once(self) -> float:
        model, seconds = self.model, self.settings.seconds
        return measure_at_once(model.python, model.store, model.name, self.small, seconds, cores())

    def _load(self, url: str, photo: Path, connections: int, headers: Sequence[tuple[str, str]] = ()) -> Load:
        return wrk.post(url, photo, connections, self.settings.seconds, headers)


def run(settings: Settings) -> int:
    """Measure, print, write. Returns the exit code: 0 also where a target is missed."""
    wrk.find_wrk()
    model = Model(settings.model_store, settings.name, settings.environment)
    described = machine.describe(model.python)
    manifest = Manifest.read(model.store, model.name)
    small, camera = small_photo(settings.images), camera_photo()
    encoder = Encoder.load(model.store, model.name)
    (whole,) = encoder.embed(pillow_full(camera.data, manifest.preprocess)[None]).vectors
    others, absent = variants(model)
    if "variants" in settings.parts:
        _say(*absent)
    about = described | _about(settings, manifest, small, camera)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    visits: dict[str, list[Visit]] = {front: [] for front in settings.fronts}
    # Beside the result, as galleries lie on disk: /tmp is often memory, where a first start costs less.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.out.parent) as work:
        files = Path(work) / "small.jpg", Path(work) / "camera.jpg"
        bench = Bench(settings, model, manifest, *files, whole, others)
        bench.small.write_bytes(small.data)
        bench.camera.write_bytes(camera.data)
        for number in range(1, settings.rounds + 1):
            for front in settings.fronts:
                folder = Path(work) / f"{front}-{number}"
                folder.mkdir()
                visits[front].append(bench.visit(front, folder))
                _say(f"round {number} of {settings.rounds}: {front}")
    rows = [row for front in settings.fronts for row in rows_of(front, visits[front])]
    written = {**about, "rows": [row.to_json() for row in rows]}
    settings.out.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    caption = report.caption(about)
    if settings.markdown is not None:
        settings.markdown.write_text(report.markdown(rows, caption), encoding="utf-8")
    print(f"{report.table(rows)}\n\n{caption}\nwritten to {settings.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return exit_code("bench", lambda: run(Settings.from_arguments(argv)))


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _about(settings: Settings, manifest: Manifest, small: Photo, camera: Photo) -> dict[str, Any]:
    return {
        "wrk": wrk.version(),
        "model": manifest.model_id,
        "fronts": list(settings.fronts),
        "parts": list(settings.parts),
        "photo": small.description,
        "camera_photo": camera.description,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "warm_up": settings.warm_up,
    }


if __name__ == "__main__":
    exit_with(main)
