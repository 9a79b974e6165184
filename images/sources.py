"""Where images come from: folders, tar and zip archives, STL-10's binaries and .npy arrays, one face.

    source = open_source("photos/")                     # or .zip, .tar.gz, .npy, stl10_binary/
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
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from images import stl10
from images.decode import MAX_BYTES, ImageError, decode, resize
from images.spec import PreprocessSpec

READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError)


class SourceError(Exception):
    """A path that holds no images we can read."""


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
    """The images at `path`. Only STL-10 has splits; without one its train split is taken.

    - folder: every file below it in sorted order, ids are paths relative to it; names with a leading
      dot are left out
    - folder of STL-10, or one that holds `stl10_binary/` or `stl10-SPLIT.zip`
    - tar (compressed or not) and zip: their files in archive order, ids are the names in the archive,
      which are never opened on disk. Where `class_names.txt` lies beside the archive, a name such as
      `00042.7.webp` carries its label, 7
    - .npy: (N, H, W, 3) uint8, mapped rather than read; ids are row numbers
    """
    path = Path(path)
    if path.is_dir():
        if folder := stl10.find(path):
            return _stl10(folder, split or "train")
        if split is None:
            return _folder(path)
        path = path / f"stl10-{split}.zip"
    if not path.exists():
        raise SourceError(f"{path} does not exist; name a folder, .zip, .tar, .tar.gz or .npy with images")
    if path.suffix == ".npy":
        return _array(path)
    if zipfile.is_zipfile(path):
        return _zip(path)
    if tarfile.is_tarfile(path):
        return _tar(path)
    raise SourceError(f"{path} is not a source of images; name a folder, .zip, .tar, .tar.gz or .npy")


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
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item, future in _started_ahead(pool, items, spec, 4 * threads):
            try:
                image = future.result()
            except ImageError as error:
                on_error(item.id, error)
            else:
                yield Decoded(item.id, image, item.label)
    finally:
        pool.shutdown(cancel_futures=True)


def _started_ahead(
    pool: ThreadPoolExecutor, items: Iterable[Item], spec: PreprocessSpec, window: int
) -> Iterator[tuple[Item, Future[np.ndarray]]]:
    """Items with their decoding under way, at most `window` ahead of the consumer for memory's sake."""
    waiting: deque[tuple[Item, Future[np.ndarray]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(pixels, item, spec)))
        if len(waiting) > window:
            yield waiting.popleft()
    yield from waiting


def _folder(path: Path) -> Source:
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and not _hidden(file.relative_to(path).as_posix())
    )

    def items() -> Iterator[Item]:
        for name in names:
            yield Item(name, _read(partial(io.FileIO, path / name)))

    return Source(items, len(names))


def _zip(path: Path) -> Source:
    class_names = _class_names(path)
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]

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
                    if info.isfile() and not _hidden(info.name):
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


def _stl10(folder: Path, split: str) -> Source:
    try:
        images, labels = stl10.read(folder, split)
    except (FileNotFoundError, ValueError) as error:
        raise SourceError(str(error)) from error

    def items() -> Iterator[Item]:
        for row, image in enumerate(images):
            yield Item(f"{split}/{row:05d}", image, None if labels is None else int(labels[row]))

    return Source(items, len(images), stl10.CLASS_NAMES)


def _read(open_file: Callable[[], IO[bytes] | None]) -> bytes | ImageError:
    """The bytes of one file, at most one more than `decode` takes; ImageError where that fails."""
    try:
        file = open_file()
        assert file is not None, "extractfile() gives None only for what is no file"
        with file:
            return file.read(MAX_BYTES + 1)
    except READ_ERRORS as error:
        return ImageError(400, f"cannot be read: {error or type(error).__name__}; replace the file")


def _hidden(name: str) -> bool:
    """Names such as .DS_Store, .git/ and ._photo.jpg, which are nobody's pictures."""
    return any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name).parts)


def _class_names(archive: Path) -> tuple[str, ...]:
    names = archive.with_name("class_names.txt")
    return tuple(names.read_text().split()) if names.exists() else ()


def _label(name: str, class_names: tuple[str, ...]) -> int | None:
    """7 for `00042.7.webp` in an archive whose classes are known."""
    parts = PurePosixPath(name).name.split(".")
    if not class_names or len(parts) != 3 or not parts[1].isdecimal():
        return None
    label = int(parts[1])
    if label >= len(class_names):
        raise SourceError(
            f"{name} carries label {label}, but class_names.txt has only {len(class_names)} names"
        )
    return label
