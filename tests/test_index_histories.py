"""Any history of operations on a gallery, as hypothesis makes them up, ends where it ends on an index in memory."""

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from index.filters import Filter
from index.gallery import Gallery
from index.snapshot import FILE_NAME as SNAPSHOT
from index.vectors import unit_rows
from index.verify import verify
from tests.brute_index import BruteIndex
from tests.truth import CODE_ERROR

DIGEST = "c" * 64
DIMENSION = 16
POOL = unit_rows(np.random.default_rng(0).uniform(-1, 1, (500, DIMENSION)), DIMENSION)
TINY = {
    "index.gallery.DELTA_LEAST": 10,
    "index.builder.BADLY_CODED_MOST": 0.05,
    "index.flat.MAX_DEAD": 5,
    "index.gallery.cores": lambda: 1,
}

NAMES = st.integers(0, 89).map("{:02d}".format)
PLACES = st.integers(0, len(POOL) - 1)
LABELS = st.sampled_from(["cat", "dog", None])
ROWS = st.lists(st.tuples(NAMES, PLACES, LABELS), min_size=1, max_size=8)
FILTERS = st.sampled_from(
    [
        None,
        {"label": "cat"},
        {"label": ["cat", "dog"], "even": True},
        {"n": {"gte": 100, "lt": 300}},
        {"n": [1, 2, 3, 4, 5]},
        {"even": False, "label": "dog"},
        {"nothing": "has this"},
    ]
)
HANDLES = st.integers(0, 1)


class Histories(RuleBasedStateMachine):
    """Two galleries on one folder, as of two processes, and an index in memory that is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        for name, value in TINY.items():
            self.patched.setattr(name, value)
        self.patched.setattr(logging.getLogger("akin"), "disabled", True)
        self.folder = Path(tempfile.mkdtemp())
        self.model = BruteIndex(DIGEST, DIMENSION)
        self.galleries: list[Gallery] = []

    @initialize(factory=st.sampled_from(["SQ8", "HNSW16,SQ8", "IVF2,RaBitQfs4"]))
    def open(self, factory: str) -> None:
        self.factory = factory
        self.galleries = [self._opened(), self._opened()]

    def _opened(self) -> Gallery:
        return Gallery.open(self.folder, DIGEST, DIMENSION, factory=self.factory, flat_below=40)

    @rule(rows=ROWS, handle=HANDLES)
    def add(self, rows: list[tuple[str, int, str | None]], handle: int) -> None:
        names, places, labels = zip(*rows, strict=True)
        self._add(handle, names, places, labels)

    @rule(first=st.integers(0, 50), count=st.integers(20, 40), place=st.integers(0, 400), handle=HANDLES)
    def add_many(self, first: int, count: int, place: int, handle: int) -> None:
        names = [f"{number:02d}" for number in range(first, first + count)]
        self._add(handle, names, range(place, place + count), ["cat", "dog"] * (count // 2) + [None] * (count % 2))

    def _add(self, handle: int, names: object, places: object, labels: object) -> None:
        places = list(places)
        fields = [{"n": place, "even": place % 2 == 0} if place % 7 else {} for place in places]
        contents = [f"content {place}".encode() if place % 3 else None for place in places]
        for index in (self.galleries[handle], self.model):
            index.add(list(names), POOL[places], list(labels), fields, contents)

    @rule(names=st.lists(NAMES, max_size=20), handle=HANDLES)
    def remove(self, names: list[str], handle: int) -> None:
        assert self.galleries[handle].remove(names) == self.model.remove(names)

    @rule(handle=HANDLES, keep=st.integers(0, 50))
    def remove_nearly_all(self, handle: int, keep: int) -> None:
        names = sorted(row.id for rows in self.model.records() for row in rows)[keep:]
        assert self.galleries[handle].remove(names) == self.model.remove(names) == len(names)

    @rule(
        places=st.lists(PLACES, min_size=1, max_size=3),
        k=st.sampled_from([0, 1, 3, 10, 10**6]),
        given=FILTERS,
        min_score=st.sampled_from([None, None, -0.5, 0.3, 0.99]),
        handle=HANDLES,
    )
    def search(self, places: list[int], k: int, given: object, min_score: float | None, handle: int) -> None:
        where = Filter.parse(given)
        found = self.galleries[handle].search(POOL[places], k, where, min_score)
        true = self.model.search(POOL[places], 10**6, where)
        assert len(found) == len(places)
        for hits, all_rows in zip(found, true, strict=True):
            self._check(hits, all_rows, k, min_score)

    def _check(self, hits: list, all_rows: list, k: int, min_score: float | None) -> None:
        expected = {row.id: row for row in all_rows}
        scores = [hit.score for hit in hits]
        assert len({hit.id for hit in hits}) == len(hits) and scores == sorted(scores, reverse=True)
        for hit in hits:
            row = expected[hit.id]
            assert (hit.label, hit.metadata) == (row.label, row.metadata)
            assert abs(hit.score - row.score) < CODE_ERROR
            assert min_score is None or hit.score >= min_score
        best = [row.score for row in all_rows[:k]]
        least = -2.0 if min_score is None else min_score
        assert sum(score > least + CODE_ERROR for score in best) <= len(hits) <= len(best)
        assert len(hits) <= sum(score > least - CODE_ERROR for score in best)
        # RaBitQ's candidates are found by estimates; among so few rows all of them are compared.
        assert all(score > true - CODE_ERROR for score, true in zip(scores, best, strict=False))

    @rule(names=st.lists(NAMES, max_size=5), places=st.lists(PLACES, max_size=5), handle=HANDLES)
    def look_up(self, names: list[str], places: list[int], handle: int) -> None:
        for found, row in zip(self.galleries[handle].get(names), self.model.get(names), strict=True):
            assert (found is None) == (row is None)
            if found is not None and row is not None:
                assert found[0] == row[0] and found[2:] == row[2:] and np.array_equal(found.vector, row.vector)
        contents = [f"content {place}".encode() for place in places]
        known = self.galleries[handle].known_contents(contents)
        assert known.keys() == self.model.known_contents(contents).keys()
        for content, name in known.items():
            assert self.model.get([name])[0].content == content

    @rule(handle=HANDLES)
    def reopen(self, handle: int) -> None:
        self.galleries[handle].close()
        self.galleries[handle] = self._opened()

    @rule(handle=HANDLES)
    def rebuild(self, handle: int) -> None:
        self.galleries[handle].rebuild()

    @rule(bit=st.integers(0, 10**6), handle=HANDLES)
    def damage_the_snapshot_and_reopen(self, bit: int, handle: int) -> None:
        self.galleries[handle].close()
        file = self.folder / SNAPSHOT
        if file.exists():
            content = bytearray(file.read_bytes())
            content[bit // 8 % len(content)] ^= 1 << bit % 8
            file.unlink()  # the other gallery may be writing the next one
            file.write_bytes(content)
        self.galleries[handle] = self._opened()

    @invariant()
    def both_count_what_the_model_holds(self) -> None:
        for gallery in self.galleries:
            assert gallery.count == self.model.count

    def teardown(self) -> None:
        try:
            if self.galleries:
                self.galleries[0].rebuild()
                for gallery in self.galleries:
                    self.search_all(gallery)
                faults = verify(self.folder, DIGEST, DIMENSION)
                # A small gallery needs no snapshot, so that a damaged one is not replaced.
                small = self.galleries[0].stats()["factory"] == "Flat"
                assert [fault for fault in faults if not (small and SNAPSHOT in fault)] == []
                for gallery in self.galleries:
                    gallery.close()
                with self._opened() as gallery:
                    self.search_all(gallery)
        finally:
            for gallery in self.galleries:
                gallery.close()
            self.patched.undo()
            shutil.rmtree(self.folder)

    def search_all(self, gallery: Gallery) -> None:
        (hits,), (true,) = (index.search(POOL[:1], 10**6) for index in (gallery, self.model))
        self._check(hits, true, 10**6, None)


class TestHistories(Histories.TestCase):
    settings = settings(
        max_examples=80,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.long
class TestManyHistories(Histories.TestCase):
    settings = settings(TestHistories.settings, max_examples=400, stateful_step_count=60)
