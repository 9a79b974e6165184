"""The truth of a gallery: ids, vectors, labels and metadata in one SQLite file.

Every row has a `key` for good, a small whole number that the acceleration knows it by, and a `seq` that every change
to it renews. A removal is a change too (the row stays, without a vector, as a tombstone), so a reader that knows the
last seq it has seen learns everything since from one range of an index.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from index import schema
from index.errors import GalleryCorrupt, GalleryReadOnly
from index.filters import Filter
from index.follower import Follower
from index.incoming import checked
from index.seal import row_checksum, sealed
from index.selection import where_clause
from index.sqlite import (
    FORBIDDEN,
    LOCK_NAME,
    WAY_OUT,
    Readers,
    WriteLock,
    connect,
    connect_read_only,
    immediate,
    make_folder,
    named_errors,
    of_os_error,
    reading,
)

FILE_NAME = "gallery.sqlite"
# Little-endian whatever the machine, so that a gallery can be copied between machines.
STORED_DTYPE = np.dtype("<f4")
MAX_VARIABLES = 500  # of one statement

_COLUMNS = "rows.key, seq, id, vector, label, metadata, content, removed, checksum"
_SELECT = f"SELECT {_COLUMNS} FROM rows LEFT JOIN vectors ON vectors.key = rows.key"
_PUT_ROW = (
    "INSERT OR REPLACE INTO rows (key, seq, id, label, metadata, content, removed, checksum) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_PUT_VECTOR = "INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)"


class Row(NamedTuple):
    """One row as it is stored."""

    key: int  # the same as long as the gallery lives
    seq: int
    id: str
    vector: np.ndarray | None  # (dimension,) float32 of unit length; None: this id was removed
    label: str | None
    metadata: str | None  # a JSON object
    content: bytes | None  # digest of the image


class Matching(NamedTuple):
    """The rows that a filter matched."""

    seq: int  # the last one given out when it was asked
    keys: np.ndarray  # (M,) int64, ascending


class Store:
    """One process's connections to the file: one that writes, one that follows its changes, others that look rows up.

    Reading never waits for a writer. All methods may be called from any thread; those on the followed changes
    (`data_version`, `changes`, `consistent`, `keys_matching_now`) share a connection: from one thread at a time.
    """

    def __init__(
        self, file: Path, meta: schema.Meta, busy_timeout_s: float, writer: sqlite3.Connection | None
    ) -> None:
        self.file = file
        self.dimension = meta.dimension
        self.identity = meta.identity
        self._busy_timeout_s = busy_timeout_s
        self._writer = writer
        self._lock = None if writer is None else WriteLock(file.with_name(LOCK_NAME), busy_timeout_s)
        self._readers = Readers(file, busy_timeout_s)
        self._follower = Follower(file, busy_timeout_s)

    @classmethod
    def open(
        cls,
        folder: Path,
        model_digest: str,
        dimension: int,
        busy_timeout_s: float = 30.0,
        *,
        check_pages: bool = True,
    ) -> Self:
        """Open the gallery in `folder`, or make an empty one for this model there.

        A writer waits at most `busy_timeout_s` seconds for another process's write to end. Where the folder may only
        be read, so may the gallery: writes raise `GalleryReadOnly`. `check_pages` is for `index.verify`, which looks
        at damaged files too.
        """
        file = folder / FILE_NAME
        writable = _writable(folder)
        with named_errors(file, busy_timeout_s):
            connection = connect(file, busy_timeout_s) if writable else connect_read_only(file, busy_timeout_s)
            try:
                if writable:
                    # Not while another process checkpoints; and two that start together make one gallery.
                    lock = WriteLock(folder / LOCK_NAME, busy_timeout_s)
                    try:
                        with lock.held(), immediate(connection):
                            schema.create_or_migrate(connection, file, model_digest, dimension)
                    finally:
                        lock.close()
                meta = schema.check(connection, file, model_digest, dimension, check_pages)
                if not writable:
                    connection.close()
                return cls(file, meta, busy_timeout_s, connection if writable else None)
            except BaseException:
                connection.close()
                raise

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._writer is None

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        contents: Sequence[bytes | None] | None = None,
        *,
        only_if_untouched: bool = False,
    ) -> bool:
        """Insert rows, or replace those whose id is there; on disk, all of them, when this returns.

        vectors: (N, dimension). One call is one transaction. Where an id comes twice, the later row stays.
        With `only_if_untouched`, nothing happens to a gallery that has ever been written to, and the
        answer is False.
        """
        rows = checked(ids, vectors, labels, metadata, contents, self.dimension)
        blobs = [vector.tobytes() for vector in rows.vectors.astype(STORED_DTYPE, copy=False)]
        with self._transaction() as (connection, last_seq):
            if only_if_untouched and last_seq > 0:
                return False
            keys = _keys_for(connection, rows.ids)
            fields = zip(rows.ids, blobs, rows.labels, rows.documents, rows.contents, strict=True)
            connection.executemany(
                _PUT_ROW,
                (
                    sealed(key, seq, *row)
                    for seq, (key, row) in enumerate(zip(keys, fields, strict=True), last_seq + 1)
                ),
            )
            connection.executemany(_PUT_VECTOR, zip(keys, blobs, strict=True))
        return True

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`, on disk when this returns; ids that are not there are no error.

        Returns how many rows there were.
        """
        wanted = list(dict.fromkeys(ids))
        with self._transaction() as (connection, last_seq):
            keys = _live_keys(connection, wanted)
            connection.executemany(
                _PUT_ROW,
                (
                    sealed(key, seq, name, None, None, None, None)
                    for seq, (name, key) in enumerate(keys.items(), last_seq + 1)
                ),
            )
            connection.executemany("DELETE FROM vectors WHERE key = ?", ((key,) for key in keys.values()))
        return len(keys)

    def untouched(self) -> bool:
        """Whether nothing was ever written here."""
        with self._readers.lent() as connection:
            return connection.execute("SELECT 1 FROM rows LIMIT 1").fetchone() is None

    def count(self) -> int:
        """Number of live rows, counted in indexes: about 10 ms a million."""
        query = "SELECT (SELECT count(*) FROM rows) - (SELECT count(*) FROM rows WHERE removed = 1)"
        with self._readers.lent() as connection:
            return int(connection.execute(query).fetchone()[0])

    def last_seq(self) -> int:
        """The last seq given out, 0 before the first."""
        with self._readers.lent() as connection:
            return _last_seq(connection)

    def live_keys(self) -> np.ndarray:
        """(N,) int64: the keys of the live rows, ascending."""
        with self._readers.lent() as connection:
            cursor = connection.execute("SELECT key FROM rows WHERE removed = 0 ORDER BY key")
            return np.fromiter((key for (key,) in cursor), np.int64)

    def by_key(self, keys: Sequence[int]) -> dict[int, Row]:
        """The rows of these keys, tombstones included, each checksum verified."""
        with self._readers.lent() as connection:
            return {row.key: row for row in self._rows_in(connection, "rows.key", keys)}

    def by_id(self, ids: Sequence[str]) -> dict[str, Row]:
        """The live rows of these ids, each checksum verified."""
        with self._readers.lent() as connection:
            return {row.id: row for row in self._rows_in(connection, "id", ids) if row.vector is not None}

    def by_content(self, contents: Sequence[bytes]) -> dict[bytes, str]:
        """Of these digests those that a live row has, with the first such row's id."""
        found: dict[bytes, str] = {}
        with self._readers.lent() as connection:
            for some in _slices(contents):
                query = f"SELECT content, id FROM rows WHERE content IN ({_marks(some)}) ORDER BY key DESC"
                found |= connection.execute(query, some).fetchall()
        return found

    def scan(self, after: int = 0, batch: int = 1024) -> Iterator[list[Row]]:
        """Yield all rows and tombstones by key, in batches, each batch of one moment, each checksum verified."""
        while True:
            with self._readers.lent() as connection:
                cursor = connection.execute(f"{_SELECT} WHERE rows.key > ? ORDER BY rows.key LIMIT ?", (after, batch))
                rows = [self._verified(*fields) for fields in cursor]
            if not rows:
                return
            yield rows
            after = rows[-1].key

    def faults(self) -> Iterator[str]:
        """Name every row that is not what its checksum says, and every vector without a row."""
        with self._readers.lent() as connection:
            for fields in connection.execute(f"{_SELECT} ORDER BY rows.key"):
                try:
                    row = self._verified(*fields)
                except GalleryCorrupt:
                    yield f"row {fields[0]} (id {fields[2]!r}) fails its checksum"
                    continue
                if row.vector is not None and row.vector.shape != (self.dimension,):
                    yield f"row {row.key} (id {row.id!r}) has {row.vector.size} dimensions, not {self.dimension}"
            orphans = "SELECT key FROM vectors WHERE key NOT IN (SELECT key FROM rows)"
            yield from (f"vector {key} has no row" for (key,) in connection.execute(orphans))

    def check_pages(self) -> None:
        """Raise `GalleryCorrupt` unless SQLite finds its own structures whole; reads the whole file."""
        with self._readers.lent() as connection:
            schema.check_integrity(connection, self.file)

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Within it, `data_version`, `changes` and `keys_matching_now` see the file as of one moment."""
        self.data_version()  # renews the connection where that is due
        with named_errors(self.file, self._busy_timeout_s), reading(self._follower.connection):
            self._follower.connection.execute("SELECT 1 FROM rows LIMIT 1").fetchone()  # from here on
            yield

    def data_version(self) -> tuple[int, int]:
        """Another value after any commit to the file, by whichever process."""
        return self._follower.data_version()

    def changes(self, seq: int) -> Iterator[Row]:
        """Yield every row and tombstone changed after `seq`, oldest change first, each checksum verified."""
        with named_errors(self.file, self._busy_timeout_s):
            yield from self._changes(self._follower.connection, seq)

    def changes_aside(self, seq: int) -> Iterator[Row]:
        """`changes` for any thread, on a connection of its own."""
        with self._readers.lent() as connection:
            yield from self._changes(connection, seq)

    def keys_matching(self, where: Filter) -> Matching:
        """The live rows that match; reads the rows without their vectors."""
        with self._readers.lent() as connection, reading(connection):
            return _matching(connection, where)

    def keys_matching_now(self, where: Filter) -> Matching:
        """`keys_matching` on the connection of the followed changes."""
        with named_errors(self.file, self._busy_timeout_s):
            return _matching(self._follower.connection, where)

    def close(self) -> None:
        """Close all connections, after a write in progress. The last one to close tidies the log into the file."""
        self._readers.close()
        self._follower.close()
        if self._writer is not None and self._lock is not None:
            self._lock.close()  # waits for a write in progress
            # Checkpoints only where no other process has the file open, so without the lock.
            self._writer.close()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """Hold the one write lock of the file; yields the connection and the last seq given out.

        The lock is taken before the last seq is read, so seqs become visible in the order they were given
        out and no reader can step over one. Tombstones are never dropped, so the largest seq only grows.
        """
        if self._writer is None or self._lock is None:
            raise GalleryReadOnly(
                f"{self.file} is in a folder that may only be read; give this user the right to write, "
                "or name another folder"
            )
        with (
            self._lock.held(),
            named_errors(self.file, self._busy_timeout_s),
            immediate(self._writer),
        ):
            yield self._writer, _last_seq(self._writer)

    def _changes(self, connection: sqlite3.Connection, seq: int) -> Iterator[Row]:
        cursor = connection.execute(f"{_SELECT} WHERE seq > ? ORDER BY seq", (seq,))
        try:
            for fields in cursor:
                yield self._verified(*fields)
        finally:
            cursor.close()  # an open cursor would pin the write-ahead log

    def _rows_in(self, connection: sqlite3.Connection, column: str, values: Sequence[Any]) -> Iterator[Row]:
        for some in _slices(values):
            for fields in connection.execute(f"{_SELECT} WHERE {column} IN ({_marks(some)})", some):
                yield self._verified(*fields)

    def _verified(
        self,
        key: int,
        seq: int,
        name: str,
        blob: bytes | None,
        label: str | None,
        document: str | None,
        content: bytes | None,
        removed: int,
        checksum: int,
    ) -> Row:
        try:
            sound = checksum == row_checksum(key, seq, name, blob, label, document, content)
        except (AttributeError, TypeError):  # a damaged record may give columns of other types
            sound = False
        if not sound or removed != (blob is None):
            raise GalleryCorrupt(f"{self.file}: row {key} (id {name!r}) fails its checksum; {WAY_OUT}")
        return Row(
            key, seq, name, None if blob is None else np.frombuffer(blob, STORED_DTYPE), label, document, content
        )


def new_identity(connection: sqlite3.Connection) -> None:
    """Make this file a gallery of its own, whose snapshots are not those of the one it was copied from."""
    connection.execute("UPDATE meta SET value = ? WHERE key = 'identity'", (secrets.token_hex(16),))


def _keys_for(connection: sqlite3.Connection, ids: Sequence[str]) -> list[int]:
    """The key of each id: the one it has, tombstones included, or the next one that is free."""
    known: dict[str, int] = {}
    for some in _slices(ids):
        known |= connection.execute(f"SELECT id, key FROM rows WHERE id IN ({_marks(some)})", some).fetchall()
    (last,) = connection.execute("SELECT ifnull(max(key), 0) FROM rows").fetchone()
    keys = []
    for name in ids:
        key = known.get(name)
        if key is None:
            last = key = last + 1
        keys.append(key)
    return keys


def _live_keys(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
    """Id to key, of those of `ids` that have a live row, in their order."""
    found: dict[str, int] = {}
    for some in _slices(ids):
        query = f"SELECT id, key FROM rows WHERE removed = 0 AND id IN ({_marks(some)})"
        found |= connection.execute(query, some).fetchall()
    return {name: found[name] for name in ids if name in found}


def _matching(connection: sqlite3.Connection, where: Filter) -> Matching:
    clause, values = where_clause(where)
    seq = _last_seq(connection)
    cursor = connection.execute(f"SELECT key FROM rows WHERE removed = 0 AND {clause} ORDER BY key", values)
    return Matching(seq, np.fromiter((key for (key,) in cursor), np.int64))


def _last_seq(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT ifnull(max(seq), 0) FROM rows").fetchone()[0])


def _slices(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), MAX_VARIABLES):
        yield values[start : start + MAX_VARIABLES]


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _writable(folder: Path) -> bool:
    """Make the folder where it is missing; whether it can be written. Raises where it cannot be there at all."""
    file = folder / FILE_NAME
    try:
        make_folder(folder)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in FORBIDDEN and _is_there(file):
            return False
        raise of_os_error(error, folder) from error
    os.close(descriptor)
    return all(os.access(path, os.W_OK, effective_ids=True) for path in (folder, file) if path.exists())


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # nor may the folder be entered
        return False
