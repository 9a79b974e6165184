"""A store whose rows change at random, and what every view of it must answer: by brute force over the same rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from index.overlay import Overlay, View
from index.store import Store
from index.vectors import unit_rows

DIGEST = "a" * 64
DIMENSION = 32
ROWS = 3000
FACTORIES = ("SQ8", "HNSW16,SQ8", "HNSW16,Flat", "IVF16,Flat", "IVF16,RaBitQfs4")
# By which a score may differ from the cosine: half a step of each 8-bit component at most; else float32's rounding.
CODE_ERROR, ROUNDING = 0.02, 1e-6


class Held(NamedTuple):
    """A live row."""

    key: int
    seq: int
    label: str
    vector: np.ndarray


Rows = dict[str, Held]


def random_rows(count: int, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """No component far beyond the others, so that 8-bit codes learned from some rows suit the next ones."""
    return unit_rows(np.random.default_rng(seed).uniform(-1, 1, (count, dimension)), dimension)


class Truth:
    """A store, and the rows that it holds."""

    def __init__(self, folder: Path, rows: int = ROWS, seed: int = 0) -> None:
        self.store = Store.open(folder, DIGEST, DIMENSION)
        self._random = np.random.default_rng(seed)
        self._turn = 0
        self.names = [f"{row:05d}" for row in range(rows)]
        if rows:
            self.add(self.names)

    def add(self, names: Sequence[str], vectors: np.ndarray | None = None) -> None:
        """Rows of random vectors, whose label says when they were added."""
        self._turn += 1
        if vectors is None:
            vectors = random_rows(len(names), 1000 + self._turn)
        self.store.add(names, vectors, [f"turn {self._turn}"] * len(names), [{"name": name} for name in names])

    def change(self, replaced: int, removed: int, added: int) -> None:
        """Replace, remove and add so many rows; some that were removed come back."""
        names = self._random.permutation(self.names).tolist()
        self.store.remove(names[:removed])
        self.add(names[removed // 2 : removed // 2 + replaced] + [f"new {self._turn} {row}" for row in range(added)])

    def rows(self) -> Rows:
        return {
            row.id: Held(row.key, row.seq, row.label or "", row.vector)
            for rows in self.store.scan()
            for row in rows
            if row.vector is not None
        }

    def follow(self, overlay: Overlay) -> View:
        """The view of it that knows every change."""
        for row in self.store.changes_aside(overlay.last_seq):
            overlay.apply(row)
        return overlay.view()


def assert_answers(
    view: View, store: Store, rows: Rows, ks: Sequence[int], shares: Sequence[float | None], seed: int = 0
) -> float:
    """Search with and without keys that admit so many shares of the rows: never a row that is not live, not as it is
    now, or twice; as many as there are; with the right scores, in order. Returns the recall of the 10 nearest.

    shares: None for a search without keys, 0 for keys that are not there any more.
    """
    random = np.random.default_rng(seed)
    names = sorted(rows)
    keys = np.array([rows[name].key for name in names], np.int64)
    vectors = np.array([rows[name].vector for name in names]).reshape(-1, DIMENSION)
    queries = random_rows(2, 50_000 + seed)
    if names:  # and one that is there
        queries[1] = vectors[random.integers(len(names))]
    all_scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    gone = np.setdiff1d(np.arange(1, int(keys.max(initial=0)) + 100), keys)
    tolerance = CODE_ERROR if "SQ8" in view.factory else ROUNDING
    found, there = 0, 0
    assert view.count == len(names)
    for share in shares:
        chosen = np.arange(len(names))
        if share is not None:
            least = 1 if share > 0 and names else 0
            chosen = np.sort(random.choice(len(names), max(least, round(share * len(names))), replace=False))
        admitted = None if share is None else np.sort(np.concatenate([keys[chosen], random.permutation(gone)[:50]]))
        place_of = {names[place]: place for place in chosen.tolist()}
        for k in ks:
            for near, scores in zip(view.search(queries, k, store.by_key, admitted), all_scores, strict=True):
                ids = [one.id for one in near]
                assert len(set(ids)) == len(ids) == min(k, len(chosen))
                assert set(ids) <= place_of.keys()
                assert [(one.label, one.metadata) for one in near] == [
                    (rows[name].label, {"name": name}) for name in ids
                ]
                assert [(-one.score, one.id) for one in near] == sorted((-one.score, one.id) for one in near)
                true = np.array([scores[place_of[name]] for name in ids])
                assert np.abs(np.array([one.score for one in near]) - true).max(initial=0) <= tolerance
                best = -np.sort(-scores[chosen])[: min(k, 10)]
                if view.base is None:
                    assert np.abs(true - -np.sort(-scores[chosen])[:k]).max(initial=0) <= ROUNDING
                if len(best):
                    found += int((true[: len(best)] >= best[-1] - ROUNDING).sum())
                    there += len(best)
    return found / there if there else 1.0
