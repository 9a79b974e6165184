"""The truth: what is acknowledged is there, what is damaged is named, what does not belong is refused."""

import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryBusy, GalleryCorrupt, GalleryError, RowRefused, WrongModel
from index.store import FILE_NAME, Row, Store
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
    rows = {row.id: row for row in store.rows_since(0)}
    return {name: row for name, row in rows.items() if row.vector is not None}


def test_what_was_added_is_read_back_after_reopening(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    store.add(["ä/1.jpg", "b"], vectors(2), ["horse", None], [{"taken": 1999, "by": "Zoë"}, {}])
    store.close()
    first, second = Store.open(tmp_path, DIGEST, DIMENSION).rows_since(0)
    assert (first.seq, first.id, first.label) == (1, "ä/1.jpg", "horse")
    assert first.metadata == '{"taken": 1999, "by": "Zo\\u00eb"}'
    assert (second.seq, second.id, second.label, second.metadata) == (2, "b", None, None)
    np.testing.assert_allclose([first.vector, second.vector], vectors(2), atol=1e-7)


def test_every_commit_is_synced_to_disk(store: Store) -> None:
    writer = store._writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_adding_an_id_again_replaces_its_row_and_gives_it_a_new_seq(store: Store) -> None:
    store.add(["a", "b"], vectors(2), ["cat", "dog"])
    store.add(["a"], vectors(1, seed=9), ["bird"])
    assert [(row.seq, row.id, row.label) for row in store.rows_since(0)] == [
        (2, "b", "dog"),
        (3, "a", "bird"),
    ]


def test_of_an_id_given_twice_in_one_call_the_later_row_stays(store: Store) -> None:
    store.add(["a", "a"], vectors(2), ["first", "second"])
    assert [(row.id, row.label) for row in store.rows_since(0)] == [("a", "second")]


def test_a_removal_reaches_readers_as_a_tombstone_with_the_next_seq(store: Store) -> None:
    store.add(["a", "b", "c"], vectors(3), [None] * 3)
    assert store.remove(["b", "unknown", "b"]) == 1
    assert store.remove(["b"]) == 0
    (tombstone,) = store.rows_since(3)
    assert (tombstone.seq, tombstone.id, tombstone.vector) == (4, "b", None)
    store.add(["b"], vectors(1), ["back"])
    assert live(store)["b"].label == "back"


def test_data_version_changes_with_another_connections_commit_and_only_then(store: Store) -> None:
    before = store.data_version()
    assert store.data_version() == before
    other = Store.open(store.file.parent, DIGEST, DIMENSION)
    other.add(["a"], vectors(1), [None])
    other.close()
    assert store.data_version() != before


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
    ],
)
def test_one_bad_row_is_refused_and_nothing_is_changed(
    store: Store, change: dict[str, object], message: str
) -> None:
    store.add(["old"], vectors(1), ["before"])
    good = {"ids": ["old", "new"], "vectors": vectors(2, seed=1), "labels": ["after", "after"]}
    with pytest.raises(RowRefused, match=message):
        store.add(**(good | change))
    assert [(row.seq, row.id, row.label) for row in store.rows_since(0)] == [(1, "old", "before")]


def test_another_models_gallery_is_refused_with_both_digests_and_the_command_to_use(store: Store) -> None:
    with pytest.raises(WrongModel, match=r"model aaaaaaaaaaaa, this encoder is bbbbbbbbbbbb.*akin index add"):
        Store.open(store.file.parent, "b" * 64, DIMENSION)
    with pytest.raises(WrongModel, match="dimension 8, this encoder gives 512"):
        Store.open(store.file.parent, DIGEST, 512)


def test_a_gallery_of_a_later_format_is_refused(store: Store) -> None:
    store._writer.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    with pytest.raises(GalleryError, match="format 2, not 1"):
        Store.open(store.file.parent, DIGEST, DIMENSION)


def test_a_second_writer_waits_for_the_first_and_then_says_who_is_in_the_way(store: Store) -> None:
    impatient = Store.open(store.file.parent, DIGEST, DIMENSION, busy_timeout_s=0.05)
    store._writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryBusy, match=r"another process has been writing for 0\.05 s"):
        impatient.add(["a"], vectors(1), [None])
    store._writer.execute("COMMIT")
    impatient.add(["a"], vectors(1), [None])
    impatient.close()
    assert live(store).keys() == {"a"}


def test_a_write_that_fails_half_way_leaves_nothing_and_the_next_one_works(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("index.store._checksum", lambda seq, *_: seq // (seq - 2))
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


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET vector = zeroblob(32) WHERE id = 'b'",
        "UPDATE rows SET label = 'dog' WHERE id = 'b'",
        "UPDATE rows SET metadata = '{}' WHERE id = 'b'",
        "UPDATE rows SET vector = NULL WHERE id = 'b'",
    ],
)
def test_a_row_changed_behind_our_back_is_named_by_its_checksum(store: Store, damage: str) -> None:
    store.add(["a", "b", "c"], vectors(3), ["cat"] * 3)
    store._writer.execute(damage)
    with pytest.raises(GalleryCorrupt, match=r"row 2 \(id 'b'\) fails its checksum"):
        list(store.rows_since(0))


def test_a_flipped_bit_anywhere_in_the_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    store = Store.open(tmp_path, DIGEST, DIMENSION)
    store.add([f"photos/{row:02d}.jpg" for row in range(40)], vectors(40), ["horse"] * 40)
    store.remove(["photos/07.jpg"])
    truth = [(row.id, row.label, str(row.vector)) for row in store.rows_since(0)]
    store.close()
    file = tmp_path / FILE_NAME
    sound = file.read_bytes()
    used = [place for place, byte in enumerate(sound) if byte]
    noticed = 0
    random = np.random.default_rng(0)
    for place in random.choice(used, 150, replace=False):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            store = Store.open(tmp_path, DIGEST, DIMENSION)
            try:
                assert [(row.id, row.label, str(row.vector)) for row in store.rows_since(0)] == truth
            finally:
                store.close()
        except GalleryError:
            noticed += 1
    assert noticed > 100


def test_processes_that_start_together_agree_on_one_new_gallery(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy; from index.store import Store\n"
        f"store = Store.open(pathlib.Path(sys.argv[1]), {DIGEST!r}, {DIMENSION})\n"
        f"store.add([sys.argv[2]], numpy.ones((1, {DIMENSION})), [None]); store.close()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "gallery")]
    started = [
        subprocess.Popen([*command, name], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert errors == [""] * 4
    assert live(Store.open(tmp_path / "gallery", DIGEST, DIMENSION)).keys() == set("abcd")


def test_untouched_means_that_nothing_was_ever_written(store: Store) -> None:
    assert store.untouched()
    assert store.add(["a"], vectors(1), [None], only_if_untouched=True)
    store.remove(["a"])
    assert not store.untouched()
    assert not store.add(["a"], vectors(1), [None], only_if_untouched=True)
    assert live(store) == {}


def _open_together(folder: Path, barrier: BarrierType, results: "Queue[str]") -> None:
    barrier.wait()
    try:
        Store.open(folder, DIGEST, DIMENSION).close()
        results.put("open")
    except Exception as error:
        results.put(repr(error))


def test_processes_that_make_one_gallery_together_all_get_it(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    for turn in range(3):
        barrier, results = spawn.Barrier(4), spawn.Queue()
        together = [
            spawn.Process(target=_open_together, args=(tmp_path / str(turn), barrier, results)) for _ in range(4)
        ]
        for process in together:
            process.start()
        assert [results.get(timeout=60) for _ in together] == ["open"] * 4
        for process in together:
            process.join()
