"""The index of one machine: a folder with the truth in SQLite and, for large ones, a snapshot of the acceleration."""

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from encoder.machine import cores
from index import snapshot
from index.base import Base
from index.builder import Stopped, build, extend, fits
from index.draw import drawn_keys
from index.errors import GalleryBusy, GalleryError, RowRefused
from index.face import Neighbor, Recall, Record, Stats
from index.filters import Filter
from index.overlay import Overlay, View
from index.plan import FLAT, FLAT_BELOW, QUICK, Plan
from index.recall import measured
from index.sqlite import WriteLock
from index.store import Matching, Row, Store
from index.vectors import unit_rows

BUILD_LOCK = "build.lock"
DELTA_LEAST = 5_000  # rows searched exactly beside the base, before they join it ...
DELTA_SHARE = 0.02  # ... or this part of the base, if that is more
MASKED_MOST = 0.2  # of the base, before it is built anew
REMEMBERED_FILTERS = 64
REMEMBERED_KEYS = 4_000_000  # of all of them together, 8 bytes each
ATTEMPTS = 3
PATIENCE_S = 1.0  # between looks at what another process builds

log = logging.getLogger("akin")


class Gallery:
    """A folder of vectors, `index.face.Index`. All methods may be called from any thread, and several processes may
    share it.

    A search sees every write that was acknowledged before it began, by this process or another one: SQLite's data
    version says whether there was any, and the rows since the last seen are added to those in memory. It reads beside
    a writer and never waits for one. What is built, is built in a thread beside, and takes its place at once.
    """

    def __init__(self, store: Store, model_digest: str, plan: Plan) -> None:
        self.model_digest = model_digest
        self.dimension = store.dimension
        self._store = store
        self._folder = store.file.parent
        self._plan = plan
        self._owner = snapshot.Owner(store.identity, model_digest, store.dimension)
        self._refreshing = threading.Lock()  # over the overlay and the followed changes
        self._overlay = Overlay(store.dimension)
        self._view = self._overlay.view()
        self._data_version: tuple[int, int] | None = None
        self._matching: dict[str, Matching] = {}  # by the filter in words: Python takes True for 1
        self._maintenance: threading.Thread | None = None
        self._closing = threading.Event()
        self._snapshot_version: tuple[int, int] | None = None
        self._recall: tuple[Base | None, Recall | None] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        model_digest: str,
        dimension: int,
        *,
        ram: int | None = None,
        factory: str | None = None,
        flat_below: int = FLAT_BELOW,
    ) -> Self:
        """Open the gallery in folder `path`, or start an empty one; refuses vectors of another model.

        ram: bytes the acceleration may take (default: half of the machine's). factory: how to search a large one, in
        FAISS's words (default: by size and memory). flat_below: rows from which on it counts as large.
        """
        plan = Plan(factory, ram, flat_below)
        store = Store.open(path, model_digest, dimension)
        gallery = cls(store, model_digest, plan)
        try:
            gallery._start()
        except BaseException:
            gallery.close()
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
        contents: Sequence[bytes | None] | None = None,
    ) -> None:
        """Insert rows, or replace those whose id is there: all of them, on disk when this returns, or none.

        vectors: (N, dimension) float32; scaled to unit length. One call is one transaction with one fsync:
        send some hundred rows at a time.
        """
        self._store.add(ids, vectors, labels, metadata, contents)

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`, on disk when this returns. Returns how many of them there were."""
        return self._store.remove(ids)

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The rows of `ids`, in their order; None where there is none."""
        rows = self._store.by_id(list(dict.fromkeys(ids)))
        return [_record(rows[name]) if name in rows else None for name in ids]

    def known_contents(self, contents: Sequence[bytes]) -> dict[bytes, str]:
        """Of these digests those that a row has, each with the id of one such row."""
        return self._store.by_content(contents)

    def records(self, batch: int = 1000) -> Iterator[list[Record]]:
        """Every row, oldest key first."""
        for rows in self._store.scan(batch=batch):
            if live := [_record(row) for row in rows if row.vector is not None]:
                yield live

    def sample(self, most: int) -> list[Record]:
        """At most `most` rows, drawn by their keys, all of which are read: 40 ms of 60,000."""
        keys = drawn_keys(self._store.live_keys(), most).tolist()
        rows = self._store.by_key(keys)
        return [_record(rows[key]) for key in keys if key in rows and rows[key].vector is not None]

    def search(
        self, vectors: np.ndarray, k: int, where: Filter | None = None, min_score: float | None = None
    ) -> list[list[Neighbor]]:
        """Return the most similar rows for each query, best first, equal scores ordered by id.

        vectors: (Q, dimension) float32; scaled to unit length. Each list has min(k, rows that match) neighbours, less
        those below `min_score`.
        """
        if k < 0:
            raise RowRefused(f"k is {k}; ask for 0 or more neighbours")
        queries = unit_rows(vectors, self.dimension)
        view, keys = (self._current(), None) if where is None else self._select(where)
        found = view.search(queries, k, self._store.by_key, keys)
        if min_score is None:
            return found
        return [[neighbor for neighbor in near if neighbor.score >= min_score] for near in found]

    def stats(self, measure_recall: bool = False) -> Stats:
        """What is held and how it is searched. Measuring recall reads every row: about 8 s a million."""
        view = self._current()
        if measure_recall:
            self._recall = view.base, measured(self._store, view)
        last = self._recall
        return Stats(
            rows=view.count,
            delta=0 if view.base is None else view.delta.count,
            tombstones=view.masked,
            factory=view.factory,
            memory_bytes=int(view.delta.vectors.nbytes + (0 if view.base is None else view.base.memory_bytes)),
            snapshot=snapshot.describe(self._folder),
            rebuilding=self._maintenance is not None,
            recall=last[1] if last is not None and last[0] is view.base else None,
        )

    def rebuild(self) -> None:
        """Build the acceleration from the truth and write its snapshot, on all cores; returns when it is in place."""
        with self._building(timeout_s=3600):
            factory = self._plan.choose(self._store.count(), self.dimension)
            try:
                base = None if factory == FLAT else build(self._store, factory, cores(), self._closing)
            except Stopped:
                if self._closing.is_set():
                    raise GalleryError(f"{self._folder} was closed before its acceleration was built") from None
                base = None  # all rows went meanwhile
            if base is not None:
                self._take(base)
            else:
                self._swap(None)
                snapshot.remove(self._folder)

    def close(self) -> None:
        """Close the files. What was acknowledged is on disk already."""
        self._closing.set()
        if (maintenance := self._maintenance) is not None:
            maintenance.join()
        with self._refreshing:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Bring the acceleration up, from the snapshot or, where that cannot be trusted, quickly and then well."""
        rows = self._store.count()
        if self._plan.choose(rows, self.dimension) != FLAT:
            base = self._from_snapshot()
            if base is None or rows - len(base) > max(self._plan.flat_below, DELTA_SHARE * rows):
                base = build(self._store, QUICK, cores())
            self._swap(base)
        self._current()

    def _current(self) -> View:
        with self._refreshing:
            self._refresh()
            return self._view

    def _refresh(self) -> None:
        """Bring the rows in memory up to the file."""
        # Read before the rows: a commit in between is then seen twice, never missed.
        data_version = self._store.data_version()
        if data_version == self._data_version:
            return
        for row in self._store.changes(self._overlay.last_seq):
            self._overlay.apply(row)
        self._view = self._overlay.view()
        self._matching = {}
        self._data_version = data_version
        self._maintain()

    def _select(self, where: Filter) -> tuple[View, np.ndarray]:
        """The rows now, and the keys of those that match, both of the same moment."""
        for _ in range(ATTEMPTS):
            view = self._current()
            matching = self._matching.get(repr(where))
            if matching is None or matching.seq != view.last_seq:
                matching = self._store.keys_matching(where)
            if matching.seq != view.last_seq:
                view = self._current()
            if matching.seq == view.last_seq:
                sizes = [len(one.keys) for one in list(self._matching.values())]
                if len(sizes) < REMEMBERED_FILTERS and sum(sizes) < REMEMBERED_KEYS:
                    self._matching[repr(where)] = matching
                return view, matching.keys
        # Others write faster than we look: hold the file still.
        with self._refreshing, self._store.consistent():
            self._refresh()
            return self._view, self._store.keys_matching_now(where).keys

    def _maintain(self) -> None:
        """Start work on the acceleration where it is due; under `_refreshing`."""
        if self._maintenance is None and not self._closing.is_set() and self._due(self._view):
            self._maintenance = threading.Thread(target=self._work, name="maintenance", daemon=True)
            self._maintenance.start()

    def _due(self, view: View) -> bool:
        factory = self._plan.choose(view.count, self.dimension)
        if view.base is None:
            return factory != FLAT
        return _overgrown(view) or (view.factory != factory and factory != FLAT)

    def _work(self) -> None:
        """Build until nothing is due, whoever builds it."""
        failed = True
        try:
            while not self._closing.is_set() and self._due(view := self._current()):
                try:
                    with self._building():
                        self._improve(view)
                except GalleryBusy:  # another process builds: take what it has made
                    self._closing.wait(PATIENCE_S)
                    self._adopt(view)
            failed = False
        except Stopped:
            pass
        except GalleryError as error:
            # The truth and what is in memory still serve. The next change to the gallery starts this again.
            log.warning("the acceleration of %s was not brought up to date: %s", self._folder, error)
        except Exception:
            log.exception("the acceleration of %s was not brought up to date", self._folder)
        finally:
            with self._refreshing:
                self._maintenance = None
                if not failed:
                    self._maintain()  # what became due since the last look

    def _improve(self, view: View) -> None:
        if self._adopt(view):
            return
        factory = self._plan.choose(view.count, self.dimension)
        if factory == FLAT:
            self._swap(None)
            return
        threads = max(1, cores() // 2)
        masked_few = view.base is not None and view.masked <= MASKED_MOST * len(view.base)
        if view.factory == factory and masked_few and fits(view):
            self._take(extend(view, threads, self._closing))
        else:
            self._take(build(self._store, factory, threads, self._closing))

    def _adopt(self, view: View) -> bool:
        """Use a snapshot that another process has written and that knows more than ours; whether there was one."""
        if snapshot.version(self._folder) in (None, self._snapshot_version):
            return False
        base = self._from_snapshot()
        if base is None or (view.base is not None and base.last_seq <= view.base.last_seq):
            return False
        self._swap(base)
        return True

    def _take(self, base: Base) -> None:
        """Search with it from now on, and keep it on disk where that can be."""
        self._swap(base)
        if not self._store.read_only:
            snapshot.remove_parts(self._folder)
            snapshot.write(self._folder, self._owner, base)
            self._snapshot_version = snapshot.version(self._folder)

    def _swap(self, base: Base | None) -> None:
        """Put a base in the place of the present one; what changed since it was built is caught up with beside."""
        overlay = Overlay(self.dimension, base)
        for row in self._store.changes_aside(overlay.last_seq):
            overlay.apply(row)
        with self._refreshing:
            self._overlay = overlay
            self._data_version = None
            self._refresh()

    def _from_snapshot(self) -> Base | None:
        self._snapshot_version = snapshot.version(self._folder)
        return snapshot.read(self._folder, self._owner, self._store.last_seq)

    @contextmanager
    def _building(self, timeout_s: float = 0.0) -> Iterator[None]:
        """One builder a folder; raises `GalleryBusy`. Where nothing can be written, everyone builds for himself."""
        if self._store.read_only:
            yield
            return
        lock = WriteLock(self._folder / BUILD_LOCK, timeout_s)
        try:
            with lock.held():
                yield
        finally:
            lock.close()


def _overgrown(view: View) -> bool:
    assert view.base is not None
    return view.delta.count > max(DELTA_LEAST, DELTA_SHARE * len(view.base)) or view.masked > MASKED_MOST * len(
        view.base
    )


def _record(row: Row) -> Record:
    assert row.vector is not None
    return Record(row.id, row.vector, row.label, json.loads(row.metadata) if row.metadata else {}, row.content)
