"""Damage anywhere in a gallery is named, and a sound one is called sound."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index import snapshot
from index.base import Base
from index.builder import build
from index.documents import Documents
from index.errors import GalleryError, WrongModel
from index.flat import Entry
from index.snapshot import Owner
from index.store import FILE_NAME, Store
from index.verify import verify
from tests.acceleration import DIGEST, DIMENSION, Truth


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    """Some changed rows, and a snapshot that knows most of them."""
    made = Truth(tmp_path, rows=300)
    made.change(replaced=30, removed=20, added=10)
    write(made, build(made.store, "SQ8", 1))
    made.change(replaced=30, removed=20, added=10)
    yield made
    made.store.close()


def write(truth: Truth, base: Base) -> None:
    owner = Owner(truth.store.identity, DIGEST, DIMENSION)
    snapshot.write(truth.store.file.parent, owner, base)


def faults(truth: Truth) -> list[str]:
    return verify(truth.store.file.parent, DIGEST, DIMENSION)


def vandalize(truth: Truth, *statements: str) -> None:
    for statement in statements:
        truth.store._writer.execute(statement)


def test_a_sound_gallery_has_no_faults_with_or_without_a_snapshot(truth: Truth) -> None:
    assert faults(truth) == []
    snapshot.remove(truth.store.file.parent)
    assert faults(truth) == []
    truth.store.remove(truth.names)
    assert faults(truth) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE vectors SET vector = zeroblob(128) WHERE key = {key}",
        "UPDATE rows SET label = label || 'x' WHERE key = {key}",
        "UPDATE rows SET id = 'other' WHERE key = {key}",
        "UPDATE rows SET removed = 1 WHERE key = {key}",
        "DELETE FROM vectors WHERE key = {key}",
    ],
)
def test_a_damaged_row_is_named_and_only_it(truth: Truth, damage: str) -> None:
    name, held = sorted(truth.rows().items())[7]
    vandalize(truth, damage.format(key=held.key))
    shown = "other" if "'other'" in damage else name
    assert faults(truth) == [f"{truth.store.file}: row {held.key} (id '{shown}') fails its checksum"]


def test_every_damaged_row_and_lost_vector_is_named(truth: Truth) -> None:
    rows = sorted(truth.rows().values())
    first, second, third = (row.key for row in (rows[3], rows[40], rows[99]))
    vandalize(
        truth,
        f"UPDATE rows SET metadata = NULL WHERE key IN ({first}, {second})",
        f"DELETE FROM rows WHERE key = {third}",
    )
    file = truth.store.file
    found = faults(truth)
    assert [line.split(" (id")[0] for line in found] == [
        f"{file}: row {first}",
        f"{file}: row {second}",
        f"{file}: vector {third} has no row",
    ]


def test_a_flipped_bit_in_the_snapshot_is_told_with_what_comes_of_it(truth: Truth) -> None:
    file = truth.store.file.with_name(snapshot.FILE_NAME)
    whole = file.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole), size=20).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        (line,) = faults(truth)
        assert line.startswith(f"{file}: its bytes do not fit its checksum; it is not used, and built anew")
    for length in (0, 3, 35, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert len(faults(truth)) == 1
    file.write_bytes(whole)
    assert faults(truth) == []


def test_a_snapshot_of_another_gallery_is_told(truth: Truth, tmp_path: Path) -> None:
    other = Truth(tmp_path / "other", rows=200)
    base = build(other.store, "SQ8", 1)
    other.store.close()
    snapshot.write(truth.store.file.parent, Owner(other.store.identity, DIGEST, DIMENSION), base)
    (line,) = faults(truth)
    assert "it is of another gallery; it is not used" in line
    snapshot.write(truth.store.file.parent, Owner(truth.store.identity, "b" * 64, DIMENSION), base)
    (line,) = faults(truth)
    assert "it is of model bbbbbbbbbbbb, not aaaaaaaaaaaa" in line


def test_a_snapshot_that_knows_more_than_the_truth_is_told(truth: Truth) -> None:
    last = truth.store.last_seq()
    base = build(truth.store, "SQ8", 1)
    base.seqs[5] = last + 7
    write(truth, base)
    (line,) = faults(truth)
    assert f"it knows change {last + 7}, the truth only {last}" in line


def test_a_whole_snapshot_that_says_other_than_the_truth_is_told_row_by_row(truth: Truth) -> None:
    base = build(truth.store, "SQ8", 1)
    entries = base.documents.at(np.arange(len(base)))
    key_of = dict(zip((entry.id for entry in entries), base.keys.tolist(), strict=True))
    entries[3] = Entry("other", entries[3].label, entries[3].metadata)
    entries[4] = entries[4]._replace(label="other")
    entries[5] = entries[5]._replace(metadata="")
    seqs = base.seqs.copy()
    seqs[[8, 9]] = [0, seqs[9] - 1 or 1]
    write(truth, Base(base.index, "SQ8", base.keys, seqs, Documents.pack(entries), base.last_seq))
    file = truth.store.file.with_name(snapshot.FILE_NAME)
    found = faults(truth)
    there = {name: held.key for name, held in truth.rows().items()}
    named = {key: name for name, key in there.items()}
    assert found == [
        *(
            f"{file}: row {key} (id '{named[key]}') stands in it with another id, label or metadata; "
            "run `akin index rebuild`"
            for key in base.keys[3:6].tolist()
        ),
        *(
            f"{file}: row {key} (id '{named[key]}') is missing from it; run `akin index rebuild`"
            for key in base.keys[8:10].tolist()
        ),
    ]
    assert len(key_of) == len(base)


def test_a_removed_row_that_stands_in_the_snapshot_is_told(truth: Truth) -> None:
    base = build(truth.store, "SQ8", 1)
    truth.store.remove([name for name, held in truth.rows().items() if held.key == base.keys[0]])
    base = Base(base.index, "SQ8", base.keys, base.seqs, base.documents, truth.store.last_seq())
    write(truth, base)
    (line,) = faults(truth)
    assert (
        f"row {base.keys[0]} (id '" in line and "is in it, and was removed before; run `akin index rebuild`" in line
    )


def test_the_snapshot_is_compared_beside_rows_that_came_while_it_was_built(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.builder.ADD_ROWS", 50)
    base = build(truth.store, "SQ8", 1, on_rows=lambda _: truth.change(replaced=5, removed=5, added=5))
    write(truth, base)
    assert int(base.seqs.max()) > base.last_seq
    assert faults(truth) == []


def test_a_flipped_bit_anywhere_in_the_truth_is_told_or_harmless(tmp_path: Path) -> None:
    truth = Truth(tmp_path, rows=60)
    truth.store.remove(truth.names[:5])
    rows = {name: str(held[:3]) + held.vector.tobytes().hex() for name, held in truth.rows().items()}
    truth.store.close()
    file = tmp_path / FILE_NAME
    sound = file.read_bytes()
    used = [place for place, byte in enumerate(sound) if byte]
    random = np.random.default_rng(3)
    told = 0
    for place in [*range(100), *random.choice(used, 200, replace=False).tolist()]:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        try:
            found = verify(tmp_path, DIGEST, DIMENSION)
        except GalleryError as error:
            found = [str(error)]
        if found:
            told += 1
            continue
        with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:
            read = {
                row.id: str((row.key, row.seq, row.label)) + row.vector.tobytes().hex()
                for batch in store.scan()
                for row in batch
                if row.vector is not None
            }
        assert read == rows
    assert told > 150


def test_what_is_found_before_sqlite_cannot_read_on_is_still_told(tmp_path: Path) -> None:
    truth = Truth(tmp_path, rows=3000)
    vandalize(truth, "UPDATE rows SET label = 'other' WHERE key = 2")
    truth.store.close()
    with (tmp_path / FILE_NAME).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(size // 2 // 16384, size // 16384):
            file.seek(page * 16384)
            file.write(b"\xff" * 200)
    found = verify(tmp_path, DIGEST, DIMENSION)
    assert len(found) >= 3
    assert "is damaged" in found[0] and "is damaged" in found[-1]
    assert f"{tmp_path / FILE_NAME}: row 2 (id '00001') fails its checksum" in found


def test_a_folder_without_a_gallery_is_no_sound_one_and_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"no gallery in .*; name a folder that has one"):
        verify(tmp_path, DIGEST, DIMENSION)
    with pytest.raises(GalleryError, match="no gallery in"):
        verify(tmp_path / "nowhere", DIGEST, DIMENSION)
    assert list(tmp_path.iterdir()) == []


def test_a_gallery_of_another_model_is_refused(truth: Truth) -> None:
    with pytest.raises(WrongModel, match="bbbbbbbbbbbb"):
        verify(truth.store.file.parent, "b" * 64, DIMENSION)
    with pytest.raises(WrongModel, match="dimension"):
        verify(truth.store.file.parent, DIGEST, 512)
