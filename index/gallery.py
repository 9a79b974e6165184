"""The face of the index: add, remove and search vectors of one model, durable and seen by every process."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from index.ann import Entry, Flat, FlatView, Hit
from index.store import Store
from index.vectors import unit_rows


class Neighbor(NamedTuple):
    """One search result."""

    id: str
    score: float  # cosine similarity, -1 to 1
    label: str | None
    metadata: dict[str, Any]


class Gallery:
    """A folder of vectors. All methods may be called from any thread, and several processes may share it.

    A search sees every write that was acknowledged before it began, by this process or another one: SQLite's
    data version says whether there was any, and the rows since the last seen are added to those in memory.
    It reads beside a writer and never waits for one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refreshing = threading.Lock()
        self._flat = Flat(store.dimension)
        self._last_seq = 0
        self._data_version: int | None = None
        self._view = self._flat.view()

    @classmethod
    def open(cls, path: Path, model_digest: str, dimension: int) -> Self:
        """Open the gallery in folder `path`, or start an empty one; refuses vectors of another model."""
        store = Store.open(path, model_digest, dimension)
        gallery = cls(store)
        try:
            gallery._current()
        except BaseException:
            store.close()
            raise
        return gallery

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._current().count

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Insert rows, or replace those whose id is there: all of them, on disk when this returns, or none.

        vectors: (N, dimension) float32; scaled to unit length. One call is one transaction with one fsync:
        send some hundred rows at a time.
        """
        self._store.add(ids, vectors, labels, metadata)

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`, on disk when this returns. Returns how many of them there were."""
        return self._store.remove(ids)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that have a row."""
        with self._refreshing:
            self._refresh()
            return {name for name in ids if name in self._flat}

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbor]]:
        """Return the min(k, count) most similar rows for each query, best first, equal scores ordered by id.

        vectors: (Q, dimension) float32; scaled to unit length.
        """
        queries = unit_rows(vectors, self._store.dimension)
        return [[_neighbor(hit) for hit in hits] for hits in self._current().search(queries, k)]

    def close(self) -> None:
        """Close the file. What was acknowledged is on disk already."""
        with self._refreshing:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> FlatView:
        with self._refreshing:
            self._refresh()
            return self._view

    def _refresh(self) -> None:
        """Bring the rows in memory up to the file."""
        # Read before the rows: a commit in between is then seen twice, never missed.
        data_version = self._store.data_version()
        if data_version == self._data_version:
            return
        for row in self._store.rows_since(self._last_seq):
            if row.vector is None:
                self._flat.drop(row.id)
            else:
                self._flat.put(Entry(row.id, row.label, row.metadata), row.vector)
            self._last_seq = row.seq
        self._view = self._flat.view()
        self._data_version = data_version


def _neighbor(hit: Hit) -> Neighbor:
    entry = hit.entry
    return Neighbor(entry.id, hit.score, entry.label, json.loads(entry.metadata) if entry.metadata else {})
