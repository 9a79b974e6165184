"""The disk is full: the write is refused with 507, the state before it serves and is whole, and later all goes on.

A limit on the size of files does it everywhere; where this user may mount one, a small disk that is really full does
it as well. SQLite reports the first as an error of input and output, the second as a full disk.
"""

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from index import snapshot
from index.errors import GalleryFull
from index.gallery import Gallery
from index.store import FILE_NAME, Store
from tests.gallery_writer import DIGEST, DIMENSION, SMALL, Change, apply, changes, open_small
from tests.truth import State, after, assert_serves, assert_sound, on_disk

BALLAST = "ballast"


class Disk(Protocol):
    folder: Path

    def full(self) -> Iterator[None]:
        """Within it, nothing can be written that needs room."""


class Limited:
    """No file of this process grows beyond where it could be written to when the limit was set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def full(self, size: int = 512) -> Iterator[None]:
        """size: of the largest file, in bytes."""
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel ends the process
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            signal.signal(signal.SIGXFSZ, ignored)


class Small:
    """A disk of 8 MiB in memory, filled to the last byte and emptied again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.folder / BALLAST
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def disks(folder: Path) -> Iterator[list[Disk]]:
    """Every kind that can be had here."""
    limited, mounted = folder / "limited", folder / "small"
    limited.mkdir()
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "akin-test", str(mounted)]
    found: list[Disk] = [Limited(limited)]
    can_mount = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield [*found, Small(mounted)] if can_mount else found
    finally:
        if can_mount:
            subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.fixture(autouse=True)
def builds_happen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def write(gallery: Gallery, state: State, count: int) -> State:
    """Some changes; returns what the gallery holds then."""
    for change, _ in zip(changes(len(state)), range(count), strict=False):
        apply(gallery, change)
        state = after(state, change)
    return state


def a_large_change(seed: int = 99) -> Change:
    return next(change for change in changes(seed) if len(change.ids) == 300 and change.vectors is not None)


def test_a_write_on_a_full_disk_is_refused_whole_and_works_once_there_is_room(tmp_path: Path) -> None:
    with disks(tmp_path) as kinds:
        for disk in kinds:
            with Gallery.open(disk.folder, DIGEST, DIMENSION) as gallery:
                state = write(gallery, {}, 12)
                with disk.full():
                    for _ in range(3):  # refused as often as it is tried
                        with pytest.raises(GalleryFull, match=r"free s(ome s)?pace") as refused:
                            apply(gallery, a_large_change())
                        assert refused.value.status == 507
                        assert_serves(gallery, state)
                    with pytest.raises(GalleryFull):
                        gallery.remove(sorted(state)[:200])
                    assert_serves(gallery, state)
                    assert_sound(disk.folder)
                assert on_disk(disk.folder) == state
                apply(gallery, a_large_change())
                assert_serves(gallery, after(state, a_large_change()))
            assert_sound(disk.folder)
            assert on_disk(disk.folder) == after(state, a_large_change())


def test_a_write_that_fails_at_any_of_its_pages_leaves_nothing_of_itself(tmp_path: Path) -> None:
    disk = Limited(tmp_path)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        state = write(gallery, {}, 5)
        frame = 16384 + 24
        for room in (0, 1, 24, 1000, frame - 1, frame, frame + 12, 2 * frame, 3 * frame, 3 * frame + 5000):
            log = (tmp_path / f"{FILE_NAME}-wal").stat().st_size
            with disk.full(log + room), pytest.raises(GalleryFull):
                apply(gallery, a_large_change())
            assert on_disk(tmp_path) == state
            small = Change(["small"], a_large_change(room).vectors[:1], f"{room}")
            apply(gallery, small)  # and the log goes on behind what was torn off
            state = after(state, small)
        assert_serves(gallery, state)
    assert_sound(tmp_path)
    assert on_disk(tmp_path) == state


def test_a_disk_that_is_full_for_sqlite_itself_is_refused_in_the_same_way(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        state = write(gallery, {}, 5)
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages}")
        change = a_large_change()
        with pytest.raises(GalleryFull, match="the disk is full; free some space"):
            store.add(change.ids, change.vectors, [None] * 300)
        assert_serves(gallery, state)
        store._writer.execute("PRAGMA max_page_count = 1000000")
        store.add(change.ids, change.vectors, [None] * 300)
        assert gallery.count == len(state | dict.fromkeys(change.ids))
    store.close()
    assert_sound(tmp_path)


def test_other_writers_go_on_after_one_of_them_met_a_full_disk(tmp_path: Path) -> None:
    disk = Limited(tmp_path)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery, Gallery.open(tmp_path, DIGEST, DIMENSION) as other:
        state = write(gallery, {}, 5)
        with disk.full(), pytest.raises(GalleryFull):
            apply(gallery, a_large_change())
        state = write(other, state, 5)
        state = write(gallery, state, 5)
        assert_serves(gallery, state)
        assert_serves(other, state)
    assert_sound(tmp_path)


def test_a_snapshot_that_finds_no_room_leaves_the_former_one_and_the_search_goes_on(tmp_path: Path) -> None:
    with disks(tmp_path) as kinds:
        for disk in kinds:
            with open_small(disk.folder) as gallery:
                state = write(gallery, {}, 12)
                gallery.rebuild()
                before = (disk.folder / snapshot.FILE_NAME).read_bytes()
                state = write(gallery, state, 1)
                with disk.full():
                    for _ in range(2):
                        with pytest.raises(GalleryFull, match=r"snapshot\.akin cannot be written"):
                            gallery.rebuild()
                    assert_serves(gallery, state)
                assert (disk.folder / snapshot.FILE_NAME).read_bytes() == before
                assert not list(disk.folder.glob("*.part"))
                assert_sound(disk.folder)
            with open_small(disk.folder) as gallery:  # from the former one
                assert_serves(gallery, state)
                gallery.rebuild()
                assert_serves(gallery, state)
            assert (disk.folder / snapshot.FILE_NAME).read_bytes() != before
            assert_sound(disk.folder)


def test_a_snapshot_may_find_no_room_at_any_byte_of_it(tmp_path: Path) -> None:
    disk = Limited(tmp_path)
    with open_small(tmp_path) as gallery:
        state = write(gallery, {}, 12)
        gallery.rebuild()
        whole = (tmp_path / snapshot.FILE_NAME).stat().st_size
        header = snapshot.describe(tmp_path)
        for size in np.linspace(0, whole - 1, 9).astype(int).tolist():
            with disk.full(size), pytest.raises(GalleryFull):
                gallery.rebuild()
            assert snapshot.describe(tmp_path) == header
            assert not list(tmp_path.glob("*.part"))
        with disk.full(2 * whole):
            gallery.rebuild()
        assert_serves(gallery, state)
    assert_sound(tmp_path)


def test_what_is_built_beside_without_room_for_its_snapshot_is_searched_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise GalleryFull("no room")

    monkeypatch.setattr(snapshot, "write", full)
    with open_small(tmp_path) as gallery:
        state = write(gallery, {}, 12)
        assert_serves(gallery, state)
        while gallery.stats()["rebuilding"]:
            gallery._closing.wait(0.01)
        assert gallery.stats()["factory"] == "HNSW16,SQ8" and gallery.stats()["snapshot"] is None
        assert_serves(gallery, state)
    assert "no room" in caplog.text
    assert_sound(tmp_path)


def test_a_process_that_starts_on_a_full_disk_reads_or_says_why_not(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        state = write(gallery, {}, 5)
    with Limited(tmp_path).full():
        try:
            with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
                assert_serves(gallery, state)
        except GalleryFull as error:
            assert error.status == 507
    assert on_disk(tmp_path) == state
