"""A gallery in memory: the accelerated base, what changed since, and a mask between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from index.base import Base
from index.face import Neighbor
from index.flat import Entry, Flat, FlatView, best_first, neighbor
from index.plan import FLAT, reranked
from index.store import Row

RERANK_FACTOR = 4  # candidates for each neighbour, where scores are estimates
RERANK_LEAST = 40

RowsByKey = Callable[[Sequence[int]], dict[int, Row]]


@dataclass(frozen=True)
class View:
    """The rows at one moment. Later changes never show in it, so any number of threads may search it."""

    base: Base | None
    admitted: np.ndarray | None  # a bit for each position of the base, packed little-endian; None: all are live
    masked: int  # positions of the base that are not live
    delta: FlatView
    last_seq: int

    @property
    def count(self) -> int:
        return self.delta.count + (0 if self.base is None else len(self.base) - self.masked)

    @property
    def factory(self) -> str:
        return FLAT if self.base is None else self.base.factory

    def search(
        self, queries: np.ndarray, k: int, rows_by_key: RowsByKey, keys: np.ndarray | None = None
    ) -> list[list[Neighbor]]:
        """Return the most similar rows of each query, best first, equal scores ordered by id: min(k, rows) of them.

        queries: (Q, dimension) float32 of unit length. keys: (M,) int64, ascending, those that may be found; None for
        all. rows_by_key: the truth, asked for exact vectors where the base only estimates.
        """
        delta = (self.delta if keys is None else self.delta.among(keys)).search(queries, k)
        if self.base is None or not len(queries) or k <= 0:
            return delta
        return [
            best_first(old + new)[:k]
            for old, new in zip(self._search_base(self.base, queries, k, rows_by_key, keys), delta, strict=True)
        ]

    def _search_base(
        self, base: Base, queries: np.ndarray, k: int, rows_by_key: RowsByKey, keys: np.ndarray | None
    ) -> list[list[Neighbor]]:
        admitted, rows = self.admitted, len(base) - self.masked
        if keys is not None:
            admitted = self._admit(base, keys)
            rows = int(np.bitwise_count(admitted).sum())
        k = min(k, rows)
        if k <= 0:
            return [[] for _ in queries]
        if not reranked(base.factory):
            scores, positions = base.search(queries, k, admitted, rows / len(base))
            return [_neighbors(base, *row) for row in zip(scores, positions, strict=True)]
        fetch = min(rows, max(RERANK_FACTOR * k, RERANK_LEAST))
        scores, positions = base.search(queries, fetch, admitted, rows / len(base))
        exact = rows_by_key(np.unique(base.keys[positions]).tolist())
        return [
            best_first(_neighbors(base, _exact_scores(base, query, some, found, exact), found))[:k]
            for query, some, found in zip(queries, scores, positions, strict=True)
        ]

    def _admit(self, base: Base, keys: np.ndarray) -> np.ndarray:
        """The live positions of these keys, a bit each."""
        chosen = np.zeros(len(base), bool)
        chosen[base.positions_of(keys)] = True
        bits = np.packbits(chosen, bitorder="little")
        return bits if self.admitted is None else bits & self.admitted


class Overlay:
    """The changing side: one thread at a time applies what the truth says, and hands out views."""

    def __init__(self, dimension: int, base: Base | None = None) -> None:
        self._base = base
        self._delta = Flat(dimension)
        self._live = None if base is None else base.seqs != 0  # (N,) bool
        self._admitted: np.ndarray | None = None
        self._masked = 0
        self._stale_mask = self._live is not None and not bool(self._live.all())
        self.last_seq = 0 if base is None else base.last_seq

    def apply(self, row: Row) -> None:
        """Take in one change of the truth; in the order of their seqs."""
        self.last_seq = row.seq
        position = -1 if self._base is None else self._base.position_of(row.key)
        current = False
        if self._base is not None and self._live is not None and position >= 0:
            current = int(self._base.seqs[position]) == row.seq
            self._stale_mask |= bool(self._live[position]) != current
            self._live[position] = current
        if row.vector is None or current:
            self._delta.drop(row.key)
        else:
            self._delta.put(row.key, row.seq, Entry.of(row), row.vector)

    def view(self) -> View:
        """The rows as they are now."""
        if self._stale_mask and self._live is not None:
            self._masked = len(self._live) - int(self._live.sum())
            self._admitted = np.packbits(self._live, bitorder="little") if self._masked else None
            self._stale_mask = False
        return View(self._base, self._admitted, self._masked, self._delta.view(), self.last_seq)


def _neighbors(base: Base, scores: np.ndarray, positions: np.ndarray) -> list[Neighbor]:
    if len(positions) and positions[-1] < 0:
        scores, positions = scores[positions >= 0], positions[positions >= 0]
    return list(map(neighbor, scores.tolist(), base.documents.at(positions)))


def _exact_scores(
    base: Base, query: np.ndarray, scores: np.ndarray, positions: np.ndarray, rows: dict[int, Row]
) -> np.ndarray:
    """Cosines with the truth's vectors; a row that changed since this base was built keeps its estimate."""
    exact = scores.copy()
    for place, position in enumerate(positions.tolist()):
        row = rows.get(int(base.keys[position])) if position >= 0 else None
        if row is not None and row.vector is not None and row.seq == base.seqs[position]:
            exact[place] = query @ row.vector
    return exact
