"""How many true neighbours a search finds, measured against the vectors of the truth."""

from time import perf_counter

import numpy as np

from index.face import Recall
from index.overlay import View
from index.store import Store

QUERIES = 64
AT = 10
EQUAL = 1e-6  # scores that differ by less are equal


def measured(store: Store, view: View, queries: int = QUERIES, k: int = AT) -> Recall | None:
    """Ask for the neighbours of rows drawn at random, themselves left out, and read every row to know the true ones.

    A neighbour is true where none of the k nearest is nearer: among equals any will do. None where there are no two
    rows. Rows that change meanwhile count against the search.
    """
    started = perf_counter()
    drawn = np.random.default_rng().permutation(_live_keys(view))[:queries]
    asked = [row for row in store.by_key(np.sort(drawn).tolist()).values() if row.vector is not None]
    k = min(k, view.count - 1)
    if not asked or k < 1:
        return None
    vectors = np.stack([row.vector for row in asked if row.vector is not None])
    found = [
        [neighbor.id for neighbor in neighbors if neighbor.id != row.id][:k]
        for row, neighbors in zip(asked, view.search(vectors, k + 1, store.by_key), strict=True)
    ]
    rows = store.by_id(sorted({name for names in found for name in names}))
    right = 0
    for vector, names, least in zip(vectors, found, _kth_scores(store, vectors, k + 1), strict=True):
        scores = [float(vector @ row.vector) for name in names if (row := rows.get(name)) and row.vector is not None]
        right += sum(score >= least - EQUAL for score in scores)
    seconds = round(perf_counter() - started, 2)
    return Recall(at=k, value=round(right / (k * len(asked)), 4), queries=len(asked), seconds=seconds)


def _live_keys(view: View) -> np.ndarray:
    delta = view.delta.keys[view.delta.live()]
    if view.base is None:
        return delta
    keys = view.base.keys
    if view.admitted is not None:
        keys = keys[np.unpackbits(view.admitted, count=len(keys), bitorder="little") == 1]
    return np.concatenate([keys, delta])


def _kth_scores(store: Store, queries: np.ndarray, k: int) -> list[float]:
    """The k-th best cosine of each query over all rows. queries: (Q, dimension) float32."""
    best = np.empty((len(queries), 0), np.float32)
    for rows in store.scan(batch=4096):
        live = [row.vector for row in rows if row.vector is not None]
        if live:
            best = np.concatenate([best, queries @ np.stack(live).T], axis=1)
            best = -np.partition(-best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
    return best.min(axis=1).tolist() if best.shape[1] else [2.0] * len(queries)
