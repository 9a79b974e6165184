"""CIFAR-10's official files: uint8 images of 32 x 32 as planes, row by row, labels from 0 to 9.

Both official versions are read: the binary one, and the one pickled by Python 2, which torchvision downloads. Its
pickles are read by an unpickler that admits what those files need and refuses everything else by name.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 32
SPLITS = ("train", "test")
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
PIXELS = 3 * SIZE * SIZE
SUFFIXES = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}  # the folder as it is unpacked: of its files


def find(path: Path) -> Path | None:
    """The folder with the batches: `path`, or the one of its children that the official archive unpacks to."""
    for folder in (path, *(path / name for name in SUFFIXES)):
        if splits(folder):
            return folder
    return None


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of which `folder` holds a batch."""
    return tuple(split for split in SPLITS if any(_file(folder, batch) is not None for batch in BATCHES[split]))


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64 from 0 to 9, in official order."""
    if split not in SPLITS:
        raise ValueError(f"CIFAR-10 has no split {split!r}, only {', '.join(SPLITS)}")
    images, labels = [], []
    for batch in BATCHES[split]:
        file = _file(folder, batch)
        if file is None:
            raise FileNotFoundError(
                f"{folder / batch} is not there, with .bin or without; "
                "torchvision.datasets.CIFAR10(download=True) fetches it, or choose another split"
            )
        planes, classes = _binary(file) if file.suffix == ".bin" else _pickled(file)
        if len(classes) != len(planes) or not all(0 <= label < len(CLASS_NAMES) for label in classes):
            raise ValueError(f"{file} does not label {len(planes)} images from 0 to 9; fetch it again")
        images.append(planes)
        labels.append(np.asarray(classes, np.int64))
    planes = np.concatenate(images).reshape(-1, 3, SIZE, SIZE)
    return planes.transpose(0, 2, 3, 1), np.concatenate(labels)


def _file(folder: Path, batch: str) -> Path | None:
    return next((file for suffix in SUFFIXES.values() if (file := folder / (batch + suffix)).is_file()), None)


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) and (N,) uint8 of records that are a label followed by the red, green and blue plane."""
    if file.stat().st_size == 0 or file.stat().st_size % (1 + PIXELS):
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, not a multiple of one record's {1 + PIXELS}; fetch it again"
        )
    records = np.fromfile(file, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _pickled(file: Path) -> tuple[np.ndarray, list[int]]:
    """(N, 3072) uint8 and N labels of a pickled batch."""
    try:
        with file.open("rb") as opened:
            batch = _Unpickler(opened, encoding="bytes").load()
        return batch[b"data"].rows, [int(label) for label in batch[b"labels"]]
    except Refused as error:
        raise ValueError(f"{file} {error}") from error
    except Exception as error:  # a damaged pickle ends in any of a dozen kinds
        raise ValueError(
            f"{file} is no whole batch of CIFAR-10: {error or type(error).__name__}; fetch it again"
        ) from error


class Refused(Exception):
    """A pickle that asks for more than a batch of CIFAR-10 needs."""


class _Kind:
    """Stands for numpy's `dtype` and `ndarray`. Theirs, called as a pickle pleases, can read any memory."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, of which one byte has none."""


class _Array:
    """Stands for an array as it is made, whose state follows."""

    def __init__(self, *arguments: Any) -> None:
        self.rows = np.empty((0, PIXELS), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if kind.arguments[0] != b"u1" or len(shape) != 2 or shape[1] != PIXELS:
            raise ValueError(f"its array is {kind.arguments[0]} of shape {shape}, not u1 of shape (N, {PIXELS})")
        self.rows = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise Refused(f"asks for {module}.{name}, which no batch of CIFAR-10 needs; fetch the official archive")
        return ADMITTED[module, name]


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Kind,
}
