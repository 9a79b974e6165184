"""A gallery that may only be read: searched, never written, and never quietly behind the one who may write."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryError, GalleryReadOnly
from index.filters import Filter
from index.gallery import Gallery
from index.snapshot import FILE_NAME as SNAPSHOT
from index.store import FILE_NAME
from tests.gallery_writer import DIGEST, DIMENSION, SMALL, Change, Writer, apply, changes, open_small
from tests.truth import State, after, assert_serves, assert_sound, on_disk, settle

NOBODY = 65534
LOG, SHARED = f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        (Path(made) / "gallery").mkdir()
        yield Path(made) / "gallery"
        os.chmod(Path(made) / "gallery", 0o755)


@contextmanager
def may_only_read(folder: Path) -> Iterator[None]:
    """Within it this process, its threads included, may not write in the folder. Modes mean nothing to root, so it is
    somebody else for as long."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.iterdir())}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)


def filled(folder: Path, count: int = 12, *, small: bool = False) -> State:
    """Write to the gallery; returns what it holds."""
    state: State = {}
    with open_small(folder) if small else Gallery.open(folder, DIGEST, DIMENSION) as gallery:
        for change, _ in zip(changes(4), range(count), strict=False):
            apply(gallery, change)
            state = after(state, change)
        settle(gallery)
    return state


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def a_change() -> Change:
    return Change(["new"], np.eye(1, DIMENSION, dtype=np.float32), "new")


def assert_writes_are_refused(gallery: Gallery) -> None:
    for write in (lambda: apply(gallery, a_change()), lambda: gallery.remove(["0001"])):
        with pytest.raises(
            GalleryReadOnly, match="give this user the right to write, or name another folder"
        ) as refused:
            write()
        assert refused.value.status == 403


def test_a_read_only_gallery_is_searched_and_refuses_writes_and_nothing_is_made_in_its_folder(folder: Path) -> None:
    state = filled(folder)
    before = names(folder)
    with may_only_read(folder), Gallery.open(folder, DIGEST, DIMENSION) as gallery:
        assert_serves(gallery, state)
        assert_writes_are_refused(gallery)
        assert gallery.get(["new", min(state)])[0] is None
        assert gallery.get([min(state)])[0].vector.tobytes() == state[min(state)][0]
        label = state[min(state)][1]
        found = gallery.search(np.eye(1, DIMENSION), 2000, Filter.parse({"label": label}))[0]
        assert {hit.id for hit in found} == {name for name, row in state.items() if row[1] == label}
        assert_serves(gallery, state)
        assert_sound(folder)
        assert names(folder) == before
    assert names(folder) == before
    assert on_disk(folder) == state


def test_a_read_only_gallery_opens_from_its_snapshot_and_builds_for_itself_where_there_is_none(folder: Path) -> None:
    state = filled(folder, small=True)
    with may_only_read(folder), open_small(folder) as gallery:
        assert gallery.stats()["factory"] == "HNSW16,SQ8"
        assert_serves(gallery, state)
        assert_writes_are_refused(gallery)
        gallery.rebuild()
        assert_serves(gallery, state)
    (folder / SNAPSHOT).unlink()
    before = names(folder)
    with may_only_read(folder), open_small(folder) as gallery:
        assert_serves(gallery, state)
        settle(gallery)
        assert gallery.stats()["factory"] == "HNSW16,SQ8" and gallery.stats()["snapshot"] is None
        assert_serves(gallery, state)
    assert names(folder) == before


def killed(folder: Path, count: int = 6) -> State:
    """What a gallery holds whose writer was killed, so that its last writes are in the log only."""
    state: State = {}
    with Writer(folder, 4, "step") as writer:
        for change, _ in zip(changes(4), range(count), strict=False):
            writer.ask_for_a_write()
            writer.wait_for_a_write()
            state = after(state, change)
        writer.kill()
    assert {LOG, SHARED} <= names(folder) and (folder / LOG).stat().st_size > 0
    return state


def test_what_a_killed_writer_left_in_the_log_is_read_where_nothing_may_be_written(folder: Path) -> None:
    state = killed(folder)
    before = names(folder)
    with may_only_read(folder), Gallery.open(folder, DIGEST, DIMENSION) as gallery:
        assert_serves(gallery, state)
        assert_writes_are_refused(gallery)
    assert names(folder) == before
    assert on_disk(folder) == state


def test_a_log_that_cannot_be_read_is_an_error_with_a_way_out_and_never_left_out(folder: Path) -> None:
    state = killed(folder)
    (folder / SHARED).unlink()  # as in a copy, or after a restart of the machine
    with may_only_read(folder), pytest.raises(GalleryReadOnly, match="give this user the right to"):
        Gallery.open(folder, DIGEST, DIMENSION)
    assert on_disk(folder) == state  # by one who may write


def test_an_empty_log_that_was_left_is_no_hindrance(folder: Path) -> None:
    state = filled(folder)
    (folder / LOG).touch()
    with may_only_read(folder), Gallery.open(folder, DIGEST, DIMENSION) as gallery:
        assert_serves(gallery, state)


def test_a_reader_that_came_before_the_writer_sees_what_it_writes(folder: Path) -> None:
    state = filled(folder)
    reads = Path(shutil.copytree(folder, folder.with_name("reads")))
    for small, where in ((False, folder), (True, reads)):
        expected = dict(state)
        with may_only_read(where):
            reader = open_small(where) if small else Gallery.open(where, DIGEST, DIMENSION)
            assert_serves(reader, expected)
            assert reader.get(["new"]) == [None]
        for seed in (21, 22):  # the second writer comes after the first one has gone
            with Writer(where, seed, "step") as writer:
                for change, _ in zip(changes(seed), range(8), strict=False):
                    writer.ask_for_a_write()
                    writer.wait_for_a_write()
                    expected = after(expected, change)
                    with may_only_read(where):
                        assert (reader.get(change.ids[:1])[0] is None) == (change.ids[0] not in expected)
                        assert_serves(reader, expected)
                        assert_writes_are_refused(reader)
                writer.end()
            with may_only_read(where):
                assert_serves(reader, expected)
        reader.close()
        assert on_disk(where) == expected


def test_a_reader_beside_a_writer_sees_what_it_writes_also_after_it_was_killed(folder: Path) -> None:
    expected = filled(folder)
    for seed in (31, 32):
        with Writer(folder, seed, "step") as writer:
            writer.ask_for_a_write()
            writer.wait_for_a_write()
            series = changes(seed)
            expected = after(expected, next(series))
            with may_only_read(folder):
                reader = Gallery.open(folder, DIGEST, DIMENSION)
            for change, _ in zip(series, range(6), strict=False):
                writer.ask_for_a_write()
                writer.wait_for_a_write()
                expected = after(expected, change)
                with may_only_read(folder):
                    assert_serves(reader, expected)
            writer.kill()
        with may_only_read(folder):
            assert_serves(reader, expected)
            reader.close()


def test_a_gallery_that_became_read_only_while_it_was_open_is_searched_on(folder: Path) -> None:
    state = filled(folder, small=True)
    with open_small(folder) as gallery:
        with may_only_read(folder):
            assert_serves(gallery, state)
        apply(gallery, a_change())
        assert_serves(gallery, after(state, a_change()))


@pytest.mark.parametrize("below", ["", "gallery", "a/b"])
def test_a_gallery_that_cannot_be_made_is_an_error_that_names_the_folder_and_a_way_out(
    folder: Path, below: str
) -> None:
    with (
        may_only_read(folder),
        pytest.raises(GalleryReadOnly, match=f"{folder / below}.*name another folder") as refused,
    ):
        Gallery.open(folder / below, DIGEST, DIMENSION)
    assert refused.value.status == 403
    assert names(folder) == set()


def test_a_gallery_in_a_folder_that_may_not_be_entered_is_an_error_that_names_it(folder: Path) -> None:
    filled(folder)
    folder.chmod(0o600)
    with may_only_read(folder), pytest.raises(GalleryReadOnly, match=f"{folder}.*name another folder"):
        Gallery.open(folder, DIGEST, DIMENSION)


@pytest.mark.parametrize("below", ["", "gallery"])
def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(folder: Path, below: str) -> None:
    (folder / "photo.jpg").write_bytes(b"no folder")
    with pytest.raises(GalleryError, match=r"photo\.jpg"):
        Gallery.open(folder / "photo.jpg" / below, DIGEST, DIMENSION)


def test_a_gallery_whose_file_alone_may_not_be_written_is_read(folder: Path) -> None:
    state = filled(folder, small=True)
    folder.chmod(0o777)
    (folder / "gallery.lock").chmod(0o666)
    (folder / FILE_NAME).chmod(0o444)
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        with open_small(folder) as gallery:
            assert_serves(gallery, state)
            assert_writes_are_refused(gallery)
    finally:
        os.seteuid(user)
