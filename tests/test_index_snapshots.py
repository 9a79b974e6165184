"""Snapshots that do not belong here, or are not whole: noticed, never searched, built anew."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index.gallery import Gallery
from index.snapshot import FILE_NAME as SNAPSHOT
from index.store import FILE_NAME, Store
from index.vectors import unit_rows
from tests.gallery_writer import DIGEST, DIMENSION, FACTORY, FLAT_BELOW, SMALL, apply, changes, open_small
from tests.truth import State, after, assert_serves, assert_sound, settle


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def vectors(count: int, seed: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).uniform(-1, 1, (count, DIMENSION)), DIMENSION)


def write(gallery: Gallery, state: State, count: int, seed: int) -> State:
    for change, _ in zip(changes(seed), range(count), strict=False):
        apply(gallery, change)
        state = after(state, change)
    assert len(state) > FLAT_BELOW
    return state


FOREIGN = {
    "another model": ("d" * 64, DIMENSION),
    "another gallery": (DIGEST, DIMENSION),
    "another dimension": (DIGEST, 16),
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A snapshot with the very ids of ours, and other vectors."""
    digest, dimension = FOREIGN[request.param]
    folder = tmp_path / "foreign"
    options = {"factory": FACTORY, "flat_below": FLAT_BELOW}
    with Gallery.open(folder, digest, dimension, **options) as gallery:
        names = [f"{number:04d}" for number in range(2000)]
        rows = np.random.default_rng(5).standard_normal((2000, dimension))
        gallery.add(names, rows, ["foreign"] * 2000)
        gallery.rebuild()
    return folder / SNAPSHOT


def test_a_snapshot_of_another_model_or_gallery_is_not_used_and_replaced(
    tmp_path: Path, foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "own"
    with open_small(folder) as gallery:
        state = write(gallery, {}, 12, seed=4)
        settle(gallery)
    shutil.copy(foreign, folder / SNAPSHOT)
    with open_small(folder) as gallery:
        assert f"{folder / SNAPSHOT} is not used and will be built anew: it is of another" in caplog.text.replace(
            "it is of model dddddddddddd", "it is of another"
        )
        assert_serves(gallery, state)
        settle(gallery)
        assert gallery.stats()["factory"] == FACTORY
        assert_serves(gallery, state)
    caplog.clear()
    with open_small(folder) as gallery:
        assert_serves(gallery, state)
    assert caplog.text == ""
    assert_sound(folder)


def test_a_foreign_snapshot_that_appears_while_the_gallery_is_open_is_not_taken_over(
    tmp_path: Path, foreign: Path
) -> None:
    folder = tmp_path / "own"
    with open_small(folder) as gallery:
        state = write(gallery, {}, 12, seed=4)
        settle(gallery)
        for seed in range(3):
            shutil.copy(foreign, folder / f"{SNAPSHOT}.new")
            (folder / f"{SNAPSHOT}.new").replace(folder / SNAPSHOT)
            state = write(gallery, state, 6, seed)  # enough to make it look for the work of others
            assert_serves(gallery, state)
            settle(gallery)
            assert_serves(gallery, state)
    assert_sound(folder)


def test_a_snapshot_that_knows_rows_the_truth_has_lost_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The truth was put back from a copy made while a build was reading: between the first change that the snapshot
    may lack and the last one that it has."""
    with open_small(tmp_path / "own") as gallery:
        state = write(gallery, {}, 12, seed=4)
        settle(gallery)
        original, began = Store.last_seq, []

        def last_seq_then_more(store: Store) -> int:
            last = original(store)
            if not began:
                began.append(last)
                gallery.add(["kept"], vectors(1, 1), ["kept"])
                (tmp_path / "copy").mkdir()
                with closing(sqlite3.connect(tmp_path / "copy" / FILE_NAME)) as copy:
                    store._writer.backup(copy)
                gallery.add([min(state)], vectors(1, 2), ["lost"])
            return last

        monkeypatch.setattr(Store, "last_seq", last_seq_then_more)
        gallery.rebuild()
        monkeypatch.setattr(Store, "last_seq", original)
    shutil.copy(tmp_path / "own" / SNAPSHOT, tmp_path / "copy")
    state["kept"] = (vectors(1, 1)[0].tobytes(), "kept", "{}", None)
    with open_small(tmp_path / "copy") as gallery:
        assert_serves(gallery, state)
        settle(gallery)
        assert_serves(gallery, state)
    assert "is not used and will be built anew" in caplog.text
    assert_sound(tmp_path / "copy")


def test_verify_raises_no_false_alarm_while_others_write_and_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_small(tmp_path) as gallery:
        write(gallery, {}, 12, seed=4)
        gallery.rebuild()
        original, went_on = Store.last_seq, []

        def last_seq_of_a_moment_ago(store: Store) -> int:
            last = original(store)
            if store is not gallery._store and len(went_on) < 2:
                went_on.append(last)
                gallery.add([f"new {last}"], vectors(1, last), [None])
                gallery.rebuild()
            return last

        monkeypatch.setattr(Store, "last_seq", last_seq_of_a_moment_ago)
        assert_sound(tmp_path)
        assert went_on


@pytest.mark.parametrize(
    "damage", ["a flipped bit", "a missing end", "a missing byte", "more bytes", "nothing", "a folder"]
)
def test_a_damaged_snapshot_is_noticed_and_never_searched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with open_small(tmp_path) as gallery:
        state = write(gallery, {}, 8, seed=9)
        gallery.rebuild()
    file = tmp_path / SNAPSHOT
    whole = file.read_bytes()
    places = [0, 1, len(whole) // 2, len(whole) - 33, len(whole) - 1]
    places += np.random.default_rng(1).integers(len(whole), size=5).tolist()
    for place in places if damage not in ("nothing", "a folder", "more bytes") else [0]:
        file.unlink()
        match damage:
            case "a flipped bit":
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            case "a missing end":
                file.write_bytes(whole[:place])
            case "a missing byte":
                file.write_bytes(whole[:place] + whole[place + 1 :])
            case "more bytes":
                file.write_bytes(whole + bytes(100))
            case "nothing":
                file.touch()
            case "a folder":
                file.mkdir()
        caplog.clear()
        with open_small(tmp_path) as gallery:
            assert "is not used and will be built anew" in caplog.text
            assert_serves(gallery, state)
            if damage == "a folder":
                break
            gallery.rebuild()
            assert_serves(gallery, state)
        assert_sound(tmp_path)
    assert (tmp_path / FILE_NAME).exists()
