"""Thumbnails beside a gallery: kept on request, in a SQLite file of their own that may be deleted at any time.

Each carries the digest of the image it was made of and is given out only for a row with the same digest, so one that
was left behind by a row that changed is never seen.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from index.errors import GalleryError, GalleryReadOnly
from index.sqlite import Readers, WriteLock, connect, immediate, make_folder, named_errors

FILE_NAME = "thumbnails.sqlite"
LOCK_NAME = "thumbnails.lock"
MAX_VARIABLES = 500  # of one statement

_CREATE = """
CREATE TABLE IF NOT EXISTS thumbnails (
    id TEXT PRIMARY KEY,
    content BLOB NOT NULL,  -- digest of the image
    webp BLOB NOT NULL
) STRICT
"""


class Thumbnails:
    """The thumbnails of one gallery. All methods may be called from any thread, and several processes may share them.

    The file is made by the first `put`. What cannot be read counts as not there.
    """

    def __init__(self, folder: Path, busy_timeout_s: float) -> None:
        self._file = folder / FILE_NAME
        self._busy_timeout_s = busy_timeout_s
        self._readers = Readers(self._file, busy_timeout_s)
        self._writing = threading.Lock()
        self._writer: tuple[sqlite3.Connection, WriteLock] | None = None

    @classmethod
    def open(cls, folder: Path, busy_timeout_s: float = 30.0) -> Self:
        """Those of the gallery in `folder`; nothing is made there yet."""
        return cls(folder, busy_timeout_s)

    def put(self, rows: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep thumbnails, each (id, content digest, WebP), instead of those that their ids had."""
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?)", rows)

    def get(self, id: str, content: bytes | None) -> bytes | None:
        """WebP of the row `id` whose image has the digest `content`; None where there is none of just that image."""
        if content is None:
            return None
        found = self._read("SELECT webp FROM thumbnails WHERE id = ? AND content = ?", [id, content])
        return found[0][0] if found else None

    def contents(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Of these ids those that have a thumbnail, with the digest of the image it was made of."""
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), MAX_VARIABLES):
            some = ids[start : start + MAX_VARIABLES]
            marks = ",".join("?" * len(some))
            found |= self._read(f"SELECT id, content FROM thumbnails WHERE id IN ({marks})", some)
        return found

    def drop(self, ids: Iterable[str]) -> None:
        """Forget the thumbnails of `ids`; those that are not there are no error."""
        if self._file.exists():
            with self._transaction() as connection:
                connection.executemany("DELETE FROM thumbnails WHERE id = ?", ((name,) for name in ids))

    def close(self) -> None:
        """Close the file, after a write in progress."""
        self._readers.close()
        with self._writing:
            if self._writer is not None:
                connection, lock = self._writer
                self._writer = None
                with lock.held():
                    connection.close()
                lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, named_errors(self._file, self._busy_timeout_s):
            if self._writer is None:
                self._writer = self._open_writer()
            connection, lock = self._writer
            with lock.held(), immediate(connection):
                yield connection

    def _open_writer(self) -> tuple[sqlite3.Connection, WriteLock]:
        try:
            make_folder(self._file.parent)
            lock = WriteLock(self._file.with_name(LOCK_NAME), self._busy_timeout_s)
        except OSError as error:
            raise GalleryReadOnly(
                f"{self._file} cannot be written ({error.strerror}); give this user the right to, "
                "or leave --thumbnails out"
            ) from error
        with lock.held():
            connection = connect(self._file, self._busy_timeout_s)
            # What a power cut loses of these is made again by the next `akin index add --thumbnails`.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_CREATE)
        return connection, lock

    def _read(self, query: str, values: Sequence[str | bytes]) -> list[tuple]:
        if not self._file.exists():
            return []
        try:
            with self._readers.lent() as connection:
                return connection.execute(query, values).fetchall()
        except GalleryError:
            return []
