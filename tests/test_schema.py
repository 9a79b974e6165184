"""A gallery of the first format is carried over whole or left as it was; what is none of ours is refused."""

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index import schema
from index.errors import GalleryCorrupt, GalleryError, WrongModel
from index.gallery import Gallery
from index.seal import row_checksum
from index.snapshot import FILE_NAME as SNAPSHOT
from index.store import FILE_NAME, Store
from index.vectors import unit_rows
from index.verify import verify

DIGEST = "a" * 64
DIMENSION = 8
FORMAT_1 = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    vector BLOB,      -- little-endian float32 of unit length; NULL in a tombstone
    label TEXT,
    metadata TEXT,    -- a JSON object, or NULL for an empty one
    checksum INTEGER NOT NULL
) STRICT
""",
)
VECTORS = unit_rows(np.random.default_rng(0).standard_normal((9, DIMENSION)), DIMENSION)
# Seqs have gaps where rows were replaced; two rows were removed.
OLD_ROWS = [
    (1, "photos/a.jpg", VECTORS[0], "cat", '{"n": 1, "by": "Zo\\u00eb"}'),
    (3, "ä", VECTORS[1], None, None),
    (4, "gone", None, None, None),
    (7, "b", VECTORS[2], "dog", None),
    (8, "gone too", None, None, None),
    (12, "c", VECTORS[3], None, '{"n": 2}'),
]


def old_gallery(folder: Path, *, digest: str = DIGEST) -> Path:
    """As the first akin left it."""
    folder.mkdir(exist_ok=True)
    file = folder / FILE_NAME
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute("PRAGMA page_size = 16384")
        old.execute("PRAGMA journal_mode = WAL")
        for statement in FORMAT_1:
            old.execute(statement)
        meta = [("format", "1"), ("model_digest", digest), ("dimension", str(DIMENSION))]
        old.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        for seq, name, vector, label, document in OLD_ROWS:
            blob = None if vector is None else vector.astype("<f4").tobytes()
            text = f"{seq}\0{name}\0{label or ''}\0{document or ''}"
            checksum = zlib.crc32(blob or b"", zlib.crc32(text.encode()))
            old.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (seq, name, blob, label, document, checksum))
    return file


def vandalize(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute(statement)


def test_every_row_and_tombstone_of_the_first_format_is_carried_over(tmp_path: Path) -> None:
    old_gallery(tmp_path)
    with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:
        read = [
            (row.key, row.seq, row.id, None if row.vector is None else row.vector.tobytes(), row.label, row.metadata)
            for row in store.changes(0)
        ]
        assert read == [
            (seq, seq, name, None if vector is None else vector.tobytes(), label, document)
            for seq, name, vector, label, document in OLD_ROWS
        ]
        assert (store.count(), store.last_seq(), store.live_keys().tolist()) == (4, 12, [1, 3, 7, 12])
        assert len(store.identity) == 32
        identity = store.identity
        for key, seq, name, label, document, content, removed, checksum in store._writer.execute(
            "SELECT * FROM rows"
        ):
            vector = {row[0]: row[2] for row in OLD_ROWS}[seq]
            blob = None if vector is None else vector.tobytes()
            assert checksum == row_checksum(key, seq, name, blob, label, document, None)
            assert (content, removed) == (None, int(vector is None))
        assert store._writer.execute("SELECT count(*) FROM vectors").fetchone() == (4,)
    assert verify(tmp_path, DIGEST, DIMENSION) == []
    with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:  # only once
        assert store.identity == identity


def test_a_gallery_that_was_carried_over_is_searched_and_goes_on(tmp_path: Path) -> None:
    old_gallery(tmp_path)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        (near,) = gallery.search(VECTORS[:1], 9)
        assert near[0].id == "photos/a.jpg" and len(near) == 4
        assert (near[0].label, near[0].metadata) == ("cat", {"n": 1, "by": "Zoë"})
        gallery.add(["gone", "b", "new"], VECTORS[4:7], ["back", "again", None])
        keys = {row.id: (row.key, row.seq) for row in gallery._store.changes_aside(12)}
        assert keys == {"gone": (4, 13), "b": (7, 14), "new": (13, 15)}
    assert verify(tmp_path, DIGEST, DIMENSION) == []


DAMAGE = {
    "a label": ("UPDATE rows SET label = 'dog' WHERE seq = 1", r"row 1 \(id 'photos/a.jpg'\)"),
    "a vector": ("UPDATE rows SET vector = zeroblob(32) WHERE seq = 12", r"row 12 \(id 'c'\)"),
    "a lost vector": ("UPDATE rows SET vector = NULL WHERE seq = 7", r"row 7 \(id 'b'\)"),
    "a tombstone": ("UPDATE rows SET id = 'gonE' WHERE seq = 4", r"row 4 \(id 'gonE'\)"),
    "a page": (None, "is damaged"),
}


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_one_is_refused_by_the_name_of_its_row_and_left_as_it_was(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    file = old_gallery(tmp_path)
    if damage is None:
        _flip(file, 16384 * 3)
    else:
        vandalize(file, damage)
    before = file.read_bytes()
    for _ in range(2):
        with pytest.raises(GalleryCorrupt, match=message):
            Store.open(tmp_path, DIGEST, DIMENSION)
    with pytest.raises(GalleryCorrupt, match=message):
        verify(tmp_path, DIGEST, DIMENSION)
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {FILE_NAME, "gallery.lock"}


@pytest.mark.parametrize(("digest", "dimension"), [("b" * 64, DIMENSION), (DIGEST, 16)])
def test_one_of_another_model_is_refused_and_left_as_it_was(tmp_path: Path, digest: str, dimension: int) -> None:
    file = old_gallery(tmp_path)
    before = file.read_bytes()
    with pytest.raises(WrongModel):
        Store.open(tmp_path, digest, dimension)
    assert file.read_bytes() == before
    with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:
        assert store.count() == 4


def test_one_whose_carrying_over_is_interrupted_is_carried_over_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_gallery(tmp_path)
    before = file.read_bytes()
    calls = []

    def interrupted(*fields: object) -> None:
        calls.append(fields)
        if len(calls) == 4:
            raise KeyboardInterrupt

        return original(*fields)

    original = schema.sealed
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(schema, "sealed", interrupted)
        Store.open(tmp_path, DIGEST, DIMENSION)
    assert file.read_bytes() == before
    with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:
        assert store.count() == 4


def test_one_whose_own_description_is_damaged_is_refused(tmp_path: Path) -> None:
    for turn, key in enumerate(("model_digest", "dimension", "format")):
        file = old_gallery(tmp_path / str(turn))
        vandalize(file, f"UPDATE meta SET key = 'x{key}' WHERE key = '{key}'")
        with pytest.raises(GalleryError):
            Store.open(file.parent, DIGEST, DIMENSION)


def test_a_new_gallery_has_the_present_format_and_an_identity_of_its_own(tmp_path: Path) -> None:
    found = []
    for name in "one", "two":
        Store.open(tmp_path / name, DIGEST, DIMENSION).close()
        with closing(sqlite3.connect(tmp_path / name / FILE_NAME)) as read:
            found.append(dict(read.execute("SELECT key, value FROM meta").fetchall()))
            assert read.execute("PRAGMA page_size").fetchone() == (16384,)
            assert read.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    identities = [meta.pop("identity") for meta in found]
    assert identities[0] != identities[1] and all(len(identity) == 32 for identity in identities)
    assert found == [{"format": "2", "model_digest": DIGEST, "dimension": "8"}] * 2


def test_pages_are_checked_at_open_up_to_a_size_and_only_by_verify_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    monkeypatch.setattr(schema, "check_integrity", lambda connection, file: checked.append(file))
    monkeypatch.setattr(schema, "CHECKED_AT_OPEN", 5)
    with closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store:
        for rows, times in ((5, 2), (6, 2)):
            store.add([f"{row}" for row in range(rows)], np.ones((rows, DIMENSION)), [None] * rows)
            Store.open(tmp_path, DIGEST, DIMENSION).close()
            assert len(checked) == times
    assert verify(tmp_path, DIGEST, DIMENSION) == []
    assert len(checked) == 3


def test_a_snapshot_beside_a_truth_that_is_empty_or_gone_is_told(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, DIGEST, DIMENSION, factory="SQ8", flat_below=1) as gallery:
        gallery.add(["a", "b"], VECTORS[:2], [None] * 2)
        gallery.rebuild()
    assert (tmp_path / SNAPSHOT).exists()
    (tmp_path / FILE_NAME).write_bytes(b"")
    with pytest.raises(GalleryCorrupt, match="is empty, and a snapshot of what it held lies beside it"):
        Gallery.open(tmp_path, DIGEST, DIMENSION)
    for file in tmp_path.iterdir():
        file.unlink()
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        assert gallery.count == 0
