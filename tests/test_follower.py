"""Followed changes: every write of whoever has the file open is noticed, and SQLite asked no more than it takes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryError
from index.follower import TICK_NS, Follower
from index.sqlite import Reader, Stamp, connect_read_only, nobody_writes
from index.store import FILE_NAME, Store
from index.vectors import unit_rows

DIGEST = "a" * 64
DIMENSION = 8
REPOSITORY = Path(__file__).parents[1]
LONG_S = 1.5 * TICK_NS / 1e9  # files that old count as settled
WRITER = """if True:
    import pathlib, sys, numpy
    from index.store import Store
    store = Store.open(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    for line in sys.stdin:
        store.add([line.strip()], numpy.ones((1, store.dimension)), [None])
        print("written", flush=True)
    store.close()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """What writes to the file."""
    opened = Store.open(tmp_path / "gallery", DIGEST, DIMENSION)
    yield opened
    opened.close()


@pytest.fixture
def follower(store: Store) -> Iterator[Follower]:
    opened = Follower(store.file, busy_timeout_s=30.0)
    yield opened
    opened.close()


def vectors(count: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(0).standard_normal((count, DIMENSION)), DIMENSION)


@contextmanager
def another_process(store: Store) -> Iterator[Callable[[str], None]]:
    """One that has the same gallery open, and adds a row when told to; back when that is acknowledged."""
    command = [sys.executable, "-c", WRITER, str(store.file.parent), DIGEST, str(DIMENSION)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes) as process:

        def add(name: str) -> None:
            print(name, file=process.stdin)
            assert process.stdout.readline() == "written\n"

        try:
            yield add
            process.stdin.close()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_a_write_of_another_process_is_noticed_right_after_the_last_one_and_when_all_has_long_settled(
    store: Store, follower: Follower
) -> None:
    asked: list[str] = []
    follower.connection.set_trace_callback(asked.append)
    with another_process(store) as add:
        add("first")
        seen = [follower.data_version()]
        for pause in (0.0, 0.0, 0.01, 0.0, LONG_S, LONG_S, 0.0, LONG_S):
            time.sleep(pause)
            assert [follower.data_version() for _ in range(3)] == seen[-1:] * 3
            if pause == LONG_S:
                asked.clear()
                assert (follower.data_version(), asked) == (seen[-1], [])  # told by the files alone
            add(f"{len(seen)}")
            seen.append(follower.data_version())
            assert _rows_seen(follower) == len(seen)
    assert len(set(seen)) == len(seen) == 9


def test_a_write_over_the_beginning_of_a_log_of_the_same_size_is_noticed(store: Store, follower: Follower) -> None:
    log = store.file.with_name(f"{FILE_NAME}-wal")
    with another_process(store) as add:
        add("first")
        for turn in range(3):
            store._writer.execute("PRAGMA wal_checkpoint")  # the next write begins the log anew, in place
            size = log.stat().st_size
            time.sleep(LONG_S)
            before = follower.data_version()
            add(f"{turn % 2}")
            if turn == 2:
                assert log.stat().st_size == size
            assert follower.data_version() != before


def test_nothing_counts_as_settled_while_a_writer_holds_the_lock(store: Store, follower: Follower) -> None:
    """It may have written to the log what it has yet to publish, and that would not change the files again."""
    other = Store.open(store.file.parent, DIGEST, DIMENSION)
    store.add(["a"], vectors(1), [None])
    asked: list[str] = []
    follower.connection.set_trace_callback(asked.append)
    time.sleep(LONG_S)
    with other._lock.held():
        versions = [follower.data_version() for _ in range(3)]
    assert len(asked) == 3
    versions += [follower.data_version() for _ in range(3)]
    assert len(asked) == 4  # once more, and then the files are enough
    assert len(set(versions)) == 1
    other.close()


def test_two_writes_that_the_clock_of_the_file_system_cannot_tell_apart_are_both_noticed(
    store: Store, follower: Follower
) -> None:
    """Its clock stands between two ticks: a write in place, of the same size, may leave the times as they were."""
    path, other = str(store.file), Store.open(store.file.parent, DIGEST, DIMENSION)
    moment = time.time_ns() + 10**10  # the last tick was not long ago, however slow this machine is now
    seen, stamps = [], []
    for _ in range(4):
        other._writer.execute("PRAGMA wal_checkpoint")
        other.add(["a"], vectors(1), [None])
        for written in (path, f"{path}-wal"):
            os.utime(written, ns=(moment, moment))
        stamps.append(Stamp.of(path))
        seen.append(follower.data_version())
    assert len(set(stamps[1:])) == 1  # the first one made the log
    assert len(set(seen)) == 4
    other.close()


def test_a_write_just_before_the_lock_is_asked_keeps_the_files_from_counting_as_settled(
    store: Store, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def after_a_write(lock_file: Path) -> Iterator[bool]:
        moment = time.time_ns() + 10**10
        os.utime(store.file, ns=(moment, moment))
        with nobody_writes(lock_file) as sure:
            yield sure

    store.add(["a"], vectors(1), [None])
    time.sleep(LONG_S)
    with monkeypatch.context() as patched:
        patched.setattr("index.follower.nobody_writes", after_a_write)
        follower.data_version()
    asked: list[str] = []
    follower.connection.set_trace_callback(asked.append)
    follower.data_version()
    assert len(asked) == 1


def test_a_file_that_was_opened_as_one_that_does_not_change_is_opened_anew_after_a_write(
    store: Store, follower: Follower
) -> None:
    follower.close()
    first = connect_read_only(store.file, 30.0)
    follower._reader = Reader(first, Stamp.of(str(store.file)))
    before = follower.data_version()
    assert follower.connection is first
    store.add(["a"], vectors(1), [None])
    assert follower.data_version()[0] == before[0] + 1
    assert follower.connection is not first and _rows_seen(follower) == 1


def test_a_transaction_in_progress_keeps_its_moment_and_its_connection(store: Store, follower: Follower) -> None:
    follower._reader = Reader(follower.connection, Stamp.of(str(store.file)))
    connection, before = follower.connection, follower.data_version()
    connection.execute("BEGIN")
    assert _rows_seen(follower) == 0
    store.add(["a"], vectors(1), [None])
    assert (follower.data_version(), _rows_seen(follower)) == (before, 0)
    assert follower.connection is connection
    connection.execute("COMMIT")
    assert (follower.data_version() != before, _rows_seen(follower)) == (True, 1)


def test_a_closed_one_reads_nothing_more_and_may_be_closed_again(follower: Follower) -> None:
    follower.close()
    follower.close()
    with pytest.raises(GalleryError, match="closed"):
        follower.data_version()


def _rows_seen(follower: Follower) -> int:
    return int(follower.connection.execute("SELECT count(*) FROM rows").fetchone()[0])
