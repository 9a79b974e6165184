"""Labelled splits as an encoder sees them, the official folds of STL-10, and what a data set is called."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from images import cifar10, stl10
from images.decode import ImageError
from images.sources import decoded, open_source
from images.spec import PreprocessSpec

FOLDS_FILE = "fold_indices.txt"


class Split(NamedTuple):
    """A labelled split as the encoder sees it."""

    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) int64, from 0

    def rows(self, rows: np.ndarray) -> "Split":
        return Split(self.images[rows], self.labels[rows])


def read_split(data: Path, split: str, size: int) -> Split:
    """`train` or `test`. Pixels come from images.decode, as in the server, so both see the same bytes."""
    rows = list(decoded(open_source(data, split), PreprocessSpec(size=size), on_error=refuse))
    labels = [row.label for row in rows if row.label is not None]
    if not rows or len(labels) < len(rows):
        raise SystemExit(
            f"{data}: {len(rows) - len(labels)} of {len(rows)} {split} images have no label; zip files need "
            "class_names.txt beside them and names like 00042.7.webp"
        )
    return Split(np.stack([row.pixels for row in rows]), np.array(labels))


def refuse(name: str, error: ImageError) -> None:
    raise SystemExit(f"{name} of the evaluation set cannot be read: {error}; replace the data")


def data_name(data: Path) -> str:
    """What results say they were measured on: STL-10, CIFAR-10, or the folder's name."""
    if stl10.find(data) or (data / "stl10-train.zip").exists():
        return "STL-10"
    return "CIFAR-10" if cifar10.find(data) else data.resolve().name


def official_folds(data: Path, labels: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each fold of the train split with `labels` (N,); none where no folds are given.

    STL-10's fold_indices.txt has a line of 1,000 numbers for each of ten folds. It lies with the binaries or, where
    there are zip files, beside them.
    """
    places = (folder / FOLDS_FILE for folder in (data, stl10.find(data)) if folder)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return []
    try:
        folds = [np.array(line.split(), np.int64) for line in file.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise SystemExit(f"{file} is no list of row numbers ({error}); fetch it again, or remove it") from error
    for number, fold in enumerate(folds):
        if fold.min() < 0 or fold.max() >= len(labels) or len(np.unique(fold)) < len(fold):
            raise SystemExit(
                f"{file}: fold {number} does not name different rows of {len(labels)} train images, it goes from "
                f"{fold.min()} to {fold.max()}; fetch it again, or remove it"
            )
        if missing := sorted({*labels.tolist()} - {*labels[fold].tolist()}):
            raise SystemExit(
                f"{file}: fold {number} has no image of class {missing[0]}; fetch it again, or remove it"
            )
    return folds
