"""Exact search over rows in memory: a whole small gallery, or what changed in a large one since it was built."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import faiss
import numpy as np
import orjson

from index.face import Neighbor
from index.store import Row

# Dead rows are over-fetched and dropped; beyond this many, copying the live ones is the cheaper way.
MAX_DEAD = 256
FIRST_CAPACITY = 256


class Entry(NamedTuple):
    """What is known of a row beside its vector."""

    id: str
    label: str  # "" for none
    metadata: str  # a JSON object, "" for an empty one

    @classmethod
    def of(cls, row: Row) -> Self:
        """That of a row of the truth."""
        return cls(row.id, row.label or "", row.metadata or "")


def neighbor(score: float, entry: Entry) -> Neighbor:
    """A row as the result of a search."""
    name, label, metadata = entry
    # Rounding, of floats or of codes, may lift a row and itself a little above 1.
    return Neighbor(name, min(score, 1.0), label or None, orjson.loads(metadata) if metadata else {})


def best_first(neighbors: list[Neighbor]) -> list[Neighbor]:
    """Sorted by falling score, equal scores by id."""
    return sorted(neighbors, key=lambda one: (-one.score, one.id))


@dataclass(frozen=True)
class FlatView:
    """The rows at one moment; later changes never show in it, so any number of threads may search it."""

    vectors: np.ndarray  # (rows, dimension) float32 of unit length
    keys: np.ndarray  # (rows,) int64
    seqs: np.ndarray  # (rows,) int64
    entries: list[Entry]  # only ever appended to; those from len(vectors) on belong to later views
    dead: frozenset[int]  # positions whose row was replaced or removed

    @property
    def count(self) -> int:
        return len(self.vectors) - len(self.dead)

    def live(self) -> np.ndarray:
        """Positions of the rows that are not dead, ascending."""
        return np.setdiff1d(np.arange(len(self.vectors)), np.fromiter(self.dead, np.int64), assume_unique=True)

    def among(self, keys: np.ndarray) -> "FlatView":
        """Only the rows with one of these keys; copies them."""
        places = self.live()
        places = places[np.isin(self.keys[places], keys, assume_unique=True)]
        entries = [self.entries[place] for place in places]
        return FlatView(self.vectors[places], self.keys[places], self.seqs[places], entries, frozenset())

    def search(self, queries: np.ndarray, k: int) -> list[list[Neighbor]]:
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
            found = [self._live(*row) for row in zip(scores.tolist(), positions.tolist(), strict=True)]
            # A k-th score equal to the last one fetched may have equals beyond it with smaller ids.
            complete = all(some[k - 1].score > row[-1] for some, row in zip(found, scores, strict=True))
            if complete or fetch == rows:
                return [some[:k] for some in found]
            fetch = min(rows, 2 * fetch)

    def _live(self, scores: list[float], positions: list[int]) -> list[Neighbor]:
        pairs = zip(scores, positions, strict=True)
        return best_first(
            [neighbor(score, self.entries[position]) for score, position in pairs if position not in self.dead]
        )


class Flat:
    """Rows in memory, changed by one thread at a time and searched through the views it hands out.

    A replaced or removed row keeps its place and is marked dead, and new rows only go behind the last one,
    so a view stays true without a copy.
    """

    def __init__(self, dimension: int) -> None:
        self._vectors = np.empty((FIRST_CAPACITY, dimension), np.float32)
        self._keys = np.empty(FIRST_CAPACITY, np.int64)
        self._seqs = np.empty(FIRST_CAPACITY, np.int64)
        self._entries: list[Entry] = []
        self._positions: dict[int, int] = {}  # key -> position of its live row
        self._dead: set[int] = set()

    def put(self, key: int, seq: int, entry: Entry, vector: np.ndarray) -> None:
        """Insert a row or replace the one of the same key. vector: (dimension,) float32 of unit length."""
        self.drop(key)
        position = len(self._entries)
        if position == len(self._vectors):
            self._vectors, self._keys, self._seqs = (
                _with_room(rows) for rows in (self._vectors, self._keys, self._seqs)
            )
        self._vectors[position], self._keys[position], self._seqs[position] = vector, key, seq
        self._entries.append(entry)
        self._positions[key] = position

    def drop(self, key: int) -> None:
        """Remove the row of this key, if there is one."""
        position = self._positions.pop(key, None)
        if position is not None:
            self._dead.add(position)

    def view(self) -> FlatView:
        """The rows as they are now."""
        if len(self._dead) > MAX_DEAD:
            self._forget_dead()
        rows = len(self._entries)
        return FlatView(
            self._vectors[:rows], self._keys[:rows], self._seqs[:rows], self._entries, frozenset(self._dead)
        )

    def _forget_dead(self) -> None:
        live = [position for position in range(len(self._entries)) if position not in self._dead]
        # New objects: views handed out before go on with the old ones.
        self._vectors, self._keys, self._seqs = (
            _with_room(rows[live]) for rows in (self._vectors, self._keys, self._seqs)
        )
        self._entries = [self._entries[position] for position in live]
        self._positions = {key: position for position, key in enumerate(self._keys[: len(live)].tolist())}
        self._dead = set()


def _with_room(rows: np.ndarray) -> np.ndarray:
    """A copy with as many rows again behind it, so that appending costs amortised constant time."""
    larger = np.empty((max(FIRST_CAPACITY, 2 * len(rows)), *rows.shape[1:]), rows.dtype)
    larger[: len(rows)] = rows
    return larger
