"""Images that no device's memory holds: decoded once into a file of pixels beside the run, from which a DataLoader's
workers read every batch ahead of time. Augmentation stays on the device.

pixels.u8     (N, 3, S, S) uint8, as the canvas of a pool in memory
pixels.json   what it was made of, its shape, and the images' sides; written last, so that it vouches for pixels.u8
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encoder.machine import cores
from training.data import Chunk, Pixels, Pool, say
from training.distributed import neighbors, rank, world

WORKERS = 4  # processes that read, at most
AHEAD = 3  # batches of each worker that are under way: two it has prefetched, and one that is being moved
PATIENCE = timedelta(days=7)  # of the processes that wait for the first to decode


class StreamedPool(Pool):
    """The pixels that a folder holds; the same face, and the same bytes, as those of a pool in memory."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        story = read_story(folder)
        sides, runs = zip(*story["side"], strict=True)
        self.side = torch.from_numpy(np.repeat(np.array(sides), runs))
        self.images = ImagesOnDisk(folder / "pixels.u8", self.side, story["largest"])
        self.on = device

    @classmethod
    def kept_in(
        cls, folder: Path, chunks: Iterable[Chunk], largest: int, size: int, origin: str, device: torch.device
    ) -> "StreamedPool":
        """The pixels that `folder` holds; where they are of another origin or not whole, `chunks` are written first.

        largest: side of the canvas; size: bytes to expect at most; origin: `fingerprint` of the sources.
        """
        waiting = dist.new_group(backend="gloo", timeout=PATIENCE) if world() > 1 else None  # before the long work
        if rank() == 0:
            if is_whole(folder, origin):
                say(f"{folder / 'pixels.u8'} is whole: nothing is decoded")
            else:
                write(folder, chunks, largest, size, origin)
        if isinstance(waiting, dist.ProcessGroup):
            dist.barrier(waiting)
            dist.destroy_process_group(waiting)
        return cls(folder, device)

    @property
    def device(self) -> torch.device:
        return self.on

    def pixels(self, rows: Tensor) -> Pixels:
        return self.moved(self.images[rows.cpu().numpy()])

    def batches(self, orders: Iterator[Tensor]) -> Iterator[Pixels]:
        first = next(orders, None)
        if first is None:
            return
        loader = DataLoader(
            self.images,
            batch_size=None,  # an order is a batch
            sampler=(rows.numpy() for rows in chain([first], orders)),
            num_workers=workers(len(first) * self.images.size),
            pin_memory=self.on.type == "cuda",
            generator=torch.Generator(),  # its own: a model that draws numbers draws the same as from memory
        )
        yield from map(self.moved, loader)

    def moved(self, pixels: Pixels) -> Pixels:
        return Pixels(*(tensor.to(self.on, non_blocking=True) for tensor in pixels))


class ImagesOnDisk(Dataset[Pixels]):
    """Batches of rows of the file, on the CPU. It is mapped where it is read: a mapping is not sent to workers."""

    def __init__(self, file: Path, side: Tensor, largest: int) -> None:
        self.file, self.side = file, side
        self.shape = (len(side), 3, largest, largest)
        self.size = 3 * largest**2  # bytes of an image

    def __getitem__(self, rows: np.ndarray) -> Pixels:
        """rows: (B,) int64."""
        canvas = np.memmap(self.file, np.uint8, "r", shape=self.shape)
        numbers = torch.from_numpy(rows)
        return Pixels(torch.from_numpy(np.take(canvas, rows, axis=0)), self.side[numbers], numbers)


def write(folder: Path, chunks: Iterable[Chunk], largest: int, size: int, origin: str) -> None:
    """Write both files so that a kill at any moment leaves them whole, or no pixels.json."""
    file, story = folder / "pixels.u8", folder / "pixels.json"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (story, file):
        stale.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SystemExit(
            f"{size / 1e9:.1f} GB of pixels do not fit on the disk of {folder}, where {free / 1e9:.1f} GB are free; "
            "name an --out elsewhere, or lower --store or --limit"
        )
    sides: list[int] = []

    def pixels() -> Iterator[memoryview]:
        for chunk in chunks:
            sides.extend(chunk.side.tolist())
            yield chunk.canvas.data

    write_whole(file, pixels())
    runs = [(side, len(list(run))) for side, run in groupby(sides)]
    text = json.dumps({"origin": origin, "count": len(sides), "largest": largest, "side": runs})
    write_whole(story, [text.encode()])


def write_whole(file: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that is there as a whole or not at all."""
    fresh = file.with_name(f"{file.name}.part")
    try:
        with fresh.open("wb") as opened:
            for piece in pieces:
                opened.write(piece)
            opened.flush()
            os.fsync(opened.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def read_story(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pixels.json").read_text())


def is_whole(folder: Path, origin: str) -> bool:
    """Whether the folder holds all pixels of this origin."""
    try:
        story = read_story(folder)
        size = story["count"] * 3 * story["largest"] ** 2
        return story["origin"] == origin and (folder / "pixels.u8").stat().st_size == size
    except (OSError, ValueError, KeyError):
        return False


def workers(batch: int) -> int:
    """Processes to read batches of so many bytes: no more than there are cores, and than shared memory has room for,
    of which a container may have little; with 0 the training process reads by itself."""
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else AHEAD * batch * WORKERS
    return min(WORKERS, cores() // neighbors(), room // neighbors() // (AHEAD * batch))
