"""A backup is whole, of one moment and one file; what is restored from it is that gallery and a new one."""

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import snapshot
from index.backup import backup, restore
from index.errors import GalleryCorrupt, GalleryError, GalleryFull, WrongModel
from index.face import Index
from index.gallery import Gallery
from index.store import FILE_NAME, Store
from index.verify import verify

DIGEST = "b" * 64
DIMENSION = 16


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION))


def open_gallery(folder: Path, **how: Any) -> Gallery:
    return Gallery.open(folder, DIGEST, DIMENSION, **how)


def write_gallery(folder: Path, rows: int = 30) -> None:
    ids = [f"{number}" for number in range(rows)]
    with open_gallery(folder) as gallery:
        gallery.add(ids, vectors(rows), ["cat"] * rows, [{"n": n} for n in range(rows)], [b"c" * 16] * rows)
        gallery.add(["0"], vectors(1, 9), ["dog"])
        gallery.remove(["1", "2"])


def held(index: Index) -> list[tuple[Any, ...]]:
    return [(row.id, row.vector.tobytes(), *row[2:]) for rows in index.records() for row in rows]


def identity(folder: Path) -> str:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_restored_is_what_was_backed_up(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery")
    assert backup(tmp_path / "gallery", tmp_path / "bak" / "a.bak") == 28
    assert restore(tmp_path / "bak" / "a.bak", tmp_path / "again", DIGEST, DIMENSION) == 28
    with open_gallery(tmp_path / "gallery") as gallery, open_gallery(tmp_path / "again") as again:
        assert held(again) == held(gallery)
        assert again.search(vectors(30)[5:6], 1)[0][0].id == "5"
    assert verify(tmp_path / "again", DIGEST, DIMENSION) == []


def test_a_backup_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    with open_gallery(tmp_path / "gallery") as gallery:
        gallery.add(["in the log"], vectors(1), [None])
        assert (tmp_path / "gallery" / f"{FILE_NAME}-wal").stat().st_size > 0
        (tmp_path / "bak").mkdir()
        assert backup(tmp_path / "gallery", tmp_path / "bak" / "a.bak") == 1
    assert names(tmp_path / "bak") == ["a.bak"]
    assert (tmp_path / "bak" / "a.bak").read_bytes()[18:20] == b"\1\1"  # a rollback journal, not a log beside it


def test_a_backup_is_of_one_moment_while_others_write(tmp_path: Path) -> None:
    ids = [f"{number}" for number in range(200)]
    with open_gallery(tmp_path / "gallery") as gallery:
        gallery.add(ids, vectors(200), ["0"] * 200)
        stop = threading.Event()

        def write() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                gallery.add(ids, vectors(200, turn), [f"{turn}"] * 200)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for turn in range(5):
                backup(tmp_path / "gallery", tmp_path / f"{turn}.bak")
        finally:
            stop.set()
            writer.join()
    labels = []
    for turn in range(5):
        restore(tmp_path / f"{turn}.bak", tmp_path / f"{turn}", DIGEST, DIMENSION)
        with open_gallery(tmp_path / f"{turn}") as again:
            labels.append({row.label for rows in again.records() for row in rows})
            assert again.count == 200
    assert [len(some) for some in labels] == [1] * 5
    assert labels[0] != labels[4], "the writer wrote nothing meanwhile"


def test_a_snapshot_of_the_old_gallery_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", 300)
    with open_gallery(tmp_path / "gallery", flat_below=100) as gallery:
        gallery.rebuild()
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / snapshot.FILE_NAME).write_bytes((tmp_path / "gallery" / snapshot.FILE_NAME).read_bytes())
    restore(tmp_path / "a.bak", tmp_path / "again", DIGEST, DIMENSION)
    assert identity(tmp_path / "again") != identity(tmp_path / "gallery")
    with closing(Store.open(tmp_path / "again", DIGEST, DIMENSION)) as store:
        owner = snapshot.Owner(store.identity, DIGEST, DIMENSION)
        assert snapshot.fault(tmp_path / "again", owner, store.last_seq()) == "it is of another gallery"
        assert snapshot.read(tmp_path / "again", owner, store.last_seq()) is None
    assert verify(tmp_path / "gallery", DIGEST, DIMENSION) == []


def test_each_restored_gallery_is_another_one(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery")
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    for name in ("one", "two"):
        restore(tmp_path / "a.bak", tmp_path / name, DIGEST, DIMENSION)
    assert len({identity(tmp_path / name) for name in ("gallery", "one", "two")}) == 3


@pytest.mark.parametrize("leftover", [FILE_NAME, f"{FILE_NAME}-wal"])
def test_a_gallery_that_is_there_is_never_replaced(tmp_path: Path, leftover: str) -> None:
    write_gallery(tmp_path / "gallery")
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / leftover).write_bytes(b"mine")
    with pytest.raises(GalleryError, match="is there already; move it away"):
        restore(tmp_path / "a.bak", tmp_path / "mine", DIGEST, DIMENSION)
    assert (tmp_path / "mine" / leftover).read_bytes() == b"mine"
    assert names(tmp_path / "mine") == [leftover]


def test_a_gallery_made_while_a_restore_checks_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gallery(tmp_path / "gallery")
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"quicker")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(GalleryError, match="is there already"):
        restore(tmp_path / "a.bak", tmp_path / "mine", DIGEST, DIMENSION)
    assert (tmp_path / "mine" / FILE_NAME).read_bytes() == b"quicker"


def test_every_kind_of_damage_is_refused_before_anything_is_seen(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery", 60)
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    whole = (tmp_path / "a.bak").read_bytes()
    # A byte of the last row's vector, whose row alone knows better: SQLite finds nothing wrong with it.
    with closing(sqlite3.connect(tmp_path / "a.bak")) as connection:
        (vector,) = connection.execute("SELECT vector FROM vectors ORDER BY key DESC LIMIT 1").fetchone()
    place = whole.rindex(vector) + 5
    damaged = {
        "flipped": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        "cut": whole[: len(whole) // 2],
        "noise": b"no database" * 5000,
        "nothing": b"",
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.bak").write_bytes(content)
        with pytest.raises(GalleryCorrupt) as refused:
            restore(tmp_path / f"{name}.bak", tmp_path / "again", DIGEST, DIMENSION)
        assert f"{name}.bak" in str(refused.value)
        assert not (tmp_path / "again").exists()
        if name == "flipped":
            assert "row 60 (id '59') fails its checksum" in str(refused.value)
    assert ".akin-" not in "".join(names(tmp_path))


def test_a_damaged_gallery_does_not_replace_a_good_backup(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery")
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    good = (tmp_path / "a.bak").read_bytes()
    with closing(sqlite3.connect(tmp_path / "gallery" / FILE_NAME)) as connection:
        connection.execute("UPDATE rows SET label = 'cow' WHERE id IN ('7', '8')")
        connection.commit()
    with pytest.raises(GalleryCorrupt, match=r"gallery.gallery\.sqlite: row 8 \(id '7'\).*and 1 faults more"):
        backup(tmp_path / "gallery", tmp_path / "a.bak")
    assert (tmp_path / "a.bak").read_bytes() == good


def test_a_backup_of_another_model_is_refused(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery")
    backup(tmp_path / "gallery", tmp_path / "a.bak")
    for digest, dimension in (("e" * 64, DIMENSION), (DIGEST, 512)):
        with pytest.raises(WrongModel, match=f"vectors of model bbbbbbbbbbbb and dimension 16.*{dimension}"):
            restore(tmp_path / "a.bak", tmp_path / "again", digest, dimension)
    assert not (tmp_path / "again").exists()


def test_a_disk_that_fills_up_leaves_the_old_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(tmp_path / "gallery", 300)
    (tmp_path / "a.bak").write_bytes(b"old")
    connect = sqlite3.connect

    def small(*where: Any, **how: Any) -> sqlite3.Connection:
        connection = connect(*where, **how)
        connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr("index.backup.sqlite3.connect", small)
    with pytest.raises(GalleryFull, match="has no room for a copy"):
        backup(tmp_path / "gallery", tmp_path / "a.bak")
    assert (tmp_path / "a.bak").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bak", "gallery"]


def test_places_that_make_no_sense_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery")
    with pytest.raises(GalleryError, match=r"no gallery in .*nowhere"):
        backup(tmp_path / "nowhere", tmp_path / "a.bak")
    with pytest.raises(GalleryError, match="name a file outside of"):
        backup(tmp_path / "gallery", tmp_path / "gallery" / FILE_NAME)
    with pytest.raises(GalleryError, match="cannot be the backup"):
        backup(tmp_path / "gallery", tmp_path)
    with pytest.raises(GalleryError, match=r"no backup at .*; `akin index backup FILE` makes one"):
        restore(tmp_path / "a.bak", tmp_path / "again", DIGEST, DIMENSION)
