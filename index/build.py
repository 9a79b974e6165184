"""Fill an index with images: what is new is decoded and embedded on all cores, and added in batches.

    source ─► lookup ─► decode ─► embed ─► add
              64 a query  threads   threads  256 a transaction

Stopped at any moment, it leaves what was committed, and the same call goes on from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from encoder.machine import cores
from encoder.session import Encoder
from images.decode import ImageError
from images.sources import Item, Source, pixels, started_ahead
from images.spec import PreprocessSpec
from images.thumbnails import thumbnail
from index.contents import content_digest
from index.face import Index
from index.incoming import MAX_ID_BYTES
from index.thumbnails import Thumbnails

T = TypeVar("T")

LOOKUP_ROWS = 64  # images looked up at once ...
LOOKUP_BYTES = 64 * 2**20  # ... or as many as have read this much, since all of them are in memory
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
    replaced: int  # the image of this id had changed
    already_there: int
    copies: int  # of an image that is there under another id; skipped
    damaged: tuple[Damaged, ...]
    seconds: float

    @property
    def usable(self) -> int:
        """Images of the source that can be found in the index now."""
        return self.added + self.replaced + self.already_there + self.copies

    def __str__(self) -> str:
        rate = (self.added + self.replaced) / self.seconds if self.seconds else 0.0
        counts = [
            f"{self.added} images added in {self.seconds:.1f} s ({rate:.0f} a second)",
            *([f"{self.replaced} replaced"] if self.replaced else []),
            f"{self.already_there} were already there",
            *([f"{self.copies} copies of others skipped"] if self.copies else []),
            f"{len(self.damaged)} damaged and skipped",
        ]
        return "\n".join([", ".join(counts)] + [f"  {image.id!r}: {image.reason}" for image in self.damaged])


class _New(NamedTuple):
    """An image that has to be embedded."""

    item: Item
    content: bytes  # digest
    replaces: bool  # a row of this id


class _Decoded(NamedTuple):
    id: str
    label: int | None
    content: bytes
    replaces: bool
    pixels: np.ndarray  # (size, size, 3) uint8
    webp: bytes | None  # thumbnail


class _Embedded(NamedTuple):
    image: _Decoded
    vector: np.ndarray  # (dimension,) float32 of unit length


def add_images(
    index: Index,
    encoder: Encoder,
    source: Source,
    threads: int | None = None,
    thumbnails: Thumbnails | None = None,
) -> Summary:
    """Embed the images of `source` that the index does not have yet, and add them.

    An image is there where its bytes are: under its own id, or as a copy under another one. An id whose image has
    changed is embedded again. A row that knows of no image, such as one of the seed, stays as it is. `thumbnails`
    gets one of each image, also of those that are there without. Shows a progress bar on a terminal.
    """
    threads = threads or cores()
    with tqdm(total=source.count, unit=" images", disable=None) as bar:
        run = _Run(index, encoder, source.class_names, threads, thumbnails, bar)
        images = run.decoded(run.new(source))
        for batch in _batches(run.embedded(images), COMMIT_ROWS):
            run.commit(batch)
    return run.summary()


class _Run:
    """One pass over a source, and what has become of its images so far."""

    def __init__(
        self,
        index: Index,
        encoder: Encoder,
        class_names: Sequence[str],
        threads: int,
        thumbnails: Thumbnails | None,
        bar: tqdm,
    ) -> None:
        self._index = index
        self._encoder = encoder
        self._class_names = class_names
        self._threads = threads
        self._thumbnails = thumbnails
        self._bar = bar
        self._started = perf_counter()
        self._added = self._replaced = self._already_there = self._copies = 0
        self._damaged: list[Damaged] = []
        # Digest of every image that is under way, with the ids of its copies that were met meanwhile.
        self._under_way: dict[bytes, list[str]] = {}

    def new(self, items: Iterable[Item]) -> Iterator[_New]:
        """Those of `items` that have to be embedded."""
        for batch in _lookups(items):
            readable: list[tuple[Item, bytes]] = []
            for item in batch:
                if isinstance(item.data, ImageError):
                    self._skip([item.id], item.data)
                elif fault := _fault_of(item.id):
                    self._skip([item.id], fault)
                else:
                    readable.append((item, content_digest(item.data)))
            yield from self._unknown(readable)

    def decoded(self, images: Iterable[_New]) -> Iterator[_Decoded]:
        """Pixels, and thumbnails where wanted, on several threads, in order."""
        work = partial(_decode, spec=self._encoder.manifest.preprocess, small=self._thumbnails is not None)
        for new, future in started_ahead(images, work, self._threads, 4 * self._threads):
            try:
                image = future.result()
            except ImageError as error:
                self._skip([new.item.id, *self._under_way.pop(new.content, [])], error)
            else:
                yield image

    def embedded(self, images: Iterable[_Decoded]) -> Iterator[_Embedded]:
        """Vectors, in batches on several threads, in order, a few batches ahead of the consumer."""
        batches = _batches(images, EMBED_BATCH)
        for batch, future in started_ahead(batches, self._vectors, self._threads, self._threads):
            yield from map(_Embedded, batch, future.result())

    def commit(self, rows: Sequence[_Embedded]) -> None:
        """Make rows durable."""
        images = [row.image for row in rows]
        self._index.add(
            [image.id for image in images],
            np.stack([row.vector for row in rows]),
            [self._class_name(image.label) for image in images],
            contents=[image.content for image in images],
        )
        if self._thumbnails is not None:
            made = ((image.id, image.content, image.webp) for image in images)
            self._thumbnails.put([(name, content, webp) for name, content, webp in made if webp is not None])
        replaced = sum(image.replaces for image in images)
        self._replaced += replaced
        self._added += len(images) - replaced
        self._copies += sum(len(self._under_way.pop(image.content, [])) for image in images)
        self._bar.update(len(images))

    def summary(self) -> Summary:
        return Summary(
            self._added,
            self._replaced,
            self._already_there,
            self._copies,
            tuple(self._damaged),
            perf_counter() - self._started,
        )

    def _unknown(self, images: Sequence[tuple[Item, bytes]]) -> Iterator[_New]:
        """Ask the index which of these images it has, in two queries."""
        owners = self._index.known_contents([content for _, content in images])
        there = [(item, content) for item, content in images if owners.get(content) == item.id]
        others = [(item, content) for item, content in images if owners.get(content) != item.id]
        for (item, content), row in zip(others, self._index.get([item.id for item, _ in others]), strict=True):
            if row is not None and row.content is None:
                self._already_there += 1
                self._bar.update()
            elif row is not None and row.content == content:
                there.append((item, content))
            elif row is None and content in owners:
                self._copies += 1
                self._bar.update()
            elif row is None and content in self._under_way:
                self._under_way[content].append(item.id)
                self._bar.update()
            else:
                self._under_way.setdefault(content, [])
                yield _New(item, content, replaces=row is not None)
        self._already_there += len(there)
        self._bar.update(len(there))
        if self._thumbnails is not None:
            self._make_missing(self._thumbnails, there)

    def _make_missing(self, thumbnails: Thumbnails, images: Sequence[tuple[Item, bytes]]) -> None:
        """Thumbnails of images that were added without."""
        made = thumbnails.contents([item.id for item, _ in images])
        missing = [(item, content) for item, content in images if made.get(item.id) != content]
        rows = []
        for (item, content), future in started_ahead(missing, _thumbnail_of, self._threads, 4 * self._threads):
            if webp := future.result():
                rows.append((item.id, content, webp))
        if rows:
            thumbnails.put(rows)

    def _skip(self, ids: Sequence[str], error: ImageError) -> None:
        self._damaged += [Damaged(name, error.reason) for name in ids]
        self._bar.set_postfix(damaged=len(self._damaged))
        self._bar.update()

    def _vectors(self, batch: Sequence[_Decoded]) -> np.ndarray:
        """(N, dimension) float32."""
        return self._encoder.embed(np.stack([image.pixels for image in batch])).vectors

    def _class_name(self, label: int | None) -> str | None:
        return None if label is None or not self._class_names else self._class_names[label]


def _fault_of(name: str) -> ImageError | None:
    """Why an image of this name cannot have a row."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # file names may hold any bytes, ids are text
        return ImageError(400, "its name is not valid UTF-8; rename the file")
    if size > MAX_ID_BYTES:
        return ImageError(400, f"its name has {size} bytes, the limit is {MAX_ID_BYTES}; shorten the path")
    return None


def _decode(new: _New, spec: PreprocessSpec, small: bool) -> _Decoded:
    item = new.item
    assert not isinstance(item.data, ImageError)
    webp = thumbnail(item.data) if small else None
    return _Decoded(item.id, item.label, new.content, new.replaces, pixels(item, spec), webp)


def _thumbnail_of(image: tuple[Item, bytes]) -> bytes | None:
    """None where a row was given the digest of what is no image."""
    data = image[0].data
    assert not isinstance(data, ImageError)
    try:
        return thumbnail(data)
    except ImageError:
        return None


def _lookups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """In batches that memory holds."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        if not isinstance(item.data, ImageError):
            size += item.data.nbytes if isinstance(item.data, np.ndarray) else len(item.data)
        if len(batch) == LOOKUP_ROWS or size >= LOOKUP_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
