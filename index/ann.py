"""The acceleration: exact search with FAISS over the rows in memory. Disposable, rebuilt from the truth.

There is no snapshot on disk: exact search needs no training, and opening a gallery of 5,000 rows of 512 with
every checksum verified takes about 50 ms (50,000: 0.5 s). A snapshot would save most of that, but its ids
and labels would still have to be read, and it could be wrong.
"""

from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np

# Dead rows are over-fetched and dropped; beyond this many, copying the live ones is the cheaper way.
MAX_DEAD = 256
FIRST_CAPACITY = 256


class Entry(NamedTuple):
    """What a search answers about a row, beside its score."""

    id: str
    label: str | None
    metadata: str | None  # a JSON object


class Hit(NamedTuple):
    score: float  # cosine similarity, -1 to 1
    entry: Entry


@dataclass(frozen=True)
class FlatView:
    """The rows at one moment; later changes never show in it, so any number of threads may search it."""

    vectors: np.ndarray  # (rows, dimension) float32 of unit length
    entries: list[Entry]  # only ever appended to; those from len(vectors) on belong to later views
    dead: frozenset[int]  # positions whose row was replaced or removed

    @property
    def count(self) -> int:
        return len(self.vectors) - len(self.dead)

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """Return the min(k, count) most similar rows of each query, best first, equal scores ordered by id.

        queries: (Q, dimension) float32 of unit length.
        """
        k = min(k, self.count)
        if k <= 0 or len(queries) == 0:
            return [[] for _ in queries]
        # OpenMP keeps this setting per thread. Requests already run side by side, one core each.
        faiss.omp_set_num_threads(1)
        rows = len(self.vectors)
        fetch = min(rows, k + len(self.dead) + 1)
        while True:
            scores, positions = faiss.knn(queries, self.vectors, fetch, metric=faiss.METRIC_INNER_PRODUCT)
            hits = [self._live_hits(*row) for row in zip(scores.tolist(), positions.tolist(), strict=True)]
            # A k-th score equal to the last one fetched may have equals beyond it with smaller ids.
            complete = all(found[k - 1].score > row[-1] for found, row in zip(hits, scores, strict=True))
            if complete or fetch == rows:
                return [found[:k] for found in hits]
            fetch = min(rows, 2 * fetch)

    def _live_hits(self, scores: list[float], positions: list[int]) -> list[Hit]:
        pairs = zip(scores, positions, strict=True)
        hits = [Hit(score, self.entries[position]) for score, position in pairs if position not in self.dead]
        hits.sort(key=lambda hit: (-hit.score, hit.entry.id))
        return hits


class Flat:
    """Rows in memory, changed by one thread at a time and searched through the views it hands out.

    A replaced or removed row keeps its place and is marked dead, and new rows only go behind the last one,
    so a view stays true without a copy.
    """

    def __init__(self, dimension: int) -> None:
        self._vectors = np.empty((FIRST_CAPACITY, dimension), np.float32)
        self._entries: list[Entry] = []
        self._positions: dict[str, int] = {}  # id -> position of its live row
        self._dead: set[int] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._positions

    def put(self, entry: Entry, vector: np.ndarray) -> None:
        """Insert a row or replace the one of the same id. vector: (dimension,) float32 of unit length."""
        self.drop(entry.id)
        position = len(self._entries)
        if position == len(self._vectors):
            self._vectors = _with_room(self._vectors)
        self._vectors[position] = vector
        self._entries.append(entry)
        self._positions[entry.id] = position

    def drop(self, name: str) -> None:
        """Remove the row of this id, if there is one."""
        position = self._positions.pop(name, None)
        if position is not None:
            self._dead.add(position)

    def view(self) -> FlatView:
        """The rows as they are now."""
        if len(self._dead) > MAX_DEAD:
            self._forget_dead()
        return FlatView(self._vectors[: len(self._entries)], self._entries, frozenset(self._dead))

    def _forget_dead(self) -> None:
        live = [position for position in range(len(self._entries)) if position not in self._dead]
        # New objects: views handed out before go on with the old ones.
        self._vectors = _with_room(self._vectors[live])
        self._entries = [self._entries[position] for position in live]
        self._positions = {entry.id: position for position, entry in enumerate(self._entries)}
        self._dead = set()


def _with_room(vectors: np.ndarray) -> np.ndarray:
    """A copy with as many rows again behind it, so that appending costs amortised constant time."""
    larger = np.empty((max(FIRST_CAPACITY, 2 * len(vectors)), vectors.shape[1]), np.float32)
    larger[: len(vectors)] = vectors
    return larger
