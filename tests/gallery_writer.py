"""A process that writes to a gallery until it is killed, and tells of every write that was acknowledged.

    python -m tests.gallery_writer FOLDER SEED FIRST [step]      # prints the number of each finished change

With `step` it waits for a line on standard input before each change, and ends with the input. With `--small` it
treats some hundred rows like a million: it is always building and writing snapshots. `--prefix` begins its ids.
"""

import argparse
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from index.gallery import Gallery
from index.vectors import unit_rows

REPOSITORY = Path(__file__).parents[1]
DIGEST = "c" * 64
DIMENSION = 32
FACTORY = "HNSW16,SQ8"
FLAT_BELOW = 200
# To put in the place of what is there, so that a gallery of some hundred rows builds and extends as a large one does.
# Building with one thread: several that wait for each other by spinning take seconds where all cores are busy.
SMALL = {
    "index.gallery.DELTA_LEAST": 50,
    "index.builder.BADLY_CODED_MOST": 0.05,
    "index.gallery.cores": lambda: 1,
}


class Change(NamedTuple):
    """One call of `add`, or of `remove` where there are no vectors."""

    ids: list[str]
    vectors: np.ndarray | None  # (N, DIMENSION) float32 of unit length
    label: str


def changes(seed: int, prefix: str = "") -> Iterator[Change]:
    """The same endless series for the same seed: adds of 1 to 300 rows, replacements, removals.

    No component of a vector is far beyond those of others: 8-bit codes made for some rows suit the next ones as well.
    """
    random = np.random.default_rng(seed)
    while True:
        count = int(random.choice([1, 3, 40, 300]))
        ids = [f"{prefix}{number:04d}" for number in random.choice(2000, count, replace=False)]
        vectors = unit_rows(random.uniform(-1, 1, (count, DIMENSION)), DIMENSION)
        yield Change(ids, None if random.random() < 0.3 else vectors, f"{random.integers(10**9)}")


def apply(gallery: Gallery, change: Change) -> None:
    if change.vectors is None:
        gallery.remove(change.ids)
    else:
        gallery.add(
            change.ids,
            change.vectors,
            [change.label] * len(change.ids),
            [metadata_of(change, place) for place in range(len(change.ids))],
            [content_of(change, place) for place in range(len(change.ids))],
        )


def metadata_of(change: Change, place: int) -> dict[str, object]:
    return {"of": len(change.ids), "place": place}


def content_of(change: Change, place: int) -> bytes:
    return hashlib.sha256(f"{change.label} {place}".encode()).digest()


def open_small(folder: Path) -> Gallery:
    """A gallery that counts as large from 200 rows on."""
    return Gallery.open(folder, DIGEST, DIMENSION, factory=FACTORY, flat_below=FLAT_BELOW)


class Writer:
    """Such a process, seen from the one that started it."""

    def __init__(self, folder: Path, seed: int, *options: str) -> None:
        command = [sys.executable, "-m", "tests.gallery_writer", str(folder), str(seed), "0", *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes)
        self._lines: list[str] = []

    def ask_for_a_write(self) -> None:
        """Where it was started with `step`."""
        print(file=self._process.stdin)

    def wait_for_a_write(self) -> None:
        """Until it has acknowledged one more."""
        self._lines.append(self._process.stdout.readline())

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> int:
        """How many changes it had acknowledged."""
        self._process.send_signal(signal.SIGKILL)
        self._lines += self._process.stdout.readlines()
        assert self._process.wait() == -signal.SIGKILL, "it ended by itself; its standard error says why"
        return sum(line.endswith("\n") for line in self._lines)  # the last one may be cut

    def end(self) -> None:
        """Where it was started with `step`: it closes the gallery."""
        self._process.stdin.close()
        assert self._process.wait() == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("step", nargs="?")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--prefix", default="")
    given = parser.parse_args()
    logging.getLogger("akin").addHandler(_EndsTheProcess())
    if given.small:
        for name, value in SMALL.items():
            module, _, constant = name.rpartition(".")
            setattr(sys.modules[module], constant, value)
    with open_small(given.folder) if given.small else Gallery.open(given.folder, DIGEST, DIMENSION) as gallery:
        if given.small:
            threading.Thread(target=_rebuild_now_and_then, args=(gallery, given.seed), daemon=True).start()
        for number, change in islice(enumerate(changes(given.seed, given.prefix)), given.first, None):
            if given.step and not sys.stdin.readline():
                break
            apply(gallery, change)
            print(number, flush=True)


class _EndsTheProcess(logging.Handler):
    """Whatever is logged here should not have happened; whoever started the process sees that it ended by itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)
        os._exit(3)


def _rebuild_now_and_then(gallery: Gallery, seed: int) -> None:
    """Beside the builds that the gallery starts of its own."""
    random = np.random.default_rng(seed)
    try:
        while True:
            time.sleep(random.uniform(0.02, 0.2))
            gallery.rebuild()
    except Exception:
        logging.getLogger("akin").exception("rebuild")


if __name__ == "__main__":
    main()
