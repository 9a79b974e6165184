"""The SQLite file: made durable, opened, locked, and its errors told in the words of a gallery."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from index.errors import GalleryBusy, GalleryCorrupt, GalleryError

# Seven 512-d float32 rows fill a 16 KiB page to 90%; SQLite's default of 4 KiB holds one and wastes half.
PAGE_BYTES = 16384
WAY_OUT = "restore it from a copy, or move it away and add the images again"


def make_folder(folder: Path) -> None:
    """Create `folder`, syncing each parent: a file is not durable while the entry of its folder is not."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(file: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, for use by one thread at a time."""
    connection = sqlite3.connect(file, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    # Damaged text must reach the checksum, which names its row, instead of failing without a name.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        _switch_to_wal(connection, busy_timeout_s)
        connection.execute("PRAGMA synchronous = FULL")  # one fsync a commit: acknowledged means on disk
    except BaseException:
        connection.close()
        raise
    return connection


def _switch_to_wal(connection: sqlite3.Connection, busy_timeout_s: float) -> None:
    """Where several processes make one file together, SQLite refuses this switch without waiting: wait ourselves."""
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at its beginning; rolled back where the body raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def named_errors(file: Path, busy_timeout_s: float) -> Iterator[None]:
    """Say what an error of SQLite means for this gallery."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the low byte is the primary code
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise GalleryBusy(
                    f"{file}: another process has been writing for {busy_timeout_s:g} s; try again"
                ) from error
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise GalleryCorrupt(f"{file} is damaged ({error}); {WAY_OUT}") from error
            case _:
                raise GalleryError(f"{file}: {error}") from error
