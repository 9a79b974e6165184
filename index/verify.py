"""Everything in a gallery compared with its checksums, and the snapshot with the truth."""

from pathlib import Path

import numpy as np

from index import snapshot
from index.base import Base
from index.errors import GalleryCorrupt, GalleryError
from index.flat import Entry
from index.store import FILE_NAME, Store


def verify(folder: Path, model_digest: str, dimension: int) -> list[str]:
    """A line for each fault, none where all is sound. Reads every byte; writers may go on meanwhile.

    Raises `index.errors.GalleryError` where the folder holds no gallery of this model, or none that SQLite can read.
    """
    if not (folder / FILE_NAME).exists():
        raise GalleryError(f"no gallery in {folder}; name a folder that has one")
    store = Store.open(folder, model_digest, dimension, check_pages=False)
    try:
        faults = [*_pages(store), *_rows(store)]
        file, owner = folder / snapshot.FILE_NAME, snapshot.Owner(store.identity, model_digest, dimension)
        if reason := snapshot.fault(folder, owner, store.last_seq):
            faults.append(f"{file}: {reason}; it is not used, and built anew when the gallery is next opened")
        elif not faults and (base := snapshot.read(folder, owner, store.last_seq)) is not None:
            faults += (f"{file}: {fault}; run `akin index rebuild`" for fault in _differences(store, base))
        return faults
    finally:
        store.close()


def _pages(store: Store) -> list[str]:
    try:
        store.check_pages()
    except GalleryCorrupt as error:
        return [str(error)]
    return []


def _rows(store: Store) -> list[str]:
    found: list[str] = []
    try:
        found += (f"{store.file}: {fault}" for fault in store.faults())
    except GalleryCorrupt as error:  # SQLite cannot read on
        found.append(str(error))
    return found


def _differences(store: Store, base: Base) -> list[str]:
    """Where the snapshot is not what the truth says, among the rows that have not changed since."""
    found = []
    for rows in store.scan():
        for row in rows:
            position = base.position_of(row.key)
            if row.seq > base.last_seq and (position < 0 or base.seqs[position] != row.seq):
                continue  # compared when a gallery opens it
            if row.vector is None:
                if position >= 0:
                    found.append(f"row {row.key} (id {row.id!r}) is in it, and was removed before")
            elif position < 0 or base.seqs[position] != row.seq:
                found.append(f"row {row.key} (id {row.id!r}) is missing from it")
            elif base.documents.at(np.array([position])) != [Entry.of(row)]:
                found.append(f"row {row.key} (id {row.id!r}) stands in it with another id, label or metadata")
    return found
