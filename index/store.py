"""The truth of a gallery: ids, vectors, labels and metadata in one SQLite file.

Every change gets the next `seq`, a removal too (its row stays as a tombstone without a vector), so a
reader that knows the last seq it has seen learns everything since from one range scan.
"""

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from index.errors import GalleryCorrupt, GalleryError, RowRefused, WrongModel
from index.sqlite import WAY_OUT, connect, immediate, make_folder, named_errors
from index.vectors import unit_rows

FILE_NAME = "gallery.sqlite"
FORMAT = "1"
# Little-endian whatever the machine, so that a gallery can be copied between machines.
STORED_DTYPE = np.dtype("<f4")

_CREATE_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"
_CREATE_ROWS = """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    vector BLOB,      -- little-endian float32 of unit length; NULL in a tombstone
    label TEXT,
    metadata TEXT,    -- a JSON object, or NULL for an empty one
    checksum INTEGER NOT NULL
) STRICT
"""
_PUT = "INSERT OR REPLACE INTO rows (seq, id, vector, label, metadata, checksum) VALUES (?, ?, ?, ?, ?, ?)"


class Row(NamedTuple):
    """One row as it is stored."""

    seq: int
    id: str
    vector: np.ndarray | None  # (dimension,) float32 of unit length; None: this id was removed
    label: str | None
    metadata: str | None  # a JSON object


class Store:
    """One process's connections to the file: one that writes, one that reads and never waits for a writer.

    `add` and `remove` may be called from any thread. The reading methods share one connection: call them
    from one thread at a time.
    """

    def __init__(
        self,
        file: Path,
        dimension: int,
        busy_timeout_s: float,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
    ) -> None:
        self.file = file
        self.dimension = dimension
        self._busy_timeout_s = busy_timeout_s
        self._writer = writer
        self._reader = reader
        self._writing = threading.Lock()

    @classmethod
    def open(cls, folder: Path, model_digest: str, dimension: int, busy_timeout_s: float = 30.0) -> Self:
        """Open the gallery in `folder`, or make an empty one for this model there.

        A writer waits at most `busy_timeout_s` seconds for another process's write to end.
        """
        make_folder(folder)
        file = folder / FILE_NAME
        with named_errors(file, busy_timeout_s):
            writer = connect(file, busy_timeout_s)
            try:
                _create_if_new(writer, model_digest, dimension)
                _check(writer, file, model_digest, dimension)
                reader = connect(file, busy_timeout_s)
            except BaseException:
                writer.close()
                raise
        return cls(file, dimension, busy_timeout_s, writer, reader)

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        only_if_untouched: bool = False,
    ) -> bool:
        """Insert rows, or replace those whose id is there; on disk, all of them, when this returns.

        vectors: (N, dimension). One call is one transaction. Where an id comes twice, the later row stays.
        With `only_if_untouched`, nothing happens to a gallery that has ever been written to, and the
        answer is False.
        """
        if not len(ids) == len(vectors) == len(labels) == (len(ids) if metadata is None else len(metadata)):
            raise RowRefused(
                f"{len(ids)} ids, {len(vectors)} vectors, {len(labels)} labels and "
                f"{'no' if metadata is None else len(metadata)} metadata: send one of each per row"
            )
        for row, (name, label) in enumerate(zip(ids, labels, strict=True)):
            _check_text("id", row, name)
            if label is not None:
                _check_text("label", row, label)
        documents: list[str | None] = [None] * len(ids)
        if metadata is not None:
            documents = [_to_json(row, fields) for row, fields in enumerate(metadata)]
        stored = unit_rows(vectors, self.dimension, names=ids).astype(STORED_DTYPE)
        with self._transaction() as (connection, last_seq):
            if only_if_untouched and last_seq > 0:
                return False
            rows = zip(ids, (vector.tobytes() for vector in stored), labels, documents, strict=True)
            connection.executemany(_PUT, (_sealed(seq, *row) for seq, row in enumerate(rows, last_seq + 1)))
        return True

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`, on disk when this returns; ids that are not there are no error.

        Returns how many rows there were.
        """
        with self._transaction() as (connection, last_seq):
            present = [name for name in dict.fromkeys(ids) if _is_live(connection, name)]
            connection.executemany(
                _PUT, (_sealed(seq, name, None, None, None) for seq, name in enumerate(present, last_seq + 1))
            )
        return len(present)

    def untouched(self) -> bool:
        """Whether nothing was ever written here."""
        with named_errors(self.file, self._busy_timeout_s):
            return self._reader.execute("SELECT 1 FROM rows LIMIT 1").fetchone() is None

    def data_version(self) -> int:
        """A number that is another one after any commit to the file, by whichever process (about 10 µs)."""
        with named_errors(self.file, self._busy_timeout_s):
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def rows_since(self, seq: int) -> Iterator[Row]:
        """Yield every row and tombstone changed after `seq`, oldest change first, each checksum verified."""
        with named_errors(self.file, self._busy_timeout_s):
            cursor = self._reader.execute(
                "SELECT seq, id, vector, label, metadata, checksum FROM rows WHERE seq > ? ORDER BY seq",
                (seq,),
            )
            try:
                for row_seq, name, blob, label, document, checksum in cursor:
                    if checksum != _checksum(row_seq, name, blob, label, document):
                        raise GalleryCorrupt(
                            f"{self.file}: row {row_seq} (id {name!r}) fails its checksum; {WAY_OUT}"
                        )
                    vector = None if blob is None else np.frombuffer(blob, STORED_DTYPE)
                    yield Row(row_seq, name, vector, label, document)
            finally:
                cursor.close()  # an open cursor would pin the write-ahead log

    def close(self) -> None:
        """Close both connections, after a write in progress."""
        with self._writing:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        """Hold the one write lock of the file; yields the connection and the last seq given out.

        The lock is taken before the last seq is read, so seqs become visible in the order they were given
        out and no reader can step over one. Tombstones are never dropped, so the largest seq only grows.
        """
        with self._writing, named_errors(self.file, self._busy_timeout_s), immediate(self._writer):
            (last_seq,) = self._writer.execute("SELECT ifnull(max(seq), 0) FROM rows").fetchone()
            yield self._writer, last_seq


def _create_if_new(connection: sqlite3.Connection, model_digest: str, dimension: int) -> None:
    with immediate(connection):
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0:
            return
        connection.execute(_CREATE_META)
        connection.execute(_CREATE_ROWS)
        meta = {"format": FORMAT, "model_digest": model_digest, "dimension": str(dimension)}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())


def _check(connection: sqlite3.Connection, file: Path, model_digest: str, dimension: int) -> None:
    """Refuse a file that is not a gallery, is damaged, or belongs to another model."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"meta", "rows"} <= tables:
        raise GalleryCorrupt(f"{file} is a database of something else; give the gallery a folder of its own")
    # Checksums guard what is in a row; this finds rows that a damaged page would silently drop.
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise GalleryCorrupt(f"{file} is damaged ({verdict}); {WAY_OUT}")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if meta.get("format") != FORMAT:
        raise GalleryError(
            f"{file} has format {meta.get('format')}, not {FORMAT}; use the akin that wrote it"
        )
    stored_digest = meta.get("model_digest", "unknown")
    if stored_digest != model_digest:
        raise WrongModel(
            f"{file} holds vectors of model {stored_digest[:12]}, this encoder is {model_digest[:12]} "
            f"and its vectors cannot be compared with them; move {file.parent} away and start again, then "
            f"embed images of your own anew: akin index add FOLDER"
        )
    stored_dimension = meta.get("dimension", "unknown")
    if stored_dimension != str(dimension):
        raise WrongModel(
            f"{file} has vectors of dimension {stored_dimension}, this encoder gives {dimension}"
        )


def _is_live(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM rows WHERE id = ? AND vector IS NOT NULL"
    return connection.execute(query, (name,)).fetchone() is not None


def _check_text(what: str, row: int, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise RowRefused(f"{what} {text!r} of row {row} must be a non-empty string; nothing was changed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowRefused(f"{what} {text!r} of row {row} is not valid Unicode; rename it") from error


def _to_json(row: int, metadata: Mapping[str, Any]) -> str | None:
    try:
        return json.dumps(dict(metadata), allow_nan=False) if metadata else None
    except (TypeError, ValueError) as error:
        raise RowRefused(f"metadata of row {row} is no JSON object ({error}); nothing was changed") from error


def _checksum(seq: int, name: str, blob: bytes | None, label: str | None, document: str | None) -> int:
    return zlib.crc32(blob or b"", zlib.crc32(f"{seq}\0{name}\0{label or ''}\0{document or ''}".encode()))


def _sealed(
    seq: int, name: str, blob: bytes | None, label: str | None, document: str | None
) -> tuple[int, str, bytes | None, str | None, str | None, int]:
    return seq, name, blob, label, document, _checksum(seq, name, blob, label, document)
