"""Fill a gallery with images: decode and embed on all cores, add in batches, resume where it stopped."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from encoder.session import Encoder
from images.decode import ImageError
from images.sources import Decoded, Item, Source, decoded
from index.gallery import Gallery

T = TypeVar("T")

EMBED_BATCH = 32  # images a call of the encoder; more is no faster on a CPU
COMMIT_ROWS = 256  # rows a transaction; a killed run repeats at most this much and what was under way


@dataclass(frozen=True)
class Damaged:
    """An image that was skipped, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What became of the images of a source."""

    added: int
    already_there: int
    damaged: tuple[Damaged, ...]
    seconds: float

    def __str__(self) -> str:
        rate = self.added / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.added} images added in {self.seconds:.1f} s ({rate:.0f} a second), "
            f"{self.already_there} were already there, {len(self.damaged)} damaged and skipped"
        ]
        return "\n".join(lines + [f"  {image.id!r}: {image.reason}" for image in self.damaged])


class _Embedded(NamedTuple):
    id: str
    vector: np.ndarray  # (dimension,) float32 of unit length
    label: int | None


def add_images(gallery: Gallery, encoder: Encoder, source: Source, threads: int | None = None) -> Summary:
    """Embed the images of `source` whose id has no row yet, and add them.

    Shows a progress bar on a terminal. Stopped at any moment, it leaves what was committed, and the same
    call goes on from there.
    """
    started = perf_counter()
    threads = threads or os.cpu_count() or 1
    added = already_there = 0
    damaged: list[Damaged] = []
    with tqdm(total=source.count, unit=" images", disable=None) as bar:

        def new_items() -> Iterator[Item]:
            nonlocal already_there
            for item in source:
                if gallery.known([item.id]):
                    already_there += 1
                    bar.update()
                else:
                    yield _with_storable_name(item)

        def on_error(name: str, error: ImageError) -> None:
            damaged.append(Damaged(name, error.reason))
            bar.set_postfix(damaged=len(damaged))
            bar.update()

        images = decoded(new_items(), encoder.manifest.preprocess, on_error, threads)
        for batch in _batches(_embedded(encoder, images, threads), COMMIT_ROWS):
            gallery.add(
                [image.id for image in batch],
                np.stack([image.vector for image in batch]),
                [_class_name(source, image.label) for image in batch],
            )
            added += len(batch)
            bar.update(len(batch))
    return Summary(added, already_there, tuple(damaged), perf_counter() - started)


def _embedded(encoder: Encoder, images: Iterable[Decoded], threads: int) -> Iterator[_Embedded]:
    """Embed in batches on several threads, in order, a few batches ahead of the consumer."""
    waiting: deque[tuple[list[Decoded], Future[np.ndarray]]] = deque()

    def finished() -> Iterator[_Embedded]:
        batch, vectors = waiting.popleft()
        for image, vector in zip(batch, vectors.result(), strict=True):
            yield _Embedded(image.id, vector, image.label)

    with ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        for batch in _batches(images, EMBED_BATCH):
            waiting.append((batch, pool.submit(_vectors, encoder, batch)))
            if len(waiting) > threads:
                yield from finished()
        while waiting:
            yield from finished()


def _vectors(encoder: Encoder, batch: list[Decoded]) -> np.ndarray:
    """(N, dimension) float32."""
    return encoder.embed(np.stack([image.pixels for image in batch])).vectors


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _class_name(source: Source, label: int | None) -> str | None:
    return None if label is None or not source.class_names else source.class_names[label]


def _with_storable_name(item: Item) -> Item:
    """File names may hold any bytes, ids are text: such a file counts as one that cannot be read."""
    try:
        item.id.encode()
    except UnicodeEncodeError:
        return replace(item, data=ImageError(400, "its name is not valid UTF-8; rename the file"))
    return item
