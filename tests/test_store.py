"""The truth: what is acknowledged is there, what is damaged is named, what does not belong is refused."""

import json
import multiprocessing
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryBusy, GalleryCorrupt, GalleryError, GalleryReadOnly, RowRefused, WrongModel
from index.filters import Filter
from index.seal import row_checksum
from index.store import FILE_NAME, MAX_VARIABLES, Row, Store
from index.vectors import unit_rows

DIGEST = "a" * 64
DIMENSION = 8
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "new" / "gallery", DIGEST, DIMENSION)
    yield opened
    opened.close()


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, DIMENSION)), DIMENSION)


def live(store: Store) -> dict[str, Row]:
    return {row.id: row for rows in store.scan() for row in rows if row.vector is not None}


def stored(rows: np.ndarray) -> np.ndarray:
    """What is on disk of them: scaled once more, which may change a last bit."""
    return unit_rows(rows, DIMENSION)


def told(rows: Iterable[Row]) -> list[tuple[int, int, str, str | None]]:
    return [(row.key, row.seq, row.id, row.label) for row in rows]


def test_what_was_added_is_read_back_after_reopening(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    store.add(["ä/1.jpg", "b"], vectors(2), ["horse", None], [{"taken": 1999, "by": "Zoë"}, {}], [b"16 bytes", None])
    identity = store.identity
    store.close()
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    first, second = store.changes(0)
    assert (first.key, first.seq, first.id, first.label, first.content) == (1, 1, "ä/1.jpg", "horse", b"16 bytes")
    assert json.loads(first.metadata) == {"taken": 1999, "by": "Zoë"}
    assert second[:3] == (2, 2, "b") and second[4:] == (None, None, None)
    assert [first.vector.tobytes(), second.vector.tobytes()] == [row.tobytes() for row in stored(vectors(2))]
    assert store.identity == identity
    store.close()


def test_every_commit_is_synced_to_disk(store: Store) -> None:
    writer = store._writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_row_that_is_replaced_keeps_its_key_and_gets_a_new_seq(store: Store) -> None:
    store.add(["a", "b"], vectors(2), ["cat", "dog"])
    store.add(["a"], vectors(1, seed=9), ["bird"])
    assert told(store.changes(0)) == [(2, 2, "b", "dog"), (1, 3, "a", "bird")]
    assert told(store.changes_aside(2)) == [(1, 3, "a", "bird")]
    assert live(store)["a"].vector.tobytes() == stored(vectors(1, seed=9))[0].tobytes()


def test_of_an_id_given_twice_in_one_call_the_later_row_stays(store: Store) -> None:
    store.add(["a", "b", "a"], vectors(3), ["first", "b", "second"])
    assert {name: row.label for name, row in live(store).items()} == {"a": "second", "b": "b"}
    assert live(store)["a"].vector.tobytes() == stored(vectors(3))[2].tobytes()
    assert store.count() == 2


def test_a_removal_reaches_readers_as_a_tombstone_with_the_next_seq_and_the_key_comes_back_with_its_id(
    store: Store,
) -> None:
    store.add(["a", "b", "c"], vectors(3), ["x"] * 3, [{"n": 1}] * 3, [b"1", b"2", b"3"])
    assert store.remove(["b", "unknown", "b"]) == 1
    assert store.remove(["b"]) == 0
    (tombstone,) = store.changes(3)
    assert tombstone == Row(2, 4, "b", None, None, None, None)
    assert (store.count(), store.last_seq(), store.live_keys().tolist()) == (2, 4, [1, 3])
    assert store.by_content([b"2"]) == {}
    store.add(["b", "d"], vectors(2), ["back", "new"])
    assert told(store.changes(4)) == [(2, 5, "b", "back"), (4, 6, "d", "new")]


def test_the_key_and_seq_of_the_last_row_are_not_given_out_again_when_it_goes(store: Store) -> None:
    store.add(["a", "b"], vectors(2), [None] * 2)
    store.remove(["b"])
    store.add(["c"], vectors(1), [None])
    assert [(row.key, row.seq) for row in store.changes(0)] == [(1, 1), (2, 3), (3, 4)]


def test_rows_are_looked_up_by_key_id_and_content_however_many_are_asked_for(store: Store) -> None:
    count = 2 * MAX_VARIABLES + 3
    names = [f"{row:04d}" for row in range(count)]
    contents = [f"digest {row}".encode() for row in range(count)]
    store.add(names, vectors(count), [None] * count, None, contents)
    store.remove(["0007"])
    keys = range(1, count + 2)  # one more than there are
    assert {key: row.id for key, row in store.by_key(keys).items()} == dict(enumerate(names, 1))
    assert store.by_key([8])[8].vector is None
    found = store.by_id([*names, "unknown"])
    assert found.keys() == set(names) - {"0007"}
    assert all(row.id == name and row.content == contents[int(name)] for name, row in found.items())
    known = store.by_content([*contents, b"unknown"])
    assert known == {content: name for content, name in zip(contents, names, strict=True) if name != "0007"}
    assert (store.by_key([]), store.by_id([]), store.by_content([])) == ({}, {}, {})
    assert store.remove(names) == count - 1
    assert store.count() == 0


def test_of_rows_with_one_content_the_first_is_told(store: Store) -> None:
    store.add(["z", "a"], vectors(2), [None] * 2, None, [b"same"] * 2)
    assert store.by_content([b"same"]) == {b"same": "z"}
    store.remove(["z"])
    assert store.by_content([b"same"]) == {b"same": "a"}


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_a_scan_reads_every_row_and_tombstone_once_by_key(store: Store, batch: int) -> None:
    store.add(list("edcba"), vectors(5), list("EDCBA"))
    store.remove(["c"])
    store.add(["e"], vectors(1), ["again"])
    batches = list(store.scan(batch=batch))
    assert [len(rows) for rows in batches] == [min(batch, 5 - start) for start in range(0, 5, batch)]
    read = [row for rows in batches for row in rows]
    assert told(read) == [
        (1, 7, "e", "again"),
        (2, 2, "d", "D"),
        (3, 6, "c", None),
        (4, 4, "b", "B"),
        (5, 5, "a", "A"),
    ]
    assert [row.key for rows in store.scan(after=3, batch=batch) for row in rows] == [4, 5]


def test_a_scan_goes_on_beside_writes(store: Store) -> None:
    store.add(list("abcd"), vectors(4), [None] * 4)
    seen = []
    for rows in store.scan(batch=1):
        seen += rows
        store.remove(["c"])
        if len(seen) == 4:
            store.add(["e"], vectors(1), [None])
    assert [(row.id, row.vector is None) for row in seen] == [
        ("a", False), ("b", False), ("c", True), ("d", False), ("e", False),
    ]  # fmt: skip


def test_the_keys_that_a_filter_matches_come_with_the_seq_they_are_of(store: Store) -> None:
    store.add(list("abc"), vectors(3), ["cat", "dog", "cat"], [{"year": 1990}, {"year": 2000}, {"year": 2010}])
    store.remove(["a"])
    for where, keys in ({"label": "cat"}, [3]), ({"year": {"lt": 2005}}, [2]), ({"label": ["dog", "cat"]}, [2, 3]):
        for matching in store.keys_matching(Filter.parse(where)), store.keys_matching_now(Filter.parse(where)):
            assert (matching.seq, matching.keys.tolist(), matching.keys.dtype) == (4, keys, np.int64)
    assert store.keys_matching(Filter.parse({"label": "cow"})).keys.tolist() == []


def test_data_version_changes_with_any_connections_commit_and_only_then(store: Store) -> None:
    other = Store.open(store.file.parent, DIGEST, DIMENSION)
    seen = [store.data_version()]
    for writer in other, store, other:
        assert store.data_version() == seen[-1]
        with pytest.raises(RowRefused):
            writer.add([""], vectors(1), [None])
        assert (writer.remove(["unknown"]), store.data_version()) == (0, seen[-1])
        writer.add(["a"], vectors(1), [None])
        seen.append(store.data_version())
    time.sleep(0.15)  # the file has come to rest: it need not be asked any more
    assert [store.data_version() for _ in range(3)] == seen[-1:] * 3
    other.remove(["a"])
    seen.append(store.data_version())
    assert len(set(seen)) == 5
    other.close()


def test_within_consistent_nothing_moves(store: Store) -> None:
    other = Store.open(store.file.parent, DIGEST, DIMENSION)
    store.add(["a"], vectors(1), ["x"])
    with store.consistent():
        other.add(["b"], vectors(1), ["x"])
        assert [row.id for row in store.changes(0)] == ["a"]
        assert store.keys_matching_now(Filter.parse({"label": "x"})) == (1, [1])
        before = store.data_version()
        assert [row.id for row in store.changes_aside(0)] == ["a", "b"]
    assert store.data_version() != before
    assert [row.id for row in store.changes(0)] == ["a", "b"]
    other.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.ones((2, DIMENSION + 1))}, r"shape \(2, 9\) do not fit: send \(N, 8\)"),
        ({"vectors": np.stack([np.ones(DIMENSION), np.full(DIMENSION, np.nan)])}, "id 'new'.*NaN"),
        ({"vectors": np.ones((3, DIMENSION))}, "2 ids, 3 vectors, 2 labels and no metadata"),
        ({"metadata": [{}]}, "1 metadata"),
        ({"ids": ["old", ""]}, "id '' of row 1"),
        ({"ids": ["old", 7]}, "id 7 of row 1"),
        ({"ids": ["old", "caf\udce9.jpg"]}, "not valid Unicode"),
        ({"labels": ["x", ""]}, "label '' of row 1"),
        ({"metadata": [{}, {"score": float("nan")}]}, "metadata of row 1"),
        ({"metadata": [{}, {"raw": b"bytes"}]}, "metadata of row 1"),
        ({"contents": [None]}, "send one of each per row"),
    ],
)
def test_one_bad_row_is_refused_and_nothing_is_changed(store: Store, change: dict[str, object], message: str) -> None:
    store.add(["old"], vectors(1), ["before"])
    good = {"ids": ["old", "new"], "vectors": vectors(2, seed=1), "labels": ["after", "after"]}
    with pytest.raises(RowRefused, match=message):
        store.add(**(good | change))
    assert told(store.changes(0)) == [(1, 1, "old", "before")]


def test_another_models_gallery_is_refused_with_both_digests_and_the_command_to_use(store: Store) -> None:
    with pytest.raises(WrongModel, match=r"model aaaaaaaaaaaa, this encoder is bbbbbbbbbbbb.*akin index add"):
        Store.open(store.file.parent, "b" * 64, DIMENSION)
    with pytest.raises(WrongModel, match="dimension 8, this encoder gives 512"):
        Store.open(store.file.parent, DIGEST, 512)


def test_a_gallery_of_a_later_format_is_refused(store: Store) -> None:
    store._writer.execute("UPDATE meta SET value = '3' WHERE key = 'format'")
    with pytest.raises(GalleryError, match="format 3, not 2; use the akin that wrote it"):
        Store.open(store.file.parent, DIGEST, DIMENSION)


def test_a_second_writer_waits_for_the_first_and_then_says_who_is_in_the_way(store: Store) -> None:
    impatient = Store.open(store.file.parent, DIGEST, DIMENSION, busy_timeout_s=0.05)
    store._writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryBusy, match=r"another process has been writing for 0\.05 s; try again"):
        impatient.add(["a"], vectors(1), [None])
    store._writer.execute("COMMIT")
    impatient.add(["a"], vectors(1), [None])
    impatient.close()
    assert live(store).keys() == {"a"}


def test_a_write_that_fails_half_way_leaves_nothing_and_the_next_one_works(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("index.seal.row_checksum", lambda key, seq, *_: seq // (seq - 2))
        store.add(["a", "b"], vectors(2), [None] * 2)
    assert live(store) == {}
    store.add(["a"], vectors(1), [None])
    assert live(store).keys() == {"a"}


@pytest.mark.parametrize("content", [b"not a database" * 200, b"\x89PNG" + bytes(5000)])
def test_a_file_that_is_not_a_database_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(GalleryCorrupt, match=rf"{FILE_NAME} is damaged.*move it away"):
        Store.open(tmp_path, DIGEST, DIMENSION)


def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        other.execute("CREATE TABLE albums (name TEXT)")
    other.close()
    with pytest.raises(GalleryCorrupt, match="database of something else"):
        Store.open(tmp_path, DIGEST, DIMENSION)
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("albums",)]
    other.close()


DAMAGE = {
    "vector": "UPDATE vectors SET vector = zeroblob(32) WHERE key = 2",
    "no vector": "DELETE FROM vectors WHERE key = 2",
    "label": "UPDATE rows SET label = 'dog' WHERE id = 'b'",
    "no label": "UPDATE rows SET label = NULL WHERE id = 'b'",
    "metadata": "UPDATE rows SET metadata = '{}' WHERE id = 'b'",
    "content": "UPDATE rows SET content = x'00' WHERE id = 'b'",
    "removed": "UPDATE rows SET removed = 1 WHERE id = 'b'",
    "seq": "UPDATE rows SET seq = 7 WHERE id = 'b'",
    "checksum": "UPDATE rows SET checksum = checksum + 1 WHERE id = 'b'",
    "moved text": "UPDATE rows SET label = 'ca', metadata = 't' || metadata WHERE id = 'b'",
    "another row's vector": "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE key = 1) WHERE key = 2",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_row_changed_behind_our_back_is_named_by_whatever_reads_it(store: Store, damage: str) -> None:
    store.add(["a", "b", "c"], vectors(3), ["cat"] * 3, [{"n": 1}] * 3, [b"1", b"2", b"3"])
    store._writer.execute(damage)
    named = r"row 2 \(id 'b'\) fails its checksum; restore it from a copy"
    for read in (
        lambda: list(store.changes(0)),
        lambda: list(store.changes_aside(0)),
        lambda: list(store.scan()),
        lambda: store.by_key([1, 2]),
        lambda: store.by_id(["b", "a"]),
    ):
        with pytest.raises(GalleryCorrupt, match=named):
            read()
    assert list(store.faults()) == ["row 2 (id 'b') fails its checksum"]
    assert store.by_id(["a"])["a"].label == "cat"  # the others are still there


@pytest.mark.parametrize("change", ["content = 'text'", "seq = 'text'", "label = x'00'", "checksum = 'text'"])
def test_a_record_whose_columns_have_other_types_fails_its_checksum(store: Store, change: str) -> None:
    store.add(["a", "b"], vectors(2), ["cat", "dog"], None, [b"1", b"2"])
    _without_types(store, f"UPDATE rows SET {change} WHERE id = 'b'")
    assert list(store.faults()) == ["row 2 (id 'b') fails its checksum"]
    with pytest.raises(GalleryCorrupt, match=r"row 2 \(id 'b'\) fails its checksum"):
        store.by_id(["b"])


@pytest.mark.parametrize("vector", ["'text'", "7", "1.5"])
def test_a_vector_of_another_type_fails_its_rows_checksum(store: Store, vector: str) -> None:
    store.add(["a", "b"], vectors(2), ["cat", "dog"])
    _without_types(store, f"UPDATE vectors SET vector = {vector} WHERE key = 2")
    assert list(store.faults()) == ["row 2 (id 'b') fails its checksum"]
    with pytest.raises(GalleryCorrupt, match=r"row 2 \(id 'b'\) fails its checksum"):
        store.by_key([2])


def _without_types(store: Store, statement: str) -> None:
    """SQLite checks the types of columns where it writes; one damaged header is enough to read others."""
    with closing(sqlite3.connect(store.file, isolation_level=None)) as vandal:
        vandal.execute("PRAGMA writable_schema = ON")
        vandal.execute("UPDATE sqlite_master SET sql = replace(sql, ') STRICT', ')') WHERE type = 'table'")
        (version,) = vandal.execute("PRAGMA schema_version").fetchone()
        vandal.execute(f"PRAGMA schema_version = {version + 1}")
    with closing(sqlite3.connect(store.file, isolation_level=None)) as vandal:
        vandal.execute(statement)


def test_every_fault_is_named_and_nothing_else(store: Store) -> None:
    store.add([*"abcdef"], vectors(6), ["cat"] * 6)
    store.remove(["c", "f"])
    assert list(store.faults()) == []
    store._writer.execute("UPDATE rows SET label = 'dog' WHERE id IN ('b', 'c', 'd')")
    store._writer.execute("INSERT INTO vectors SELECT 3, vector FROM vectors WHERE key = 1")
    store._writer.execute("INSERT INTO vectors SELECT 99, vector FROM vectors WHERE key = 1")
    store._writer.execute("DELETE FROM rows WHERE id = 'e'")
    assert list(store.faults()) == [
        *(f"row {key} (id '{name}') fails its checksum" for key, name in ((2, "b"), (3, "c"), (4, "d"))),
        "vector 5 has no row",
        "vector 99 has no row",
    ]


def test_a_row_whose_vector_has_another_dimension_is_a_fault(store: Store) -> None:
    store.add(["a"], vectors(1), [None])
    blob = vectors(1)[0, :4].tobytes()
    store._writer.execute("UPDATE vectors SET vector = ?", (blob,))
    checksum = row_checksum(1, 1, "a", blob, None, None, None)
    store._writer.execute("UPDATE rows SET checksum = ?", (checksum,))
    assert list(store.faults()) == ["row 1 (id 'a') has 4 dimensions, not 8"]


def test_a_flipped_bit_anywhere_in_the_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    names = [f"photos/{row:02d}.jpg" for row in range(40)]
    contents = [name.encode() for name in names]
    store.add(names, vectors(40), ["horse"] * 40, [{"n": row} for row in range(40)], contents)
    store.remove(["photos/07.jpg"])

    def told(store: Store) -> list[str]:
        rows = [
            str((*row[:3], row.vector is not None and row.vector.tobytes(), *row[4:])) for row in store.changes(0)
        ]
        by_content = store.by_content(contents)
        matching = store.keys_matching(Filter.parse({"label": "horse", "n": {"gte": 20}}))
        return [*rows, str(by_content), str(matching), str(store.count()), str(store.live_keys())]

    truth = told(store)
    store.close()
    file = tmp_path / FILE_NAME
    sound = file.read_bytes()
    used = [place for place, byte in enumerate(sound) if byte]
    random = np.random.default_rng(0)
    places = [*random.choice(used, 220, replace=False), *random.integers(len(sound), size=30), *range(16, 28)]
    noticed = 0
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            store = Store.open(tmp_path, DIGEST, DIMENSION)
            try:
                assert told(store) == truth
            finally:
                store.close()
        except GalleryError:
            noticed += 1
    assert noticed > 150


@pytest.mark.parametrize("length", [99, 100, 5000, 16384, 16385, 40000, -20000, -1])
def test_a_file_that_lost_its_end_is_refused(tmp_path: Path, length: int) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    store.add([f"{row}" for row in range(500)], vectors(500), ["horse"] * 500)
    store.close()
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:length])
    with (
        pytest.raises(GalleryCorrupt, match=r"is damaged|fails its checksum"),
        closing(Store.open(tmp_path, DIGEST, DIMENSION)) as store,
    ):
        list(store.scan())


def test_where_nothing_may_be_written_it_is_read_and_writes_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(["a"], vectors(1), ["cat"])
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    reader = Store.open(store.file.parent, DIGEST, DIMENSION)
    assert (reader.read_only, store.read_only) == (True, False)
    for write in (lambda: reader.add(["b"], vectors(1), [None]), lambda: reader.remove(["a"])):
        with pytest.raises(GalleryReadOnly, match="may only be read; give this user the right to write"):
            write()
    store.add(["c"], vectors(1), [None])
    assert [row.id for row in reader.changes(0)] == ["a", "c"]
    reader.close()


def test_a_closed_store_says_so_and_may_be_closed_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    store.add(["a"], vectors(1), [None])
    store.close()
    store.close()
    for use in (
        lambda: store.add(["b"], vectors(1), [None]),
        lambda: store.remove(["a"]),
        lambda: list(store.changes(0)),
    ):
        with pytest.raises(GalleryError, match="closed"):
            use()
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    assert live(store).keys() == {"a"}
    store.close()
    assert {file.name for file in tmp_path.iterdir()} == {FILE_NAME, "gallery.lock"}  # the log is in the file


def test_processes_that_start_together_agree_on_one_new_gallery(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy; from index.store import Store\n"
        f"store = Store.open(pathlib.Path(sys.argv[1]), {DIGEST!r}, {DIMENSION})\n"
        f"store.add([sys.argv[2]], numpy.ones((1, {DIMENSION})), [None]); store.close()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "gallery")]
    started = [
        subprocess.Popen([*command, name], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for name in "abcd"
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert errors == [""] * 4
    store = Store.open(tmp_path / "gallery", DIGEST, DIMENSION)
    assert live(store).keys() == set("abcd")
    assert [row.seq for row in store.changes(0)] == [1, 2, 3, 4]
    store.close()


def test_untouched_means_that_nothing_was_ever_written(store: Store) -> None:
    assert store.untouched()
    assert store.add(["a"], vectors(1), [None], only_if_untouched=True)
    store.remove(["a"])
    assert not store.untouched()
    assert not store.add(["a"], vectors(1), [None], only_if_untouched=True)
    assert live(store) == {}


TURNS = 3


def _open_together(folder: Path, barrier: BarrierType, results: "Queue[str]") -> None:
    for turn in range(TURNS):
        barrier.wait()
        try:
            Store.open(folder / str(turn), DIGEST, DIMENSION).close()
            results.put("open")
        except Exception as error:
            results.put(repr(error))


def test_processes_that_make_one_gallery_together_all_get_it(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(4), spawn.Queue()
    together = [spawn.Process(target=_open_together, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in together:
        process.start()
    assert [results.get(timeout=60) for _ in range(TURNS * 4)] == ["open"] * TURNS * 4
    for process in together:
        process.join()
