"""Which images are trained on, and where they are kept: in one uint8 tensor on the device where they fit, so that no
step waits for decoding, else in a file of pixels (training/stream.py).

Images of different sides share the tensor: each stands in the top left corner of its square, and its side is kept
beside it. Labels, where a source has them, are not read.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from images import cifar10, parquet, stl10
from images.decode import ImageError
from images.folders import is_single, parts
from images.sources import Source, SourceError, decoded, open_parts, open_source
from images.spec import PreprocessSpec
from training.augment import Augmentation, Randomness, view
from training.distributed import agreed, neighbors, rank

NAMED = 20  # unreadable files; the others are only counted
CHUNK = 2**26  # bytes of pixels that wait to be moved to where they are kept
ABOUT_IMAGES = {".txt", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html"}


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


class Chunk(NamedTuple):
    """Some images in a row, as they are kept."""

    canvas: np.ndarray  # (n, 3, S, S) uint8
    side: np.ndarray  # (n,) int64


def views(pixels: Pixels, wanted: Sequence[Augmentation], random: Randomness) -> tuple[Tensor, ...]:
    """A random view of every image for each wanted augmentation: (B, 3, size, size) float32 in [0, 1].

    Equal augmentations are drawn in one call on the repeated batch, as if it were one batch that much larger.
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
    damaged: share of the images that may be unreadable. memory: share of the device's free memory that the pixels may
    fill. cache: the folder for them where they do not fit; each process of several reads the file that the first
    one writes.
    """
    try:
        sources = [source for path in paths for source in unlabeled(Path(path))]
        largest = max((side_of_squares(source, store) or store for source in sources), default=store)
        count = sum(count_of(source, limit) for source in sources)
        count = min(count, limit or count)
        chunks = read(sources, store, limit, largest, damaged, ", ".join(paths))
        needed, free = 3 * largest**2 * count, free_memory(device)
        if agreed(needed <= memory * free):
            return in_memory(device, chunks, count, largest)
        if cache is None:
            raise ValueError(f"{needed / 1e9:.1f} GB of pixels exceed the memory allowed, and no cache is named")
        say(
            f"{needed / 1e9:.1f} GB of pixels are more than {memory:.0%} of the {free / 1e9:.1f} GB that are free on "
            f"{device}: they are read from {cache} (--memory sets the share)"
        )
        from training.stream import StreamedPool  # which is a Pool, and so imports this module

        return StreamedPool.kept_in(cache, chunks, largest, needed, fingerprint(paths, store, limit), device)
    except SourceError as error:
        raise SystemExit(str(error)) from error


def in_memory(device: torch.device, chunks: Iterable[Chunk], count: int, largest: int) -> Pool:
    """At most `count` images, moved to the device a chunk at a time, so that nothing is held twice."""
    canvas = torch.zeros((count, 3, largest, largest), dtype=torch.uint8, device=device)
    sides: list[np.ndarray] = []
    kept = 0
    for chunk in chunks:
        canvas[kept : kept + len(chunk.side)] = torch.from_numpy(chunk.canvas)
        sides.append(chunk.side)
        kept += len(chunk.side)
    return Pool(canvas[:kept], torch.from_numpy(np.concatenate(sides)).to(device))


def read(
    sources: Iterable[Source], store: int, limit: int, largest: int, damaged: float, origin: str
) -> Iterator[Chunk]:
    """The images of all sources, decoded on all cores; at the end, what could not be read is judged."""
    damage = Damage()
    images = islice(chain.from_iterable(squares(source, store, damage) for source in sources), limit or None)
    kept = 0
    while batch := list(islice(images, max(1, CHUNK // (3 * largest**2)))):
        canvas = np.zeros((len(batch), 3, largest, largest), np.uint8)
        for row, image in enumerate(batch):
            canvas[row, :, : len(image), : len(image)] = image.transpose(2, 0, 1)
        kept += len(batch)
        yield Chunk(canvas, np.array([len(image) for image in batch]))
    damage.judge(kept, damaged, origin)


class Damage:
    """Files that could not be read: the first are named, all are counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, error: ImageError) -> None:
        self.count += 1
        if self.count <= NAMED:
            say(f"left out {name}: {error}")

    def judge(self, kept: int, allowed: float, origin: str) -> None:
        """Stop where nothing was kept of `origin`, or more than the allowed share could not be read."""
        if self.count > NAMED:
            say(f"left out {self.count - NAMED} more")
        if self.count:
            say(f"{self.count} files left out, {kept} images kept")
        if not kept:
            raise SystemExit(f"no image could be read from {origin}")
        share = self.count / (self.count + kept)
        if share > allowed:
            raise SystemExit(
                f"{self.count} of {self.count + kept} files cannot be read: {share:.1%}, where {allowed:.1%} are "
                "allowed; mend or remove them, or allow a larger share with --damaged"
            )


def unlabeled(path: Path) -> Iterator[Source]:
    """The sources to pretrain on, never a test split, which is named instead. Of STL-10 and CIFAR-10 these are the
    unlabeled and the train split, of any other folder its images and archives; texts among them are passed over."""
    if not path.is_dir():
        if not is_test_split(path, path.parent):
            yield open_source(path)
        return
    found = (part for part in parts(path) if not is_about_images(part) and not is_test_split(part, path))
    for whole, group in groupby(found, key=lambda part: None if is_single(part) else part):
        if whole is not None and whole.is_dir():
            yield from unlabeled_splits(whole)
        else:
            yield open_parts(path, group)


def unlabeled_splits(folder: Path) -> Iterator[Source]:
    """Of STL-10's or CIFAR-10's folder."""
    there = {split for split in stl10.SPLITS if (folder / f"{split}_X.bin").exists()} | {*cifar10.splits(folder)}
    if "test" in there:
        say(f"left out the test split in {folder}: it is for the final number alone")
    for split in ("unlabeled", "train"):
        if split in there:
            yield open_source(folder, split)


def is_test_split(part: Path, folder: Path) -> bool:
    """Whether an archive below a folder holds a test split, by its name; then it is said."""
    found = part.name == "stl10-test.zip" or parquet.in_split(part.relative_to(folder), "test")
    if found:
        say(f"left out {part}: a test split is for the final number alone")
    return found


def is_about_images(part: Path) -> bool:
    return part.suffix.lower() in ABOUT_IMAGES or part.name in ("README", "LICENSE")


def side_of_squares(source: Source, store: int) -> int | None:
    """The side of a source's images where they are arrays of squares that fit, which are kept as they are."""
    first = next(iter(source), None)
    if first is None or not isinstance(first.data, np.ndarray):
        return None
    height, width, _ = first.data.shape
    return height if height == width <= store else None


def squares(source: Source, store: int, on_error: Callable[[str, ImageError], None]) -> Iterator[np.ndarray]:
    """(s, s, 3) uint8 images, s at most `store`. What cannot be decoded goes to `on_error(id, error)`."""
    if side_of_squares(source, store) is None:
        yield from (pixels for _, pixels, _ in decoded(source, PreprocessSpec(size=store), on_error))
    else:
        yield from (item.data for item in source if isinstance(item.data, np.ndarray))


def count_of(source: Source, limit: int) -> int:
    """How many images a source holds, damaged ones among them. A tar does not say: it is read once more, as far as
    the limit."""
    return sum(1 for _ in islice(source, limit or None)) if source.count is None else source.count


def free_memory(device: torch.device) -> int:
    """Bytes that this process may take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # Linux's; elsewhere all that there is counts as free
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.exists():
        entries = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(entries["MemAvailable"].split()[0])
    return free // neighbors()


def fingerprint(paths: Sequence[str], store: int, limit: int) -> str:
    """sha256 of what decides the pixels: names, sizes and times of the files, and how they are kept."""
    found = chain.from_iterable(parts(Path(path)) for path in paths)
    files = chain.from_iterable(sorted(part.iterdir()) if part.is_dir() else [part] for part in found)
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([store, limit, stamps]).encode()).hexdigest()


def say(line: str) -> None:
    """Print it, once where there are several processes."""
    if rank() == 0:
        print(line, flush=True)
