"""torchvision's transforms, image by image: the way that training.augment's batches are measured against."""

import os
from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from training.augment import Augmentation, blur_radius

Transform = Callable[[Tensor], Tensor]
WORKERS = len(os.sched_getaffinity(0))
LOADED = 64  # images in a DataLoader's batch: a round ends evenly with many workers too
UNSEEN = 2  # batches of each worker before the clock starts: it has begun, and its queue runs as it will


def transforms(aug: Augmentation) -> Transform:
    """What `training.augment.view` does, for one image: (3, s, s) uint8 -> (3, size, size) float32 in [0, 1].

    SystemExit where the view has a step that is not compared."""
    if aug.rotate or aug.vertical_flip or aug.solarize:
        raise SystemExit("turns, vertical flips and solarization are not compared; leave those flags out")
    jitter = v2.ColorJitter(aug.brightness, aug.contrast, aug.saturation, aug.hue)
    blur = v2.GaussianBlur(2 * blur_radius(aug.size) + 1, aug.sigma)
    steps = [
        v2.RandomResizedCrop(aug.size, aug.scale, aug.ratio, antialias=True),
        v2.RandomHorizontalFlip(aug.flip),
        *([v2.RandomApply([jitter], aug.jitter)] if aug.jitter else []),
        *([v2.RandomGrayscale(aug.grayscale)] if aug.grayscale else []),
        *([v2.RandomApply([blur], aug.blur)] if aug.blur else []),
        v2.ToDtype(torch.float32, scale=True),
    ]
    chain: Transform = v2.Compose(steps)
    return chain


def one_by_one(images: Sequence[Tensor], transform: Transform, count: int) -> float:
    """Views a second in this process, stacked into batches. images: (3, s, s) uint8 each, taken in turn."""
    started = perf_counter()
    for first in range(0, count, LOADED):
        rows = range(first, min(first + LOADED, count))
        torch.stack([transform(images[row % len(images)]) for row in rows])
    return count / (perf_counter() - started)


def in_workers(images: Sequence[Tensor], transform: Transform, count: int, workers: int = WORKERS) -> float:
    """Views a second from a DataLoader once it runs: at least `count`, and four batches of each worker. Its workers
    begin and end here, so that they disturb nobody else."""
    timed = max(-(-count // LOADED), 4 * workers)
    endless = Endless(images, transform, (UNSEEN * workers + timed + 2 * workers) * LOADED)
    loader = iter(DataLoader(endless, batch_size=LOADED, num_workers=workers))
    for _ in islice(loader, UNSEEN * workers):
        pass
    started = perf_counter()
    seen = sum(len(batch) for batch in islice(loader, timed))
    return seen / (perf_counter() - started)


class Endless(Dataset[Tensor]):
    """`length` views of a few images, taken in turn."""

    def __init__(self, images: Sequence[Tensor], transform: Transform, length: int) -> None:
        self.images, self.transform, self.length = images, transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(self.images[row % len(self.images)])
