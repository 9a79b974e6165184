"""STL-10's official binaries: column-major uint8 images of 96 x 96, labels from 1 to 10.

torchvision's reader refuses a folder without the unlabeled split, and reads everything into memory;
here a folder may hold any of the splits, and images are mapped.
"""

from pathlib import Path

import numpy as np

SIZE = 96
SPLITS = ("train", "test", "unlabeled")
CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def find(path: Path) -> Path | None:
    """The folder with the binaries: `path` or its `stl10_binary`, as torchvision lays it out."""
    for folder in (path, path / "stl10_binary"):
        if any((folder / f"{split}_X.bin").exists() for split in SPLITS):
            return folder
    return None


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Images (N, 96, 96, 3) uint8, mapped, and labels (N,) int64 from 0 to 9; None for `unlabeled`."""
    if split not in SPLITS:
        raise ValueError(f"STL-10 has no split {split!r}, only {', '.join(SPLITS)}")
    binary = folder / f"{split}_X.bin"
    if not binary.exists():
        raise FileNotFoundError(
            f"{binary} is not there; torchvision.datasets.STL10(download=True) fetches it, "
            "or choose another split"
        )
    if binary.stat().st_size == 0 or binary.stat().st_size % (3 * SIZE * SIZE):
        raise ValueError(
            f"{binary} has {binary.stat().st_size} bytes, not a multiple of one image; fetch it again"
        )
    images = np.memmap(binary, np.uint8, "r").reshape(-1, 3, SIZE, SIZE).transpose(0, 3, 2, 1)
    if split == "unlabeled":
        return images, None
    labels = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        raise ValueError(
            f"{folder / f'{split}_y.bin'} does not label {len(images)} images from 1 to 10; fetch it again"
        )
    return images, labels
