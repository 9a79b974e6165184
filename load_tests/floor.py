"""The floor: the least that an image costs on this machine. Decode and session run, one thread, no HTTP.

    .venv/bin/python -m load_tests.floor photo.jpg --seconds 3      # prints one line of JSON

Run by the interpreter that serves natively, so that the floor and that server have the same libraries.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from encoder.session import Encoder
from images.decode import decode

ROOT = Path(__file__).parents[1]
WARM_UP = 5  # images; the first ones grow buffers


@dataclass(frozen=True)
class Floor:
    """One image after the other, in one thread."""

    p50_ms: float
    images_per_s: float


def measure(encoder: Encoder, image: bytes, seconds: float) -> Floor:
    """Embed `image` from its bytes for that long, after a warm-up."""
    for _ in range(WARM_UP):
        _embed(encoder, image)
    latencies_s = []
    started = now = perf_counter()
    while now - started < seconds:
        _embed(encoder, image)
        latencies_s.append(perf_counter() - now)
        now += latencies_s[-1]
    return Floor(p50_ms=median(latencies_s) * 1e3, images_per_s=len(latencies_s) / (now - started))


def measure_with(python: Path, model_store: Path, name: str, image: Path, seconds: float) -> Floor:
    """`measure` in a process of its own, run by the interpreter `python`."""
    options = ["--model-store", str(model_store.resolve()), "--name", name, "--seconds", str(seconds)]
    done = subprocess.run(
        [str(python), "-m", __name__, str(image.resolve()), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Floor(**json.loads(done.stdout))


def measure_at_once(python: Path, model_store: Path, name: str, image: Path, seconds: float, cores: int) -> float:
    """Images per second of `cores` such processes at once: what the cores have to give, caches and memory shared."""
    alone = partial(measure_with, python, model_store, name, image, seconds)
    with ThreadPoolExecutor(cores) as processes:
        return sum(each.result().images_per_s for each in [processes.submit(alone) for _ in range(cores)])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--model-store", type=Path, default=Path("model_store"))
    parser.add_argument("--name", default="encoder")
    parser.add_argument("--seconds", type=float, default=3.0)
    chosen = parser.parse_args()
    encoder = Encoder.load(chosen.model_store, chosen.name, threads=1)
    print(json.dumps(asdict(measure(encoder, chosen.image.read_bytes(), chosen.seconds))))
    return 0


def _embed(encoder: Encoder, image: bytes) -> None:
    encoder.embed(decode(image, encoder.manifest.preprocess)[None])


if __name__ == "__main__":
    sys.exit(main())
