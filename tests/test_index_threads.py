"""Several write at once, threads and processes: nothing is lost, everyone waits for his turn or is told."""

import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryBusy
from index.face import Index
from index.gallery import Gallery
from index.sqlite import LOCK_NAME
from index.store import Store
from index.vectors import unit_rows
from tests.brute_index import BruteIndex
from tests.gallery_writer import DIGEST, DIMENSION, REPOSITORY, SMALL, Writer, changes, open_small
from tests.truth import CODE_ERROR, State, after, assert_serves, assert_sound, on_disk, settle

DEADLINE_S = 120


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def vectors(count: int, seed: int) -> np.ndarray:
    """As `changes` draws them: of Gaussian ones 0.4 % are clipped to a score below 0.9 by the codes of 200 others."""
    return unit_rows(np.random.default_rng(seed).uniform(-1, 1, (count, DIMENSION)), DIMENSION)


def all_at_once(count: int, work: Callable[[int], None]) -> None:
    """Call `work` with 0 to count - 1, each in a thread of its own; raises what one of them raised."""
    start = threading.Barrier(count)

    def begin(number: int) -> None:
        start.wait(DEADLINE_S)
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for finished in [pool.submit(begin, number) for number in range(count)]:
            finished.result(timeout=DEADLINE_S)


def test_two_processes_and_four_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    rounds = 12
    states: list[State] = [{}, {}]
    with Writer(tmp_path, 1, "step", "--prefix", "a") as one, Writer(tmp_path, 2, "step", "--prefix", "b") as other:
        with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:

            def write(thread: int) -> None:
                if thread < 2:
                    writer = (one, other)[thread]
                    for change in islice(changes(thread + 1, "ab"[thread]), rounds):
                        writer.ask_for_a_write()
                        writer.wait_for_a_write()
                        states[thread] = after(states[thread], change)
                else:
                    for turn in range(rounds):
                        names = [f"{thread}/{turn}/{row}" for row in range(20)]
                        gallery.add(names, vectors(20, 100 * thread + turn), names)
                        assert gallery.remove(names[:5]) == 5

            all_at_once(6, write)
            here = {
                f"{thread}/{turn}/{row}" for thread in range(2, 6) for turn in range(rounds) for row in range(5, 20)
            }
            assert gallery.count == len(here) + len(states[0]) + len(states[1])
        one.end()
        other.end()
    found = on_disk(tmp_path)
    assert {name: row for name, row in found.items() if name[0] in "ab"} == states[0] | states[1]
    for name in here:
        thread, turn, row = map(int, name.split("/"))
        assert found[name][:2] == (vectors(20, 100 * thread + turn)[row].tobytes(), name)
    assert len(found) == len(here) + len(states[0]) + len(states[1])
    assert_sound(tmp_path)


SAME_IDS = """
import sys
from pathlib import Path
import numpy as np
from index.gallery import Gallery
from tests.gallery_writer import DIGEST, DIMENSION

who = int(sys.argv[2])
with Gallery.open(Path(sys.argv[1]), DIGEST, DIMENSION) as gallery:
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(25):
        rows = np.zeros((30, DIMENSION), np.float32)
        rows[:, who], rows[:, 2] = 1, turn + 1
        if turn % 5 == 4:
            gallery.remove([f"{row}" for row in range(30)])
        gallery.add([f"{row}" for row in range(30)], rows, [f"{who} {turn}"] * 30)
"""


def test_of_two_processes_that_write_the_same_rows_each_write_stands_whole_and_seqs_only_grow(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": REPOSITORY, "text": True}
    command = [sys.executable, "-c", SAME_IDS, str(tmp_path)]
    started = [subprocess.Popen([*command, f"{who}"], **pipes) for who in range(2)]
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    seen = 0
    writes: set[str] = set()
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            print(file=process.stdin, flush=True)
        running = True
        while running:
            running = any(process.poll() is None for process in started)
            rows = list(store.changes(seen))
            seqs = [row.seq for row in rows]
            assert seqs == sorted(set(seqs)) and all(seq > seen for seq in seqs)
            live = [row for row in rows if row.vector is not None]
            if rows:
                # Of the last writer all thirty: what a reader sees is never half of the one and half of the other.
                assert len(rows) == 30 and len({row.label for row in live}) in (0, 1)
                assert [row.vector is None for row in rows] in ([True] * 30, [False] * 30)
                seen = seqs[-1]
            for row in live:
                who, turn = map(int, row.label.split())
                expected = np.zeros((1, DIMENSION), np.float32)
                expected[0, who], expected[0, 2] = 1, turn + 1
                assert row.vector.tobytes() == unit_rows(expected, DIMENSION).tobytes()
                writes.add(row.label)
        assert [process.wait(DEADLINE_S) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.communicate()
        store.close()
    # 25 adds of 30 rows and 5 removals of 30 by each of them, of which a removal may have found nothing.
    assert 2 * 25 * 30 <= seen <= 2 * 30 * 30 and len(writes) > 2
    assert len(on_disk(tmp_path)) == 30
    assert_sound(tmp_path)


@pytest.mark.parametrize("threads", [1, 8])
def test_a_holder_that_does_not_let_go_is_reported_within_the_timeout_to_every_thread(
    tmp_path: Path, threads: int
) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION, busy_timeout_s=0.3)
    waited: list[float] = []

    def write(thread: int) -> None:
        started = time.monotonic()
        with pytest.raises(GalleryBusy, match="try again") as refused:
            store.add([f"{thread}"], vectors(1, thread), [None])
        assert refused.value.status == 503
        waited.append(time.monotonic() - started)

    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery, (tmp_path / LOCK_NAME).open("r+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        all_at_once(threads, write)
        assert min(waited) > 0.25 and max(waited) < 1.2
        assert gallery.search(vectors(1, 0), 3) == [[]]  # nothing was written, and reading goes on
    all_at_once(threads, lambda thread: store.add([f"{thread}"], vectors(1, thread), [None]))
    assert store.count() == threads
    store.close()


def test_a_writer_waits_for_the_other_one_and_then_writes(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION, busy_timeout_s=DEADLINE_S)
    with (tmp_path / LOCK_NAME).open("r+") as holder, ThreadPoolExecutor(1) as pool:
        fcntl.flock(holder, fcntl.LOCK_EX)
        written = pool.submit(store.add, ["a"], vectors(1, 0), [None])
        with pytest.raises(TimeoutError):
            written.result(timeout=0.2)
        fcntl.flock(holder, fcntl.LOCK_UN)
        assert written.result(timeout=DEADLINE_S)
    assert store.count() == 1
    store.close()


def test_a_single_writer_gets_its_turn_beside_many_threads_of_another_gallery(tmp_path: Path) -> None:
    stop = threading.Event()
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as busy, Gallery.open(tmp_path, DIGEST, DIMENSION) as other:

        def work(thread: int) -> None:
            turn = 0
            if thread < 4:
                while not stop.is_set():
                    names = [f"{thread}/{row}" for row in range(200)]
                    busy.add(names, vectors(200, turn := turn + 1), [None] * 200)
            else:
                try:
                    for turn in range(10):
                        other.add([f"other {turn}"], vectors(1, turn), [None])
                finally:
                    stop.set()

        all_at_once(5, work)
        found = busy.get([f"other {turn}" for turn in range(10)])
        assert None not in found
    assert_sound(tmp_path)


def test_a_write_that_is_paused_within_its_commit_is_seen_once_it_is_acknowledged(tmp_path: Path) -> None:
    state: State = {}
    series = changes(5)
    with Writer(tmp_path, 5, "step") as writer:
        writer.ask_for_a_write()
        writer.wait_for_a_write()
        state = after(state, next(series))
        with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
            for turn in range(25):
                writer.ask_for_a_write()
                time.sleep(0.0003 * turn)  # so that it is paused now before its commit, now within, now behind
                writer.pause()
                time.sleep(0.12)
                gallery.search(vectors(1, 0), 1)
                writer.go_on()
                writer.wait_for_a_write()
                state = after(state, next(series))
                assert gallery.count == len(state)
            assert_serves(gallery, state)
        writer.end()


def test_a_gallery_may_be_closed_twice_and_closing_harms_nobody_elses_files(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "a", DIGEST, DIMENSION)
    gallery.close()
    others = [(tmp_path / f"{number}").open("w+") for number in range(50)]  # take the numbers of what was closed
    gallery.close()
    with pytest.raises(Exception, match="closed"):
        gallery.add(["a"], vectors(1, 0), [None])
    with pytest.raises(Exception, match="closed"):
        gallery.search(vectors(1, 0), 1)
    for other in others:
        other.write("still open")
        other.close()


THREADS = 100
TURNS = 6


def test_a_hundred_threads_that_add_remove_and_search_leave_what_a_model_holds(tmp_path: Path) -> None:
    """Each thread has ids of its own, so that it knows what any search must find of them at any moment."""
    model = BruteIndex(DIGEST, DIMENSION)
    still = vectors(300, 10**6)
    names = [f"still {row:03d}" for row in range(300)]
    for index in (model, gallery := open_small(tmp_path)):
        index.add(names, still, names)

    def work(thread: int) -> None:
        random = np.random.default_rng(thread)
        mine: dict[str, np.ndarray] = {}
        for turn in range(TURNS):
            added = [f"{thread} {number}" for number in random.choice(12, 6, replace=False)]
            rows = vectors(6, 1000 * thread + turn)
            for index in (model, gallery):
                index.add(added, rows, [f"{turn}"] * 6)
            mine |= dict(zip(added, rows, strict=True))
            assert_finds_its_own(thread, mine)
            removed = random.choice(sorted(mine), 3, replace=False).tolist()
            for index in (model, gallery):
                assert index.remove(removed) == 3
            for name in removed:
                del mine[name]
            assert_finds_its_own(thread, mine)

    def assert_finds_its_own(thread: int, mine: dict[str, np.ndarray]) -> None:
        asked = sorted(mine)[:2]
        queries = np.stack([mine[name] for name in asked] + [still[thread]])
        found = gallery.search(queries, 20)
        for name, hits in zip([*asked, names[thread]], found, strict=True):
            assert (hits[0].id, len(hits)) == (name, 20) and hits[0].score > 0.9
        for hits in found:
            assert len({hit.id for hit in hits}) == 20
            assert {hit.id for hit in hits if hit.id.startswith(f"{thread} ")} <= mine.keys()

    all_at_once(THREADS, work)
    assert_same(gallery, model)
    settle(gallery)
    assert_same(gallery, model)
    gallery.close()
    assert_sound(tmp_path)
    with open_small(tmp_path) as gallery:
        assert_same(gallery, model)


def assert_same(gallery: Gallery, model: Index) -> None:
    expected = {row.id: row for rows in model.records() for row in rows}
    found = {row.id: row for rows in gallery.records() for row in rows}
    assert gallery.count == len(expected) and found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name][2:] == row[2:] and found[name].vector.tobytes() == row.vector.tobytes()
    queries = vectors(5, 77)
    for hits, true in zip(gallery.search(queries, 2000), model.search(queries, 2000), strict=True):
        scores = {hit.id: hit.score for hit in true}
        assert len(hits) == len(true) and {hit.id for hit in hits} == scores.keys()
        assert np.quantile([abs(hit.score - scores[hit.id]) for hit in hits], 0.99) < CODE_ERROR
