"""Searches while all is built, extended and swapped: no error, no wrong answer."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import index.gallery
from index.filters import Filter
from index.gallery import Gallery
from index.store import Store
from index.vectors import unit_rows
from tests.gallery_writer import DIMENSION, FLAT_BELOW, SMALL, apply, changes, open_small
from tests.truth import State, after, assert_serves, assert_sound, settle

DEADLINE_S = 120
OWN_SCORE = 0.9  # a row that came while its base was built may lie beyond what the codes can say


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def vectors(count: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).uniform(-1, 1, (count, DIMENSION)), DIMENSION)


class Moving:
    """Rows that come and go, each with its own vector, and what is known of them: what is acknowledged, what is under
    way. One thread writes; others ask what a search that begins now must find and must not."""

    STILL = 400

    def __init__(self) -> None:
        self.still = [f"still {number}" for number in range(self.STILL)]
        self.vector_of = dict(zip(self.still, vectors(self.STILL, 1), strict=True))
        self._changing = threading.Lock()
        self._there: set[str] = set()  # acknowledged, and nobody has begun to remove it
        self._gone: set[str] = set()  # its removal is acknowledged
        self.turn_begun = self.turn_acknowledged = 0  # of the one row that is replaced all the time

    def fill(self, gallery: Gallery) -> None:
        rows = np.stack([self.vector_of[name] for name in self.still])
        gallery.add(self.still, rows, ["still"] * len(rows), [{"n": number} for number in range(len(rows))])
        gallery.add(["turning"], self.turned(0), ["0"])

    def write(self, gallery: Gallery, turn: int) -> None:
        """Rows come, the turning one turns, rows go."""
        names = [f"moving {turn} {number}" for number in range(12)]
        self.vector_of |= dict(zip(names, vectors(12, 10_000 + turn), strict=True))
        gallery.add(names, np.stack([self.vector_of[name] for name in names]), ["moving"] * 12)
        with self._changing:
            self._there.update(names)
        self.turn_begun = turn
        gallery.add(["turning"], self.turned(turn), [f"{turn}"])
        self.turn_acknowledged = turn
        leaving = sorted(self._there)[:: max(1, len(self._there) // 9)] if len(self._there) > 150 else names[:4]
        with self._changing:
            self._there.difference_update(leaving)
        assert gallery.remove(leaving) == len(leaving)
        with self._changing:
            self._gone.update(leaving)

    def now(self) -> tuple[set[str], set[str]]:
        with self._changing:
            return set(self._there), set(self._gone)

    @staticmethod
    def turned(turn: int) -> np.ndarray:
        return vectors(1, 50_000 + turn)

    def check(self, gallery: Gallery, random: np.random.Generator) -> None:
        """One search for rows that are there, one for those that have gone, with and without a filter."""
        there, gone = self.now()
        turned = self.turn_acknowledged
        still = self.still[random.integers(self.STILL)]
        coming = sorted(there)[random.integers(len(there))] if there else still
        lost = sorted(gone)[random.integers(len(gone))] if gone else still
        asked = [still, coming, lost]
        queries = np.stack([self.vector_of[name] for name in asked] + [self.turned(turned)[0]])
        filtered = random.random() < 0.3
        where = Filter.parse({"label": ["still", "moving"]}) if filtered else None
        found = gallery.search(queries, 12, where)
        begun = self.turn_begun
        there_still, _ = self.now()
        for query, hits in zip(queries, found, strict=True):
            ids = [hit.id for hit in hits]
            assert len(set(ids)) == len(ids) == 12
            assert not gone.intersection(ids)
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
            for hit in hits:
                if hit.id == "turning":
                    assert not filtered and turned <= int(hit.label) <= begun
                    vector = self.turned(int(hit.label))[0]
                else:
                    vector = self.vector_of[hit.id]
                    assert hit.label == hit.id.split()[0]
                assert abs(hit.score - float(query @ vector)) < 0.2
        assert found[0][0].id == still and found[0][0].score > OWN_SCORE
        assert found[0][0].metadata == {"n": int(still.split()[1])}
        if coming in there_still:
            assert found[1][0].id == coming and found[1][0].score > OWN_SCORE
        if begun == turned and not filtered:
            assert (found[3][0].id, found[3][0].label) == ("turning", f"{turned}")


def test_searches_that_run_while_everything_is_built_and_swapped_are_never_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps: list[str] = []
    original = Gallery._swap

    def counted(gallery: Gallery, base: object) -> None:
        original(gallery, base)
        swaps.append("swap")

    made: list[str] = []
    for name in ("build", "extend"):
        function = getattr(index.gallery, name)
        monkeypatch.setattr(index.gallery, name, _noted(function, name, made))
    monkeypatch.setattr(Gallery, "_swap", counted)
    moving = Moving()
    stop = threading.Event()
    searches = [0, 0, 0]
    with open_small(tmp_path) as gallery, open_small(tmp_path) as other:
        moving.fill(gallery)

        def search(thread: int) -> None:
            random = np.random.default_rng(thread)
            while not stop.is_set():
                moving.check((gallery, other)[thread % 2], random)
                searches[thread] += 1

        def rebuild() -> None:
            # Then the gallery is left alone: rebuilt all the time, its delta would never grow enough to extend by.
            while not stop.is_set() and made.count("build") < 8:
                gallery.rebuild()
                stop.wait(0.05)

        def write() -> None:
            deadline = time.monotonic() + DEADLINE_S
            turn = 0
            try:
                while turn < 60 or len(swaps) < 12 or made.count("build") < 4 or made.count("extend") < 2:
                    assert time.monotonic() < deadline, (turn, len(swaps), made)
                    moving.write(gallery, turn := turn + 1)
            finally:
                stop.set()

        with ThreadPoolExecutor(5) as pool:
            running = [pool.submit(search, thread) for thread in range(3)]
            running += [pool.submit(rebuild), pool.submit(write)]
            for finished in running:
                finished.result(timeout=2 * DEADLINE_S)
        for one in (gallery, other):
            settle(one)
            for seed in range(20):
                moving.check(one, np.random.default_rng(seed))
    assert min(searches) > 20
    assert_sound(tmp_path)


def _noted(function: object, name: str, made: list[str]) -> object:
    def called(*args: object, **options: object) -> object:
        result = function(*args, **options)
        made.append(name)
        return result

    return called


def write(gallery: Gallery, state: State, count: int, seed: int) -> State:
    for change, _ in zip(changes(seed), range(count), strict=False):
        apply(gallery, change)
        state = after(state, change)
    assert len(state) > FLAT_BELOW
    return state


@contextmanager
def paused_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Every build waits, when it is done, until it may go on: (it waits, it may go on)."""
    waits, may_go_on = threading.Event(), threading.Event()
    original = index.gallery.build

    def build(*args: object, **options: object) -> object:
        base = original(*args, **options)
        waits.set()
        assert may_go_on.wait(DEADLINE_S)
        return base

    with monkeypatch.context() as patched:
        patched.setattr(index.gallery, "build", build)
        try:
            yield waits, may_go_on
        finally:
            may_go_on.set()


def test_what_is_written_between_a_build_and_its_swap_is_in_no_search_missing_or_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_small(tmp_path) as gallery, ThreadPoolExecutor(1) as pool:
        state = write(gallery, {}, 10, seed=5)
        settle(gallery)
        with paused_build(monkeypatch) as (waits, may_go_on):
            rebuilt = pool.submit(gallery.rebuild)
            assert waits.wait(DEADLINE_S)
            state = write(gallery, state, 10, seed=6)  # replaces, adds and removes rows that the build has read
            assert_serves(gallery, state)
            may_go_on.set()
            rebuilt.result(timeout=DEADLINE_S)
        assert_serves(gallery, state)
        assert_sound(tmp_path)
    with open_small(tmp_path) as gallery:  # from a snapshot that is older than the rows
        assert_serves(gallery, state)


def test_a_gallery_closes_while_it_builds(tmp_path: Path) -> None:
    for seed in (4, 5, 6, 9):
        gallery = open_small(tmp_path / f"{seed}")
        state = write(gallery, {}, 12, seed)
        assert gallery.count == len(state)  # it looks at the file, and a build begins
        gallery.close()
        assert_sound(tmp_path / f"{seed}")
        with open_small(tmp_path / f"{seed}") as gallery:
            assert_serves(gallery, state)


def test_all_rows_may_go_while_the_acceleration_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_small(tmp_path) as gallery, ThreadPoolExecutor(1) as pool:
        state = write(gallery, {}, 12, seed=5)
        settle(gallery)
        with paused_build(monkeypatch) as (waits, may_go_on):
            rebuilt = pool.submit(gallery.rebuild)
            assert waits.wait(DEADLINE_S)
            assert gallery.remove(list(state)) == len(state)
            assert gallery.search(vectors(2, 1), 5) == [[], []]
            may_go_on.set()
            rebuilt.result(timeout=DEADLINE_S)
        assert gallery.search(vectors(2, 1), 5) == [[], []]
        settle(gallery)
        assert gallery.search(vectors(2, 1), 5) == [[], []]
        gallery.rebuild()
        assert (gallery.count, gallery.stats()["factory"]) == (0, "Flat")
        state = write(gallery, {}, 12, seed=6)
        assert_serves(gallery, state)
    assert_sound(tmp_path)


def test_rows_that_go_before_a_build_has_read_them_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_small(tmp_path) as gallery:
        names = list(write(gallery, {}, 12, seed=5))
        settle(gallery)
        original = Store.count

        def count_and_lose(store: Store) -> int:
            number = original(store)
            gallery.remove(names)
            return number

        monkeypatch.setattr(Store, "count", count_and_lose)
        gallery.rebuild()
        monkeypatch.undo()
        assert gallery.search(vectors(1, 1), 5) == [[]]
        gallery.add(["a"], vectors(1, 1), [None])
        assert [hit.id for hit in gallery.search(vectors(1, 1), 5)[0]] == ["a"]
