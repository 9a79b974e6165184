"""Writers are killed with SIGKILL at any moment; what they had acknowledged must be there, and be found."""

import os
import random
import time
from itertools import islice
from pathlib import Path

import pytest

from index import snapshot
from tests.gallery_writer import SMALL, Change, Writer, changes, open_small
from tests.truth import State, after, assert_serves, assert_sound, on_disk

DEADLINE_S = 60


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def settled(state: State, seed: int, acknowledged: int, found: State, prefix: str = "") -> State:
    """`state` after what was acknowledged; the change that was under way may be there as well, if so then whole."""
    series = changes(seed, prefix)
    for change in islice(series, acknowledged):
        state = after(state, change)
    under_way: Change = next(series)
    assert found == state or found == after(state, under_way)
    return found


def wait_for_a_part(folder: Path) -> None:
    """Until a snapshot is being written."""
    deadline = time.monotonic() + DEADLINE_S
    while not parts(folder):
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def wait_for_a_snapshot(folder: Path) -> None:
    """Until one took the place of what was there."""
    deadline = time.monotonic() + DEADLINE_S
    former = snapshot.version(folder)
    while snapshot.version(folder) in (None, former):
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def parts(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def kill_again_and_again(folder: Path, rounds: int) -> None:
    moments = random.Random(7)
    state: State = {}
    acknowledged = halves = 0
    snapshots = set()
    for seed in range(rounds):
        with Writer(folder, seed, "--small") as writer:
            match seed % 5:
                case 1:
                    wait_for_a_part(folder)
                case 2:
                    wait_for_a_snapshot(folder)
                case 3:  # while it opens the gallery
                    time.sleep(moments.uniform(0.2, 0.6))
                case _:
                    writer.wait_for_a_write()
                    time.sleep(moments.uniform(0, 0.4))
            count = writer.kill()
        halves += bool(parts(folder))
        assert_sound(folder)
        state = settled(state, seed, count, on_disk(folder))
        with open_small(folder) as gallery:
            assert_serves(gallery, state, seed)
        snapshots.add(snapshot.version(folder))
        acknowledged += count
    # Else the rounds would prove little.
    assert acknowledged > 5 * rounds and halves and len(snapshots) > 2 and len(state) > 400
    with open_small(folder) as gallery:
        gallery.rebuild()
        assert_serves(gallery, state)
    assert parts(folder) == []


def test_kill_9_amid_writes_snapshots_and_rebuilds_loses_nothing_acknowledged_and_leaves_nothing_half_done(
    tmp_path: Path,
) -> None:
    kill_again_and_again(tmp_path, 10)


@pytest.mark.long
def test_kill_9_two_hundred_times(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 200)


def kill_one_beside_another(folder: Path, rounds: int) -> None:
    """Two write at once, each its own ids; now the one is killed, now the other."""
    moments = random.Random(8)
    states: list[State] = [{}, {}]
    prefixes = ("a", "b")
    writers = [Writer(folder, place, "--small", "--prefix", prefix) for place, prefix in enumerate(prefixes)]
    seeds = [0, 1]
    try:
        for seed in range(2, 2 + rounds):
            place = seed % 2
            for writer in writers:
                writer.wait_for_a_write()
            time.sleep(moments.uniform(0, 0.3))
            count = writers[place].kill()
            found = {name: row for name, row in on_disk(folder).items() if name.startswith(prefixes[place])}
            states[place] = settled(states[place], seeds[place], count, found, prefixes[place])
            assert_sound(folder)
            writers[place].__exit__()
            writers[place] = Writer(folder, seed, "--small", "--prefix", prefixes[place])
            seeds[place] = seed
        counts = [writer.kill() for writer in writers]
    finally:
        for writer in writers:
            writer.__exit__()
    everything = on_disk(folder)
    for place, prefix in enumerate(prefixes):
        found = {name: row for name, row in everything.items() if name.startswith(prefix)}
        states[place] = settled(states[place], seeds[place], counts[place], found, prefix)
    assert_sound(folder)
    with open_small(folder) as gallery:
        assert_serves(gallery, states[0] | states[1])


def test_a_writer_that_is_killed_costs_the_other_one_nothing(tmp_path: Path) -> None:
    kill_one_beside_another(tmp_path, 4)


@pytest.mark.long
def test_two_writers_killed_by_turns_sixty_times(tmp_path: Path) -> None:
    kill_one_beside_another(tmp_path, 60)


def test_a_gallery_whose_making_was_killed_can_be_made(tmp_path: Path) -> None:
    moments = random.Random(9)
    for seed in range(4):
        folder = tmp_path / f"{seed}" / "gallery"
        with Writer(folder, seed) as writer:
            deadline = time.monotonic() + DEADLINE_S
            while not folder.exists():
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.03))
            count = writer.kill()
        state = settled({}, seed, count, on_disk(folder))
        assert_sound(folder)
        with open_small(folder) as gallery:
            assert_serves(gallery, state)
