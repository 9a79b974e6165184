"""Builds the accelerated base of a gallery from its truth, or a larger one from a base and what changed since."""

import threading
from collections.abc import Callable, Iterator

import faiss
import numpy as np

from index.base import Base
from index.documents import Documents
from index.flat import Entry
from index.overlay import View
from index.plan import empty_index
from index.store import Row, Store

ADD_ROWS = 2048  # rows added to FAISS at a time; a closing gallery waits for as many
CODE_ERROR = 0.02  # distance of a row from its code, by which a score may be wrong
BADLY_CODED_MOST = 1e-3  # of the rows that join a base; with more, it is built anew
TRAINING_ROWS = 65_536  # drawn at random
ROWS_A_CELL = 39  # that k-means asks for


class Stopped(Exception):
    """The gallery was closed, or emptied, while this was under way."""


def build(
    store: Store,
    factory: str,
    threads: int,
    stop: threading.Event | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Base:
    """Read every row and build a base; `on_rows` is told how many were added. Raises `Stopped`.

    Rows are read in batches, each of one moment, beside writers. Every row brings its own seq along, so that one
    which changed meanwhile is known as such: `last_seq` is the last one before the first batch.
    """
    last_seq = store.last_seq()
    index = empty_index(factory, store.dimension)
    faiss.omp_set_num_threads(threads)
    _train(index, store)
    keys: list[np.ndarray] = []
    seqs: list[np.ndarray] = []
    documents: list[Documents] = []
    for rows in _live_rows(store):
        if stop is not None and stop.is_set():
            raise Stopped
        faiss.omp_set_num_threads(threads)
        index.add(np.stack([row.vector for row in rows if row.vector is not None]))
        keys.append(np.array([row.key for row in rows], np.int64))
        seqs.append(np.array([row.seq for row in rows], np.int64))
        documents.append(Documents.pack(Entry.of(row) for row in rows))
        on_rows(len(rows))
    none = np.empty(0, np.int64)
    return Base(
        index,
        factory,
        np.concatenate([none, *keys]),
        np.concatenate([none, *seqs]),
        Documents.join(documents),
        last_seq,
    )


def extend(view: View, threads: int, stop: threading.Event | None = None) -> Base:
    """A base with the rows of the view's delta behind those of its base. Raises `Stopped`.

    What is masked keeps its place and never comes back; a build from the truth gets rid of it.
    """
    base = view.base
    assert base is not None
    live = view.delta.live()
    index = faiss.clone_index(base.index)
    for start in range(0, len(live), ADD_ROWS):
        if stop is not None and stop.is_set():
            raise Stopped
        faiss.omp_set_num_threads(threads)
        index.add(view.delta.vectors[live[start : start + ADD_ROWS]])
    seqs = base.seqs.copy()
    if view.admitted is not None:
        seqs[np.unpackbits(view.admitted, count=len(seqs), bitorder="little") == 0] = 0
    return Base(
        index,
        base.factory,
        np.concatenate([base.keys, view.delta.keys[live]]),
        np.concatenate([seqs, view.delta.seqs[live]]),
        Documents.join([base.documents, Documents.pack(view.delta.entries[place] for place in live)]),
        view.last_seq,
    )


def fits(view: View) -> bool:
    """Whether the codes of the base can tell the delta's rows: their ranges were learned from the former ones."""
    assert view.base is not None
    index = view.base.index
    codes = faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index
    if not isinstance(codes, faiss.IndexScalarQuantizer):
        return True  # RaBitQ has no ranges, and its candidates are compared exactly
    rows = view.delta.vectors[view.delta.live()]
    if not len(rows):
        return True
    decoded = codes.sa_decode(codes.sa_encode(rows))
    return bool((np.linalg.norm(rows - decoded, axis=1) > CODE_ERROR).mean() <= BADLY_CODED_MOST)


def _live_rows(store: Store) -> Iterator[list[Row]]:
    """Live rows by key, `ADD_ROWS` at a time."""
    waiting: list[Row] = []
    for rows in store.scan():
        waiting += (row for row in rows if row.vector is not None)
        while len(waiting) >= ADD_ROWS:
            yield waiting[:ADD_ROWS]
            del waiting[:ADD_ROWS]
    if waiting:
        yield waiting


def _train(index: faiss.Index, store: Store) -> None:
    """On rows drawn at random over the whole gallery: neighbours in it often come from one album."""
    if index.is_trained:
        return
    enough = max(TRAINING_ROWS, ROWS_A_CELL * getattr(index, "nlist", 0))
    drawn = np.random.default_rng(0).permutation(store.live_keys())[:enough]
    rows = store.by_key(np.sort(drawn).tolist())
    sample = [row.vector for row in rows.values() if row.vector is not None]
    if not sample:
        raise Stopped  # all of them were removed meanwhile
    index.train(np.stack(sample))
