"""A process that writes to a gallery until it is killed, and tells of every write that was acknowledged.

    python -m tests.gallery_writer FOLDER SEED FIRST [step]      # prints the number of each finished change

With `step` it waits for a line on standard input before each change, and ends with the input.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from index.gallery import Gallery
from index.vectors import unit_rows

DIGEST = "c" * 64
DIMENSION = 32


class Change(NamedTuple):
    """One call of `add`, or of `remove` where there are no vectors."""

    ids: list[str]
    vectors: np.ndarray | None  # (N, DIMENSION) float32 of unit length
    label: str


def changes(seed: int) -> Iterator[Change]:
    """The same endless series for the same seed: adds of 1 to 300 rows, replacements, removals."""
    random = np.random.default_rng(seed)
    while True:
        count = int(random.choice([1, 3, 40, 300]))
        ids = [f"{number:04d}" for number in random.choice(2000, count, replace=False)]
        vectors = unit_rows(random.standard_normal((count, DIMENSION)), DIMENSION)
        yield Change(ids, None if random.random() < 0.3 else vectors, f"{random.integers(10**9)}")


def apply(gallery: Gallery, change: Change) -> None:
    if change.vectors is None:
        gallery.remove(change.ids)
    else:
        gallery.add(change.ids, change.vectors, [change.label] * len(change.ids))


def main() -> None:
    folder, seed, first, *step = sys.argv[1:]
    with Gallery.open(Path(folder), DIGEST, DIMENSION) as gallery:
        for number, change in islice(enumerate(changes(int(seed))), int(first), None):
            if step and not sys.stdin.readline():
                break
            apply(gallery, change)
            print(number, flush=True)


if __name__ == "__main__":
    main()
