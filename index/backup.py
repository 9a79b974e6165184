"""A gallery as one file, taken while others write, and a gallery from such a file.

    akin index backup gallery.bak          akin index restore gallery.bak --gallery FOLDER

Both compare everything with its checksums before anything takes the place it is meant for. Snapshots and thumbnails
are left out: they can be made again.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from index.errors import GalleryCorrupt, GalleryError, GalleryFull, WrongModel
from index.sqlite import connect_read_only, make_folder, named_errors, sync_folder
from index.store import FILE_NAME, Store, new_identity
from index.verify import verify

BUSY_TIMEOUT_S = 30.0


def backup(folder: Path, file: Path) -> int:
    """Write the gallery in `folder`, as of one moment, to `file`; one that is there is replaced once the new one is
    whole. Returns the number of rows."""
    source = folder / FILE_NAME
    if not source.exists():
        raise GalleryError(f"no gallery in {folder}; name a folder that has one")
    if file.is_dir() or file.resolve().is_relative_to(folder.resolve()):
        raise GalleryError(f"{file} cannot be the backup; name a file outside of {folder}")
    with _os_errors(file), _copied(source, file.parent) as copy:
        rows = _check(copy, source, *_model_of(copy, source))
        _finish(copy)
        os.replace(copy, file)
        sync_folder(file.parent)
    return rows


def restore(file: Path, folder: Path, model_digest: str, dimension: int) -> int:
    """Make a gallery in `folder`, where there must be none, from a backup. Returns the number of rows.

    It gets an identity of its own, so that no snapshot of the gallery that was backed up is taken for one of it.
    """
    if not file.is_file():
        raise GalleryError(f"no backup at {file}; `akin index backup FILE` makes one")
    _refuse_taken(folder)
    with _os_errors(folder), _copied(file, folder if folder.is_dir() else folder.parent) as copy:
        if (found := _model_of(copy, file)) != (model_digest, dimension):
            raise WrongModel(
                f"{file} holds vectors of model {found[0][:12]} and dimension {found[1]}, this encoder is "
                f"{model_digest[:12]} and gives {dimension}; name the --model-store that it was made with"
            )
        rows = _check(copy, file, model_digest, dimension)
        _finish(copy, new=True)
        make_folder(folder)
        _refuse_taken(folder)
        try:
            os.link(copy, folder / FILE_NAME)  # unlike a rename it never replaces what another process has made
        except FileExistsError as error:
            raise _taken(folder / FILE_NAME) from error
        sync_folder(folder)
    return rows


def _refuse_taken(folder: Path) -> None:
    """Also for what is left of a gallery: SQLite would play an old log into the new file."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        if (file := folder / f"{FILE_NAME}{suffix}").exists():
            raise _taken(file)


def _taken(file: Path) -> GalleryError:
    return GalleryError(f"{file} is there already; move it away, or restore into another folder")


@contextmanager
def _copied(source: Path, into: Path) -> Iterator[Path]:
    """A copy of the database as of one moment, in a folder within `into` that is deleted in the end."""
    make_folder(into)
    with TemporaryDirectory(prefix=".akin-", dir=into) as passing:
        copy = Path(passing) / FILE_NAME
        try:
            with (
                named_errors(source, BUSY_TIMEOUT_S),
                closing(connect_read_only(source, BUSY_TIMEOUT_S)) as reader,
                closing(sqlite3.connect(copy)) as writer,
            ):
                reader.backup(writer)  # in one step: in several it would begin again with each write of others
        except GalleryFull as error:
            raise GalleryFull(f"{into} has no room for a copy of {source}; free some space and try again") from error
        yield copy


def _model_of(copy: Path, original: Path) -> tuple[str, int]:
    """Digest and dimension that the file says it is for."""
    try:
        with closing(sqlite3.connect(copy)) as connection:
            meta = dict(connection.execute("SELECT key, value FROM meta"))
        return meta["model_digest"], int(meta["dimension"])
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        raise GalleryCorrupt(f"{original} is no gallery, nor a backup of one ({error}); name another file") from error


def _check(copy: Path, original: Path, model_digest: str, dimension: int) -> int:
    """The number of rows, where every page and row is sound."""
    if faults := verify(copy.parent, model_digest, dimension):
        more = f", and {len(faults) - 1} faults more" if len(faults) > 1 else ""
        raise GalleryCorrupt(faults[0].replace(str(copy), str(original)) + more)
    with closing(Store.open(copy.parent, model_digest, dimension, check_pages=False)) as store:
        return store.count()


def _finish(copy: Path, new: bool = False) -> None:
    """One file that needs no other beside it, on disk."""
    with named_errors(copy, BUSY_TIMEOUT_S), closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        if new:
            new_identity(connection)
        connection.execute("PRAGMA journal_mode = DELETE")
    with copy.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _os_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GalleryError(f"{where} cannot be written ({error.strerror}); name another place") from error
