"""Where images come from: folders, archives, parquet, .npy arrays, STL-10's and CIFAR-10's files, one face.

    source = open_source("photos/")                     # or .zip, .tar.gz, .parquet, .npy, stl10_binary/
    for id, pixels, label in decoded(source, spec, on_error=lambda id, error: print(id, error)):
        ...

A source is read again from the start by every loop over it, in the same order.
"""

import io
import os
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, NamedTuple, TypeVar

import numpy as np

from images import parquet
from images.decode import MAX_BYTES, ImageError, decode, resize
from images.folders import DATA_SETS, PACKED, hidden, is_single, parts
from images.spec import PreprocessSpec

S = TypeVar("S")
T = TypeVar("T")

READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError)
NAME_A_SOURCE = "name a folder, .zip, .tar, .tar.gz, .parquet or .npy"


class SourceError(Exception):
    """A path that holds no images we can read."""


class PackageMissing(SourceError):
    """A path that only another environment can read."""


@dataclass(frozen=True)
class Item:
    """One image of a source: encoded, or as pixels, or why it could not be read."""

    id: str
    data: bytes | np.ndarray | ImageError  # pixels are (H, W, 3) uint8
    label: int | None = None  # index into the source's class_names


@dataclass(frozen=True)
class Source:
    """Images in a fixed order."""

    items: Callable[[], Iterator[Item]]
    count: int | None  # None where counting would mean reading everything
    class_names: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Item]:
        return self.items()


class Decoded(NamedTuple):
    """An image as the encoder sees it."""

    id: str
    pixels: np.ndarray  # (size, size, 3) uint8
    label: int | None


def open_source(path: Path | str, split: str | None = None) -> Source:
    """The images at `path`. Data sets have splits; without one their train split is taken.

    - folder of STL-10 or CIFAR-10, or one that holds `stl10_binary/`, `cifar-10-batches-bin/` or `-py/`; with a
      split also one that holds `stl10-SPLIT.zip` or parquet shards, of which those of the split are read
    - any other folder: every file below it in sorted order, ids are paths relative to it; names with a leading dot
      are left out. An archive below it gives its images, their ids prefixed by its path
    - tar (compressed or not) and zip: their files in archive order, ids are the names in the archive,
      which are never opened on disk. Where `class_names.txt` lies beside the archive, a name such as
      `00042.7.webp` carries its label, 7
    - .parquet: see images/parquet.py; ids are row numbers
    - .npy: (N, H, W, 3) uint8, mapped rather than read; ids are row numbers
    """
    path = Path(path)
    if path.is_dir():
        for data_set in DATA_SETS:
            if folder := data_set.find(path):
                return _data_set(data_set, folder, split or "train")
        if split is None:
            return open_parts(path, parts(path))
        if not (path / f"stl10-{split}.zip").exists():
            return _shards(path, split)
        path = path / f"stl10-{split}.zip"
    if not path.exists():
        raise SourceError(f"{path} does not exist; {NAME_A_SOURCE} with images")
    if path.name in PACKED:
        raise SourceError(f"{path} is packed: run `tar xf` on it, and name the folder {PACKED[path.name]}")
    if path.suffix == ".npy":
        return _array(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if zipfile.is_zipfile(path):
        return _zip(path)
    if tarfile.is_tarfile(path):
        return _tar(path)
    raise SourceError(f"{path} is not a source of images; {NAME_A_SOURCE}")


def open_parts(folder: Path, found: Iterable[Path]) -> Source:
    """Some of `parts(folder)` as one source. Ids are paths relative to the folder, those of an archive's images
    prefixed by its path; classes are those of all parts, each once. An archive that holds no images counts as an
    image that cannot be read."""
    sources: list[tuple[str, Source]] = []
    for single, group in groupby(found, key=is_single):
        if single:
            sources.append(("", _files(folder, group)))
        else:
            sources += [(part.relative_to(folder).as_posix(), _part(part)) for part in group]
    class_names = tuple(dict.fromkeys(name for _, source in sources for name in source.class_names))

    def items() -> Iterator[Item]:
        for prefix, source in sources:
            numbers = [class_names.index(name) for name in source.class_names]
            for item in source:
                label = item.label
                if class_names and label is not None:  # a label without a name has none among those with names
                    label = numbers[label] if numbers else None
                yield Item("/".join(filter(None, (prefix, item.id))), item.data, label)

    counts = [source.count for _, source in sources if source.count is not None]
    return Source(items, sum(counts) if len(counts) == len(sources) else None, class_names)


def pixels(item: Item, spec: PreprocessSpec) -> np.ndarray:
    """(size, size, 3) uint8 of one item, as `spec` says. Raises ImageError."""
    if isinstance(item.data, ImageError):
        raise item.data
    return decode(item.data, spec) if isinstance(item.data, bytes) else resize(item.data, spec)


def decoded(
    items: Iterable[Item],
    spec: PreprocessSpec,
    on_error: Callable[[str, ImageError], None],
    threads: int | None = None,
) -> Iterator[Decoded]:
    """Decode on several threads, in order; what cannot be decoded goes to `on_error(id, error)`."""
    threads = threads or os.cpu_count() or 1
    for item, future in started_ahead(items, partial(pixels, spec=spec), threads, 4 * threads):
        try:
            image = future.result()
        except ImageError as error:
            on_error(item.id, error)
        else:
            yield Decoded(item.id, image, item.label)


def started_ahead(
    things: Iterable[S], work: Callable[[S], T], threads: int, window: int
) -> Iterator[tuple[S, Future[T]]]:
    """Things in their order, each with its work under way in a thread, at most `window` ahead of the consumer for
    memory's sake."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        waiting: deque[tuple[S, Future[T]]] = deque()
        for thing in things:
            waiting.append((thing, pool.submit(work, thing)))
            if len(waiting) > window:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _shards(folder: Path, split: str) -> Source:
    shards = [part for part in parts(folder) if parquet.in_split(part.relative_to(folder), split)]
    if not shards:
        raise SourceError(
            f"{folder} has no split {split!r}: neither STL-10's or CIFAR-10's files, nor stl10-{split}.zip, nor "
            f"parquet files whose names begin with {split}"
        )
    return open_parts(folder, shards)


def _part(part: Path) -> Source:
    try:
        return open_source(part)
    except PackageMissing:
        raise
    except SourceError as error:
        if part.is_dir():
            raise
        return Source(partial(iter, [Item("", ImageError(415, str(error)))]), 1)


def _files(folder: Path, files: Iterable[Path]) -> Source:
    names = [file.relative_to(folder).as_posix() for file in files]

    def items() -> Iterator[Item]:
        for name in names:
            yield Item(name, _read(partial(io.FileIO, folder / name)))

    return Source(items, len(names))


def _zip(path: Path) -> Source:
    class_names = _class_names(path)
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and not hidden(info.filename)]

    def items() -> Iterator[Item]:
        with zipfile.ZipFile(path) as archive:
            for info in members:
                data = _read(partial(archive.open, info))
                yield Item(info.filename, data, _label(info.filename, class_names))

    return Source(items, len(members), class_names)


def _tar(path: Path) -> Source:
    class_names = _class_names(path)

    def items() -> Iterator[Item]:
        try:
            with tarfile.open(path) as archive:
                for info in archive:
                    if info.isfile() and not hidden(info.name):
                        data = _read(partial(archive.extractfile, info))
                        yield Item(info.name, data, _label(info.name, class_names))
        except READ_ERRORS as error:
            raise SourceError(f"{path} is damaged from here on: {error}; replace the archive") from error

    return Source(items, None, class_names)


def _array(path: Path) -> Source:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise SourceError(f"{path} is not a .npy file of numbers: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise SourceError(
            f"{path} holds {images.dtype} of shape {images.shape}; give uint8 of shape (N, H, W, 3)"
        )
    return Source(lambda: (Item(str(row), image) for row, image in enumerate(images)), len(images))


def _data_set(data_set: ModuleType, folder: Path, split: str) -> Source:
    try:
        images, labels = data_set.read(folder, split)
    except (OSError, ValueError) as error:
        raise SourceError(str(error)) from error

    def items() -> Iterator[Item]:
        for row, image in enumerate(images):
            yield Item(f"{split}/{row:05d}", image, None if labels is None else int(labels[row]))

    return Source(items, len(images), data_set.CLASS_NAMES)


def _parquet(path: Path) -> Source:
    try:
        table = parquet.describe(path)
    except ModuleNotFoundError as error:
        raise PackageMissing(f"{path} needs {error.name}; run from .venv-full (make setup-full)") from error
    except READ_ERRORS as error:
        raise SourceError(f"{path} is not a parquet file of images: {error}") from error

    def items() -> Iterator[Item]:
        try:
            for number, (data, label) in enumerate(parquet.rows(path, table)):
                nothing = ImageError(400, "the row holds no bytes of an image; embed the images in the file")
                yield Item(str(number), nothing if data is None else data, label)
        except READ_ERRORS as error:
            raise SourceError(f"{path} is damaged from here on: {error}; replace the file") from error

    return Source(items, table.rows, table.class_names)


def _read(open_file: Callable[[], IO[bytes] | None]) -> bytes | ImageError:
    """The bytes of one file, at most one more than `decode` takes; ImageError where that fails."""
    try:
        file = open_file()
        assert file is not None, "extractfile() gives None only for what is no file"
        with file:
            return file.read(MAX_BYTES + 1)
    except READ_ERRORS as error:
        return ImageError(400, f"cannot be read: {error or type(error).__name__}; replace the file")


def _class_names(archive: Path) -> tuple[str, ...]:
    names = archive.with_name("class_names.txt")
    return tuple(names.read_text().split()) if names.exists() else ()


def _label(name: str, class_names: tuple[str, ...]) -> int | None:
    """7 for `00042.7.webp` in an archive whose classes are known."""
    fields = PurePosixPath(name).name.split(".")
    if not class_names or len(fields) != 3 or not fields[1].isdecimal():
        return None
    label = int(fields[1])
    if label >= len(class_names):
        raise SourceError(
            f"{name} carries label {label}, but class_names.txt has only {len(class_names)} names"
        )
    return label
