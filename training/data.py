"""All training images in one uint8 tensor on the device, so that no step waits for decoding.

Images of different sides share the tensor: each stands in the top left corner of its square, and its side is kept
beside it. Labels, where a source has them, are not read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from images import stl10
from images.decode import ImageError
from images.sources import Source, decoded, open_source
from images.spec import PreprocessSpec
from training.augment import Augmentation, Randomness, view


class Pixels(NamedTuple):
    """A batch of images as they are kept, on the device: what views are drawn from."""

    canvas: Tensor  # (B, 3, S, S) uint8, image b in its top left side[b] × side[b] pixels
    side: Tensor  # (B,) int64
    rows: Tensor  # (B,) int64, the images' numbers in the pool


class Pool:
    """Images in the device's memory.

    canvas: (N, 3, S, S) uint8; side: (N,) int64, image n fills canvas[n, :, :side[n], :side[n]]; on one device.
    """

    def __init__(self, canvas: Tensor, side: Tensor) -> None:
        self.canvas, self.side = canvas, side

    def __len__(self) -> int:
        return len(self.side)

    @property
    def device(self) -> torch.device:
        return self.canvas.device

    def pixels(self, rows: Tensor) -> Pixels:
        """rows: (B,) int64."""
        rows = rows.to(self.device, non_blocking=True)
        return Pixels(self.canvas[rows], self.side[rows], rows)

    def batches(self, orders: Iterator[Tensor]) -> Iterator[Pixels]:
        """A batch for every order of rows, (B,) int64 on the CPU."""
        return map(self.pixels, orders)


def views(pixels: Pixels, wanted: Sequence[Augmentation], random: Randomness) -> tuple[Tensor, ...]:
    """A random view of every image for each wanted augmentation: (B, 3, size, size) float32 in [0, 1].

    Equal augmentations are drawn in one call, so that two views cost little more than one of a batch twice as large.
    """
    drawn: dict[Augmentation, Iterator[Tensor]] = {}
    for aug, count in Counter(wanted).items():
        canvas, side = pixels.canvas.repeat(count, 1, 1, 1), pixels.side.repeat(count)
        drawn[aug] = iter(view(canvas, side, aug, random).chunk(count))
    return tuple(next(drawn[aug]) for aug in wanted)


def load_pool(
    paths: Sequence[str],
    store: int,
    device: torch.device,
    limit: int = 0,
    damaged: float = 0.1,
    memory: float = 0.5,
    cache: Path | None = None,
) -> Pool:
    """The images of all paths in order, the first `limit` of them unless that is 0.

    store: largest side kept. Encoded images are brought to it; arrays of smaller squares stay as they are.
    """
    left_out = 0

    def name_damaged(name: str, error: ImageError) -> None:
        nonlocal left_out
        left_out += 1
        print(f"left out {name}: {error}", flush=True)

    sources = (source for path in paths for source in unlabeled(Path(path)))
    images = chain.from_iterable(squares(source, store, name_damaged) for source in sources)
    kept = list(islice(images, limit or None))
    if left_out:
        print(f"{left_out} files left out, {len(kept)} images kept", flush=True)
    if not kept:
        raise SystemExit(f"no image could be read from {', '.join(paths)}")
    side = torch.tensor([len(image) for image in kept])
    largest = int(side.max())
    canvas = torch.zeros((len(kept), 3, largest, largest), dtype=torch.uint8)
    pixels = canvas.numpy()  # shares memory; numpy also reads images that are mapped read-only
    for row, image in enumerate(kept):
        pixels[row, :, : len(image), : len(image)] = image.transpose(2, 0, 1)
    return Pool(canvas.to(device), side.to(device))


def unlabeled(path: Path) -> Iterator[Source]:
    """The sources to pretrain on: of STL-10 its unlabeled split where it is there, and train; never test."""
    folder = stl10.find(path) if path.is_dir() else None
    if folder is None:
        yield open_source(path)
        return
    for split in ("unlabeled", "train"):
        if (folder / f"{split}_X.bin").exists():
            yield open_source(folder, split)


def squares(source: Source, store: int, on_error: Callable[[str, ImageError], None]) -> Iterator[np.ndarray]:
    """(s, s, 3) uint8 images, s at most `store`. What cannot be decoded goes to `on_error(id, error)`."""
    first = next(iter(source), None)
    if first is not None and isinstance(first.data, np.ndarray):
        height, width, _ = first.data.shape
        if height == width <= store:
            yield from (item.data for item in source if isinstance(item.data, np.ndarray))
            return
    yield from (pixels for _, pixels, _ in decoded(source, PreprocessSpec(size=store), on_error))
