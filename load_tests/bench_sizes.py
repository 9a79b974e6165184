"""The accuracy-latency curve: each encoder at each image size, what it knows against what it costs in int8.

    .venv-full/bin/python -m load_tests.bench_sizes --data data --sizes 48 56 64 72 80 96 \
        --weights model_store/encoder.safetensors runs/NAME/checkpoint.pt random:standard

Reads   encoders (an export's .safetensors, a run's checkpoint.pt; `random:standard` and `random:small` for the
        latency of a stem alone) and STL-10's train split
Writes  var/sizes.json, and the curve as var/sizes.png

Every graph is made as `akin export` makes it, with the same calibration images. The time is that of one image in one
thread, session run alone; the rounds visit all graphs in turn, so that noise hits all alike. Accuracy is judged on
the int8 vectors inside the train labels: five-fold linear probe and leave-one-out 20-NN. Nothing here sees the test
split.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
from torch import nn

from encoder.session import open_session, run
from export.__main__ import held_out_and_calibration, outputs
from export.graph import Served, fold_batch_norm
from export.quantize import CALIBRATORS, quantize
from export.to_onnx import to_onnx
from export.weights import half_precision
from images.stl10 import CLASS_NAMES
from load_tests import machine
from load_tests.arguments import at_least_one
from load_tests.curve import Candidate, Latency, Point, draw, markdown, reference, to_json
from load_tests.gmac import gmac
from training import probe
from training.backbone import FEATURES, Backbone, Stem
from training.checkpoint import load_backbone
from training.labelled import Split, read_split
from training.provenance import described

RANDOM = "random:"
CALIBRATION = 300  # train images, as in export
WARM_UP = 5  # runs of a graph at each visit, which finds the caches full of others


@dataclass(frozen=True)
class Settings:
    """The knobs of the benchmark."""

    weights: tuple[str, ...] = ("model_store/encoder.safetensors",)
    data: Path = Path("data")
    sizes: tuple[int, ...] = (48, 56, 64, 72, 80, 96)
    rounds: int = 5
    runs: int = 60  # images a graph and round
    calibrator: str = "minmax"  # as of export
    out: Path = Path("var/sizes.json")
    plot: Path = Path("var/sizes.png")

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(prog="bench_sizes", description=__doc__.partition("\n")[0])
        add, shown = parser.add_argument, " (default: %(default)s)"
        several: Any = {"nargs": "+", "action": "extend"}  # `--weights A B` and `--weights A --weights B` alike
        add("--weights", type=_weights, **several, help=f"or random:STEM (default: {' '.join(cls.weights)})")
        add("--data", type=Path, default=cls.data, help="a folder with STL-10" + shown)
        sizes = " ".join(map(str, cls.sizes))
        add("--sizes", type=at_least_one, **several, help=f"sides in pixels (default: {sizes})")
        add("--rounds", type=at_least_one, default=cls.rounds, help="visits of each graph" + shown)
        add("--runs", type=at_least_one, default=cls.runs, help="images at each visit" + shown)
        add("--calibrator", choices=sorted(CALIBRATORS), default=cls.calibrator, help="as of export" + shown)
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        add("--plot", type=Path, default=cls.plot, help="where the picture goes" + shown)
        chosen: dict[str, Any] = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
        chosen |= {name: tuple(dict.fromkeys(chosen[name])) for name in ("weights", "sizes") if name in chosen}
        return cls(**chosen)


def candidates(settings: Settings, folder: Path) -> Iterator[tuple[Candidate, Path, np.ndarray]]:
    """Each encoder at each size, its int8 graph in `folder`, and an image (1, size, size, 3) uint8 for it."""
    names = names_of(settings.weights)
    for size in settings.sizes:
        split = read_split(settings.data, "train", size)
        _, calibration = held_out_and_calibration(len(split.images), CALIBRATION)
        for number, weights in enumerate(settings.weights):
            int8 = folder / f"{number}-{size}.onnx"
            backbone = loaded(weights)
            work = gmac(backbone.eval(), size)
            write_int8(backbone, size, split.images[calibration], settings.calibrator, int8)
            known = {} if weights.startswith(RANDOM) else accuracy(int8, split)
            served = size == served_size(weights)
            yield Candidate(names[weights], backbone.stem, size, work, **known, served=served), int8, split.images[:1]


def names_of(weights: Sequence[str]) -> dict[str, str]:
    """Short names: that of the folder a file lies in, or the whole path where that would name two."""
    folders = {each: Path(each).parent.name for each in weights}
    counts = Counter(folders.values())
    return {each: folder if folder and counts[folder] == 1 else each for each, folder in folders.items()}


def served_size(weights: str) -> int | None:
    """The size that the manifest beside exported weights serves."""
    manifest = described(Path(weights)) if weights.endswith(".safetensors") else None
    return manifest.preprocess.size if manifest else None


def loaded(weights: str) -> Backbone:
    if weights.startswith(RANDOM):
        return load_backbone("random", weights.removeprefix(RANDOM))
    return load_backbone(weights)


def write_int8(backbone: Backbone, size: int, calibration: np.ndarray, calibrator: str, int8: Path) -> None:
    """The graph as export makes it, `backbone` being changed. calibration: (N, size, size, 3) uint8."""
    served = Served(fold_batch_norm(half_precision(backbone)), nn.Linear(FEATURES, len(CLASS_NAMES)))
    fp32 = int8.with_suffix(".fp32.onnx")
    to_onnx(served, size, fp32)
    quantize(fp32, int8, calibration, calibrator=calibrator)
    fp32.unlink()


def accuracy(int8: Path, split: Split) -> dict[str, float]:
    """Percent, by the artifact's own vectors, inside the labels of `split`."""
    vectors = outputs(int8, split.images).vectors
    return {
        "linear": round(probe.fit_probe(vectors, split.labels).cross_validated, 2),
        "knn20": round(probe.neighbor_accuracy(vectors, split.labels, None, split.labels), 2),
    }


def latencies(graphs: Sequence[tuple[Path, np.ndarray]], rounds: int, runs: int) -> list[Latency]:
    """How long each graph takes for its image, in one thread; all are visited in turn, and a first round of visits
    is not counted."""
    calls = [partial(run, open_session(graph), image) for graph, image in graphs]
    taken = [[visit(call, runs) for call in calls] for _ in range(1 + rounds)][1:]
    p50, p90 = (np.percentile(taken, percent, axis=2).T.tolist() for percent in (50, 90))
    return [Latency(tuple(middle), tuple(late)) for middle, late in zip(p50, p90, strict=True)]


def visit(call: Callable[[], object], runs: int) -> np.ndarray:
    """(runs,) float64: milliseconds of each call, after a warm-up."""
    for _ in range(WARM_UP):
        call()
    marks = [perf_counter()]
    for _ in range(runs):
        call()
        marks.append(perf_counter())
    return np.diff(marks) * 1e3


def measure(settings: Settings) -> int:
    about = machine.describe(Path(sys.executable))
    found, graphs = [], []
    for file in (settings.out, settings.plot):
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sizes-", dir=settings.out.parent) as folder:
        for candidate, graph, image in candidates(settings, Path(folder)):
            print(f"{candidate.encoder} at {candidate.size}", file=sys.stderr, flush=True)
            found.append(candidate)
            graphs.append((graph, image))
        taken = latencies(graphs, settings.rounds, settings.runs)
    points = [Point(*pair) for pair in zip(found, taken, strict=True)]
    rows, base = to_json(points), reference(points).what
    about |= {"rounds": settings.rounds, "runs": settings.runs, "calibrator": settings.calibrator}
    about |= {"reference": f"{base.encoder} at {base.size}"}
    settings.out.write_text(json.dumps({**about, "rows": rows}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{markdown(rows)}\n\n{caption(about)}\nwritten to {settings.out}")
    if any(candidate.linear is not None for candidate in found):
        where = f"{about['cpu']}, commit {about['commit']}, {about['date'][:10]}"
        draw(points, f"int8 ResNet-18 on STL-10, inside the train labels; {where}", settings.plot)
        print(f"drawn in {settings.plot}")
    return 0


def caption(about: dict[str, Any]) -> str:
    """One line: what was measured, where, when."""
    return (
        f"int8 (U8S8) on ONNX Runtime, one image, one thread of {about['cpu']} "
        f"({', '.join(about['instruction_sets']) or 'no int8 instructions known'}), load average "
        f"{about['load_average']:g} before; medians of {about['rounds']} rounds of {about['runs']} images; × is the "
        f"ratio to {about['reference']} within a round. Accuracy of the int8 vectors inside STL-10's train labels. "
        f"Commit {about['commit']}, {about['date'][:10]}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return measure(Settings.from_arguments(argv))


def _weights(text: str) -> str:
    stems = [f"{RANDOM}{stem}" for stem in get_args(Stem)]
    if text.startswith(RANDOM) and text not in stems:
        raise argparse.ArgumentTypeError(f"{text} is not there; there are {' and '.join(stems)}")
    return text


if __name__ == "__main__":
    sys.exit(main())
