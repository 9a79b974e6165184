"""The tables of a gallery's file: made, carried over from the first format, and checked."""

import secrets
import sqlite3
import zlib
from pathlib import Path
from typing import NamedTuple

from index.errors import GalleryCorrupt, GalleryError, WrongModel
from index.seal import sealed
from index.sqlite import WAY_OUT

FORMAT = "2"
# Up to so many rows, opening reads every page to find rows that a damaged one would silently drop. Beyond,
# `akin index verify` does. The checksum of a row is compared whenever it is read as a whole.
CHECKED_AT_OPEN = 50_000

CREATE = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """
CREATE TABLE rows (
    key INTEGER PRIMARY KEY,    -- never given out again
    seq INTEGER NOT NULL UNIQUE,
    id TEXT NOT NULL UNIQUE,
    label TEXT,
    metadata TEXT,              -- a JSON object, or NULL for an empty one
    content BLOB,               -- digest of the image
    removed INTEGER NOT NULL,   -- 1 in a tombstone
    checksum INTEGER NOT NULL   -- over the row and its vector
) STRICT
""",
    # Apart, so that a filter reads a hundredth of the bytes. Little-endian float32 of unit length.
    "CREATE TABLE vectors (key INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT",
    "CREATE INDEX rows_content ON rows (content) WHERE content IS NOT NULL",
    "CREATE INDEX rows_removed ON rows (key) WHERE removed = 1",
)


class Meta(NamedTuple):
    """What a gallery's file says of itself."""

    model_digest: str
    dimension: int
    identity: str  # of this gallery, copied by nothing but a copy of the file


def create_or_migrate(connection: sqlite3.Connection, file: Path, model_digest: str, dimension: int) -> None:
    """Make the tables in a new file, or bring those of format 1 up to date; within a transaction."""
    tables = _tables(connection)
    if not tables:
        if (file.parent / "snapshot.akin").exists():
            raise GalleryCorrupt(
                f"{file} is empty, and a snapshot of what it held lies beside it; restore it from a copy, "
                "or delete both to start an empty gallery"
            )
        _create(connection, model_digest, str(dimension))
    elif {"meta", "rows"} <= tables and (meta := _meta(connection)).get("format") == "1":
        _check_model(meta, file, model_digest, dimension)
        _migrate(connection, file)


def check(
    connection: sqlite3.Connection, file: Path, model_digest: str, dimension: int, check_pages: bool = True
) -> Meta:
    """Refuse a file that is not a gallery, is damaged, or belongs to another model."""
    if not {"meta", "rows"} <= _tables(connection):
        raise GalleryCorrupt(f"{file} is a database of something else; give the gallery a folder of its own")
    meta = _meta(connection)
    if meta.get("format") != FORMAT:
        raise GalleryError(f"{file} has format {meta.get('format')}, not {FORMAT}; use the akin that wrote it")
    (last_key,) = connection.execute("SELECT ifnull(max(key), 0) FROM rows").fetchone()
    if check_pages and last_key <= CHECKED_AT_OPEN:
        check_integrity(connection, file)
    _check_model(meta, file, model_digest, dimension)
    return Meta(model_digest, dimension, meta.get("identity", ""))


def _check_model(meta: dict[str, str], file: Path, model_digest: str, dimension: int) -> None:
    stored_digest = meta.get("model_digest", "unknown")
    if stored_digest != model_digest:
        raise WrongModel(
            f"{file} holds vectors of model {stored_digest[:12]}, this encoder is {model_digest[:12]} "
            f"and its vectors cannot be compared with them; move {file.parent} away and start again, then "
            f"embed images of your own anew: akin index add FOLDER"
        )
    stored_dimension = meta.get("dimension", "unknown")
    if stored_dimension != str(dimension):
        raise WrongModel(f"{file} has vectors of dimension {stored_dimension}, this encoder gives {dimension}")


def check_integrity(connection: sqlite3.Connection, file: Path) -> None:
    """Raise `GalleryCorrupt` unless SQLite finds its own structures whole; reads the whole file."""
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise GalleryCorrupt(f"{file} is damaged ({verdict}); {WAY_OUT}")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM meta"))


def _create(connection: sqlite3.Connection, model_digest: str, dimension: str) -> None:
    for statement in CREATE:
        connection.execute(statement)
    meta = {
        "format": FORMAT,
        "model_digest": model_digest,
        "dimension": dimension,
        "identity": secrets.token_hex(16),
    }
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    """Format 1 had one table, its vectors in it, and no keys: seqs never repeat, so they become the keys."""
    check_integrity(connection, file)
    meta = _meta(connection)
    old = connection.execute("SELECT seq, id, vector, label, metadata, checksum FROM rows").fetchall()
    connection.execute("DROP TABLE rows")
    connection.execute("DROP TABLE meta")
    _create(connection, meta["model_digest"], meta["dimension"])
    for seq, name, blob, label, document, checksum in old:
        text = f"{seq}\0{name}\0{label or ''}\0{document or ''}"
        if checksum != zlib.crc32(blob or b"", zlib.crc32(text.encode(errors="replace"))):
            raise GalleryCorrupt(f"{file}: row {seq} (id {name!r}) fails its checksum; {WAY_OUT}")
        if "\0" in name or "\0" in (label or ""):
            raise GalleryError(f"{file}: row {seq} (id {name!r}) holds a NUL character; remove it with akin 0.2")
        row = sealed(seq, seq, name, blob, label, document, None)
        connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        if blob is not None:
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (seq, blob))
