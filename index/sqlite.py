"""The SQLite file: made durable, opened, locked, and its errors told in the words of a gallery."""

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from index.errors import GalleryBusy, GalleryCorrupt, GalleryError, GalleryFull, GalleryReadOnly

# Seven 512-d float32 rows fill a 16 KiB page to 90%; SQLite's default of 4 KiB holds one and wastes half.
PAGE_BYTES = 16384
WAY_OUT = "restore it from a copy, or move it away and add the images again"
LOCK_NAME = "gallery.lock"
POLL_S = 0.002
CLOSED = -1


# What a full disk or a limit on a file's size looks like, beside SQLITE_FULL.
WRITE_ERRORS = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def of_os_error(error: OSError, place: Path) -> GalleryError:
    """What an error of the operating system means for a gallery."""
    if error.errno in FULL:
        return GalleryFull(f"{place} cannot be written, the disk is full ({error.strerror}); free some space")
    if error.errno in FORBIDDEN:
        return GalleryReadOnly(
            f"{place} cannot be written ({error.strerror}); give this user the right to, or name another folder"
        )
    return GalleryError(f"{place} cannot hold a gallery ({error.strerror}); name another folder")


def make_folder(folder: Path) -> None:
    """Create `folder`, syncing each parent: a file is not durable while the entry of its folder is not."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(file: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode that may write, for use by one thread at a time."""
    connection = _raw(str(file), busy_timeout_s)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        _switch_to_wal(connection, busy_timeout_s)
        connection.execute("PRAGMA synchronous = FULL")  # one fsync a commit: acknowledged means on disk
    except BaseException:
        connection.close()
        raise
    return connection


def connect_read_only(file: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that never writes, also where the folder cannot be written."""
    return connect_as_it_is(file, busy_timeout_s)[0]


def connect_as_it_is(file: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, bool]:
    """A connection that never writes, also where the folder cannot be written; and whether it sees no changes.

    SQLite needs its -shm file beside a file in WAL mode. Where that cannot be made and no log with content is there,
    nobody is writing, and the file is read as one that does not change.
    """
    address = f"file:{quote(str(file.resolve()))}?mode=ro"
    connection = _raw(address, busy_timeout_s)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connection, False
    except sqlite3.OperationalError:
        connection.close()
        log = file.with_name(file.name + "-wal")
        if not file.exists() or (log.exists() and log.stat().st_size > 0):
            raise
    return _raw(address + "&immutable=1", busy_timeout_s), True


def _raw(address: str, busy_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        uri=address.startswith("file:"),
        cached_statements=256,
    )
    # Damaged text must reach the checksum, which names its row, instead of failing without a name.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
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


class WriteLock:
    """One writer at a time among all processes, released by the kernel when its holder dies.

    SQLite has a write lock of its own. This one is held during checkpoints too: up to 3.51.2 a checkpoint of one
    process beside the write of another could lose the log ("WAL-reset bug"), and Python ships such versions.
    """

    def __init__(self, file: Path, timeout_s: float) -> None:
        self._file = file
        self._timeout_s = timeout_s
        self._threads = threading.Lock()
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise of_os_error(error, file.parent) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, at most the timeout, threads of this process included; raises `GalleryBusy`."""
        deadline = time.monotonic() + self._timeout_s
        if not self._threads.acquire(timeout=self._timeout_s):
            raise self._busy()
        try:
            while not self._taken():
                if time.monotonic() > deadline:
                    raise self._busy()
                time.sleep(POLL_S)
            try:
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Let go of the file, after whoever holds the lock; it cannot be taken any more."""
        with self._threads:
            descriptor, self._descriptor = self._descriptor, CLOSED
            if descriptor != CLOSED:
                os.close(descriptor)

    def _busy(self) -> GalleryBusy:
        return GalleryBusy(
            f"{self._file.parent}: others have been writing for {self._timeout_s:g} s; try again"
        )

    def _taken(self) -> bool:
        if self._descriptor == CLOSED:
            raise GalleryError(f"{self._file.parent} is closed; open it again")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def nobody_writes(lock_file: Path) -> Iterator[bool]:
    """Whether no process holds the `WriteLock`; if so, none gets it within the block."""
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        free = True
    except OSError:  # taken, or no file system that locks
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


class Stamp(NamedTuple):
    """What tells that a file, or its log, was written: inode, bytes, and time of the last write in ns of each."""

    file: int
    file_bytes: int
    file_ns: int
    log: int
    log_bytes: int
    log_ns: int

    @classmethod
    def of(cls, file: str) -> Self:
        """That of a SQLite file; zeros for what is not there."""
        return cls(*_stat(file), *_stat(f"{file}-wal"))


def _stat(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns


class Reader(NamedTuple):
    """A connection that reads."""

    connection: sqlite3.Connection
    frozen: Stamp | None  # of a file that was opened as one that does not change

    @classmethod
    def open(cls, file: Path, busy_timeout_s: float) -> Self:
        """Raises errors of a gallery."""
        stamp = Stamp.of(str(file))
        with named_errors(file, busy_timeout_s):
            connection, frozen = connect_as_it_is(file, busy_timeout_s)
        return cls(connection, stamp if frozen else None)

    def outdated(self, file: str) -> bool:
        """Whether somebody has written to the file that was opened as one that does not change."""
        return self.frozen is not None and self.frozen != Stamp.of(file)


class Readers:
    """Readers lent to one thread at a time: as many as threads that ever read side by side."""

    def __init__(self, file: Path, busy_timeout_s: float) -> None:
        self._file = file
        self._busy_timeout_s = busy_timeout_s
        self._idle: deque[Reader] = deque()
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[sqlite3.Connection]:
        """A connection for the length of the block."""
        reader = self._taken()
        try:
            with named_errors(self._file, self._busy_timeout_s):
                yield reader.connection
        finally:
            self._idle.append(reader)
            if self._closed:
                self.close()

    def close(self) -> None:
        """Close those that are idle, and each that is lent when it comes back."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().connection.close()

    def _taken(self) -> Reader:
        with suppress(IndexError):
            while True:
                reader = self._idle.pop()
                if not reader.outdated(str(self._file)):
                    return reader
                reader.connection.close()
        return Reader.open(self._file, self._busy_timeout_s)


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
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that reads: everything in it is of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def named_errors(file: Path, busy_timeout_s: float) -> Iterator[None]:
    """Say what an error of SQLite means for this gallery."""
    try:
        yield
    except UnicodeDecodeError as error:  # of a message that quotes what is damaged
        raise GalleryCorrupt(f"{file} is damaged ({error.reason}); {WAY_OUT}") from error
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the low byte is the primary code
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise GalleryBusy(
                    f"{file}: another process has been writing for {busy_timeout_s:g} s; try again"
                ) from error
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise GalleryCorrupt(f"{file} is damaged ({error}); {WAY_OUT}") from error
            case sqlite3.SQLITE_FULL:
                raise GalleryFull(f"{file} cannot grow, the disk is full; free some space and try again") from error
            case sqlite3.SQLITE_IOERR if getattr(error, "sqlite_errorcode", 0) in WRITE_ERRORS:
                raise GalleryFull(
                    f"{file} cannot be written ({error}); look at the disk, its free space and its limits"
                ) from error
            case sqlite3.SQLITE_IOERR:
                raise GalleryError(f"{file} cannot be read ({error}); look at the disk") from error
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                raise GalleryReadOnly(
                    f"{file} cannot be written ({error}); give this user the right to, or name another folder"
                ) from error
            case _:
                raise GalleryError(f"{file}: {error}") from error
