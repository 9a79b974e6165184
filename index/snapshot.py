"""The base of a large gallery on disk: disposable, whole or not there, and never taken for another one's.

    FAISS index | keys | seqs | bounds | text | a JSON object | its length | SHA-256 of all before

FAISS loads many a damaged file without a word, so nothing is parsed before the checksum has been compared.
"""

import hashlib
import json
import logging
import os
import secrets
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np

from index.base import Base
from index.documents import Documents
from index.errors import GalleryFull
from index.sqlite import of_os_error, sync_folder

FILE_NAME = "snapshot.akin"
FORMAT = 1
CHUNK = 1 << 22
LENGTH = struct.Struct("<I")
DIGEST_BYTES = 32
# What reading bytes that are no snapshot may end in; FAISS tells by a RuntimeError.
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError)

log = logging.getLogger("akin")


@dataclass(frozen=True)
class Owner:
    """Whose snapshot it is."""

    identity: str  # of the gallery
    model_digest: str
    dimension: int


def write(folder: Path, owner: Owner, base: Base) -> dict[str, Any]:
    """Put a snapshot in the place of the former one, durably and at once. Returns what its header says.

    Raises `GalleryFull` where the disk does not take it; the former one is then as it was.
    """
    text = base.documents.text
    arrays = [array.astype("<i8", copy=False) for array in (base.keys, base.seqs, base.documents.bounds)]
    try:
        part = folder / f"{FILE_NAME}.{secrets.token_hex(4)}.part"
        try:
            with part.open("xb") as file:
                digest = hashlib.sha256()

                def put(data: bytes) -> int:
                    digest.update(data)
                    file.write(data)
                    return len(data)

                faiss.write_index(base.index, faiss.PyCallbackIOWriter(put))
                index_bytes = file.tell()
                for array in arrays:
                    put(array.tobytes())
                put(text)
                header = {
                    "format": FORMAT,
                    **owner.__dict__,
                    "factory": base.factory,
                    "rows": len(base),
                    "last_seq": base.last_seq,
                    "knows": max(base.last_seq, int(base.seqs.max(initial=0))),  # rows may be newer than the base
                    "index_bytes": index_bytes,
                    "text_bytes": len(text),
                    "written": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                line = json.dumps(header).encode()
                put(line)
                put(LENGTH.pack(len(line)))
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / FILE_NAME)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync_folder(folder)
    except OSError as error:
        raise of_os_error(error, folder / FILE_NAME) from error
    except RuntimeError as error:  # how FAISS tells that a write failed
        raise GalleryFull(f"{folder / FILE_NAME} cannot be written ({error}); the truth is safe") from error
    return header


def read(folder: Path, owner: Owner, last_seq: Callable[[], int]) -> Base | None:
    """The base in the snapshot, or None where there is none that can be trusted: the log says why.

    last_seq: asks the truth for its own; a snapshot that knows more belongs to another state of it.
    """
    file = folder / FILE_NAME
    try:
        with file.open("rb") as stream:
            fault, header = _examine(stream, owner, last_seq)
            if fault is None:
                return _load(stream, header)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        fault = str(error)
    log.warning("%s is not used and will be built anew: %s", file, fault)
    return None


def describe(folder: Path) -> dict[str, Any] | None:
    """What the header of the snapshot says, unchecked, and its size. None where there is none."""
    try:
        with (folder / FILE_NAME).open("rb") as stream:
            header, _ = _header(stream)
            return {key: header[key] for key in ("last_seq", "written", "factory", "rows")} | {
                "bytes": os.fstat(stream.fileno()).st_size
            }
    except UNREADABLE:
        return None


def version(folder: Path) -> tuple[int, int] | None:
    """Another value after another snapshot took its place."""
    try:
        found = (folder / FILE_NAME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def fault(folder: Path, owner: Owner, last_seq: Callable[[], int]) -> str | None:
    """Why the snapshot in `folder` cannot be trusted, None where it can or there is none."""
    try:
        with (folder / FILE_NAME).open("rb") as stream:
            return _examine(stream, owner, last_seq)[0]
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        return str(error)


def remove(folder: Path) -> None:
    """Delete the snapshot, where there is one and it can be."""
    with suppress(OSError):
        (folder / FILE_NAME).unlink()


def remove_parts(folder: Path) -> None:
    """Delete what killed writers left. Only for the one that holds the lock on building."""
    for part in folder.glob(FILE_NAME + ".*.part"):
        with suppress(OSError):
            part.unlink()


def _examine(stream: IO[bytes], owner: Owner, last_seq: Callable[[], int]) -> tuple[str | None, dict[str, Any]]:
    """Why not to trust it, if so, and its header."""
    size = stream.seek(0, os.SEEK_END)
    if size < DIGEST_BYTES + LENGTH.size:
        return f"it has {size} bytes only", {}
    stream.seek(size - DIGEST_BYTES)
    stated = stream.read(DIGEST_BYTES)
    if _sha256(stream, size - DIGEST_BYTES) != stated:
        return "its bytes do not fit its checksum", {}
    header, _ = _header(stream)
    if header.get("format") != FORMAT:
        return f"its format is {header.get('format')}, not {FORMAT}", header
    if header["model_digest"] != owner.model_digest:
        return f"it is of model {header['model_digest'][:12]}, not {owner.model_digest[:12]}", header
    if header["dimension"] != owner.dimension or header["identity"] != owner.identity:
        return "it is of another gallery", header
    if header["knows"] > (known := last_seq()):
        return f"it knows change {header['knows']}, the truth only {known}", header
    return None, header


def _header(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """The JSON object at the end, and where it begins."""
    size = stream.seek(0, os.SEEK_END)
    end = size - DIGEST_BYTES - LENGTH.size
    if end < 0:
        raise ValueError(f"it has {size} bytes only")
    stream.seek(end)
    (length,) = LENGTH.unpack(stream.read(LENGTH.size))
    if length > end:
        raise ValueError("its header is longer than it is")
    stream.seek(end - length)
    return json.loads(stream.read(length)), end - length


def _load(stream: IO[bytes], header: dict[str, Any]) -> Base:
    stream.seek(0)
    index = faiss.read_index(faiss.PyCallbackIOReader(stream.read))
    stream.seek(header["index_bytes"])
    rows = header["rows"]
    keys, seqs, bounds = (np.frombuffer(stream.read(8 * count), "<i8") for count in (rows, rows, rows + 1))
    documents = Documents(stream.read(header["text_bytes"]), bounds)
    whole = bounds[0] == 0 and bounds[-1] == len(documents.text)
    if not (index.ntotal == len(keys) == len(seqs) == len(documents) == rows and whole):
        raise ValueError(f"it says {rows} rows and holds {index.ntotal}")
    return Base(index, header["factory"], keys, seqs, documents, header["last_seq"])


def _sha256(stream: IO[bytes], size: int) -> bytes:
    digest = hashlib.sha256()
    stream.seek(0)
    read: Callable[[int], bytes] = stream.read
    while size > 0 and (chunk := read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()
