"""The index of one machine: what is added is found, by this process and others, whatever is built beside it."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from index import snapshot
from index.errors import GalleryCorrupt, RowRefused
from index.face import Neighbor
from index.filters import Filter
from index.gallery import Gallery
from index.store import FILE_NAME
from index.vectors import unit_rows
from index.verify import verify
from tests.gallery_writer import DIGEST, DIMENSION, apply, changes

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as opened:
        yield opened


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, DIMENSION)), DIMENSION)


def ids(neighbors: list[Neighbor]) -> list[str]:
    return [neighbor.id for neighbor in neighbors]


def test_search_returns_the_query_itself_with_score_one(gallery: Gallery) -> None:
    gallery.add(["a", "b", "c"], vectors(3), ["cat", "dog", None], [{"n": 1}, {"tags": ["x", "ü"]}, {}])
    found = [neighbors[0] for neighbors in gallery.search(vectors(3), 1)]
    assert [neighbor.score for neighbor in found] == pytest.approx([1.0] * 3, abs=1e-6)
    assert [(neighbor.id, neighbor.label, neighbor.metadata) for neighbor in found] == [
        ("a", "cat", {"n": 1}),
        ("b", "dog", {"tags": ["x", "ü"]}),
        ("c", None, {}),
    ]


def test_scores_are_cosines_whatever_the_length_of_rows_and_queries(gallery: Gallery) -> None:
    row, query = np.zeros((2, 1, DIMENSION), np.float32)
    row[0, :2], query[0, 0] = (30, 40), 1e-3
    gallery.add(["a"], row, [None])
    ((neighbor,),) = gallery.search(query, 1)
    assert neighbor.score == pytest.approx(0.6)


def test_an_empty_gallery_answers_with_no_neighbours(gallery: Gallery) -> None:
    assert gallery.count == 0
    assert gallery.search(vectors(2), 5) == [[], []]


@pytest.mark.parametrize(("k", "length"), [(0, 0), (1, 1), (4, 4), (5, 4), (10**9, 4)])
def test_a_search_gives_as_many_as_asked_for_or_as_there_are(gallery: Gallery, k: int, length: int) -> None:
    gallery.add(list("abcde"), vectors(5), [None] * 5)
    gallery.remove(["c"])
    (neighbors,) = gallery.search(vectors(1), k)
    assert len(neighbors) == length and "c" not in ids(neighbors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_query_without_direction_is_refused(gallery: Gallery, bad: float) -> None:
    gallery.add(["a"], vectors(1), [None])
    with pytest.raises(RowRefused, match="vector 0"):
        gallery.search(np.full((1, DIMENSION), bad, np.float32), 1)
    with pytest.raises(RowRefused, match=rf"send \(N, {DIMENSION}\)"):
        gallery.search(np.ones((1, DIMENSION - 1), np.float32), 1)


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        for change, _ in zip(changes(1), range(20), strict=False):
            apply(gallery, change)
        count, found = gallery.count, gallery.search(vectors(30), 20)
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
        assert (gallery.count, gallery.search(vectors(30), 20)) == (count, found)


def test_what_another_process_wrote_is_found_by_the_next_search(tmp_path: Path, gallery: Gallery) -> None:
    expected: set[str] = set()
    command = [sys.executable, "-m", "tests.gallery_writer", str(tmp_path), "5", "0", "step"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes) as writer:
        for number, change in enumerate(islice(changes(5), 25)):
            print(file=writer.stdin)
            assert writer.stdout.readline() == f"{number}\n"
            if change.vectors is None:
                expected.difference_update(change.ids)
            else:
                expected.update(change.ids)
                assert gallery.search(change.vectors[:1], 1)[0][0].id == change.ids[0]
            assert gallery.count == len(expected)
            assert set(ids(gallery.search(vectors(1), 10**6)[0])) == expected
        writer.stdin.close()


def test_two_galleries_on_one_folder_see_each_other_at_once(tmp_path: Path, gallery: Gallery) -> None:
    with Gallery.open(tmp_path, DIGEST, DIMENSION) as other:
        for turn, (writer, reader) in enumerate([(gallery, other), (other, gallery)] * 10):
            writer.add([str(turn)], vectors(1, seed=turn), [None])
            assert ids(reader.search(vectors(1, seed=turn), 1)[0]) == [str(turn)]
            assert writer.remove([str(turn - 1)]) == (turn > 0)
            assert ids(reader.search(vectors(1), 100)[0]) == [str(turn)]


def test_a_search_does_not_wait_for_a_writer(tmp_path: Path, gallery: Gallery) -> None:
    gallery.add(["a"], vectors(1), ["before"])
    writer = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE rows SET label = 'never committed'")
    assert gallery.search(vectors(1), 1)[0][0].label == "before"
    writer.execute("ROLLBACK")
    writer.close()


def test_a_damaged_row_is_an_error_at_every_search_and_never_an_answer(
    tmp_path: Path, gallery: Gallery
) -> None:
    gallery.add(["a", "b"], vectors(2), ["cat", "dog"])
    with sqlite3.connect(tmp_path / FILE_NAME) as vandal:
        vandal.execute("UPDATE rows SET label = 'cow' WHERE id = 'b'")
    vandal.close()
    for _ in range(2):
        with pytest.raises(GalleryCorrupt, match=r"row 2 \(id 'b'\)"):
            gallery.search(vectors(1), 1)
    with pytest.raises(GalleryCorrupt, match=r"row 2 \(id 'b'\)"):
        Gallery.open(tmp_path, DIGEST, DIMENSION)


@pytest.mark.parametrize("seed", range(4))
def test_any_series_of_changes_and_searches_agrees_with_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("index.flat.MAX_DEAD", 5)
    random = np.random.default_rng(seed)
    directions = vectors(15, seed)  # few, so that many rows tie
    rows: dict[str, int] = {}
    gallery = Gallery.open(tmp_path, DIGEST, DIMENSION)
    for _ in range(150):
        names = [f"{number}" for number in random.choice(40, random.integers(1, 8), replace=False)]
        chosen = random.integers(len(directions), size=len(names))
        match random.choice(["add", "remove", "search", "reopen"], p=[0.4, 0.2, 0.35, 0.05]):
            case "add":
                gallery.add(names, directions[chosen], [str(direction) for direction in chosen])
                rows |= dict(zip(names, chosen.tolist(), strict=True))
            case "remove":
                assert gallery.remove(names) == sum(rows.pop(name, None) is not None for name in names)
            case "search":
                k = int(random.integers(0, 50))
                for query, neighbors in zip(chosen, gallery.search(directions[chosen], k), strict=True):
                    similarity = directions @ directions[query]
                    expected = sorted(rows, key=lambda name: (-similarity[rows[name]], name))[:k]
                    assert [(n.id, n.label) for n in neighbors] == [(n, str(rows[n])) for n in expected]
                    assert [n.score for n in neighbors] == pytest.approx(
                        [similarity[rows[name]] for name in expected], abs=1e-6
                    )
            case "reopen":
                gallery.close()
                gallery = Gallery.open(tmp_path, DIGEST, DIMENSION)
        assert gallery.count == len(rows)
    gallery.close()


def test_threads_that_add_remove_and_search_at_once_see_what_they_wrote(gallery: Gallery) -> None:
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(15):
            name, vector = f"{thread}/{turn}", vectors(1, seed=100 * thread + turn)
            gallery.add([name], vector, [str(thread)])
            (neighbors,) = gallery.search(vector, 3)
            assert (neighbors[0].id, neighbors[0].label) == (name, str(thread))
            assert neighbors[0].score == pytest.approx(1.0, abs=1e-6)
            if turn % 3 == 0:
                assert gallery.remove([name]) == 1
                assert name not in ids(gallery.search(vector, 200)[0])

    with ThreadPoolExecutor(8) as pool:
        for finished in [pool.submit(work, thread) for thread in range(8)]:
            finished.result(timeout=120)
    assert gallery.count == 8 * 10


LARGE = {"factory": "HNSW16,SQ8", "flat_below": 400}  # what a gallery of a million does, with some hundred rows


def large(folder: Path, **changed: object) -> Gallery:
    return Gallery.open(folder, DIGEST, DIMENSION, **(LARGE | changed))


def fill(gallery: Gallery, count: int, first: int = 0) -> np.ndarray:
    rows = vectors(count, seed=1000 + first)
    names = [f"{first + number:05d}" for number in range(count)]
    gallery.add(names, rows, [f"{number % 10}" for number in range(count)], [{"n": n} for n in range(count)])
    return rows


def settle(gallery: Gallery) -> Gallery:
    """Wait until nothing is built any more."""
    gallery.search(vectors(1), 1)
    deadline = time.monotonic() + 60
    while gallery.stats()["rebuilding"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return gallery


def assert_each_finds_itself(gallery: Gallery, rows: np.ndarray, names: list[str]) -> None:
    found = [neighbors[0] for neighbors in gallery.search(rows, 1)]
    assert [neighbor.id for neighbor in found] == names
    assert [neighbor.score for neighbor in found] == pytest.approx([1.0] * len(names), abs=5e-3)


def test_a_gallery_that_grows_large_is_accelerated_in_the_background_and_answers_alike(tmp_path: Path) -> None:
    with large(tmp_path) as gallery:
        rows = fill(gallery, 300)
        assert settle(gallery).stats()["factory"] == "Flat"
        rows = np.concatenate([rows, fill(gallery, 300, first=300)])
        stats = settle(gallery).stats(measure_recall=True)
        assert (stats["factory"], stats["rows"], stats["delta"]) == ("HNSW16,SQ8", 600, 0)
        assert stats["recall"] is not None and stats["recall"]["value"] >= 0.95
        assert stats["snapshot"] is not None and stats["snapshot"]["rows"] == 600
        assert_each_finds_itself(gallery, rows, [f"{number:05d}" for number in range(600)])


def test_changes_to_an_accelerated_gallery_are_seen_at_once(tmp_path: Path) -> None:
    with large(tmp_path) as gallery:
        rows = fill(gallery, 600)
        settle(gallery)
        assert gallery.remove(["00005", "00006"]) == 2
        new = vectors(2, seed=5)
        gallery.add(["00007", "new"], new, ["changed", None])
        stats = gallery.stats()
        assert (stats["rows"], stats["delta"], stats["tombstones"]) == (599, 2, 3)
        everything = ids(gallery.search(rows[5:6], 10_000)[0])
        assert len(everything) == len(set(everything)) == 599
        assert not {"00005", "00006"} & set(everything)
        assert_each_finds_itself(gallery, new, ["00007", "new"])
        assert gallery.search(rows[7:8], 1)[0][0].score < 0.99


def test_an_accelerated_gallery_opens_from_its_snapshot_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with large(tmp_path) as gallery:
        fill(gallery, 600)
        settle(gallery)
        fill(gallery, 20, first=600)
    monkeypatch.setattr("index.gallery.build", None)  # whoever builds now fails
    with large(tmp_path) as gallery:
        stats = gallery.stats()
        assert (stats["rows"], stats["delta"], stats["factory"]) == (620, 20, "HNSW16,SQ8")
        assert_each_finds_itself(gallery, vectors(20, seed=1600), [f"{600 + number:05d}" for number in range(20)])


def test_a_snapshot_that_cannot_be_trusted_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with large(tmp_path) as gallery:
        rows = fill(gallery, 600)
        settle(gallery)
    file = tmp_path / snapshot.FILE_NAME
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with large(tmp_path) as gallery:
        assert "do not fit its checksum" in caplog.text
        assert_each_finds_itself(gallery, rows, [f"{number:05d}" for number in range(600)])
        assert settle(gallery).stats()["factory"] == "HNSW16,SQ8"
    assert verify(tmp_path, DIGEST, DIMENSION) == []


def test_many_new_rows_join_the_base_without_a_build_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.gallery.DELTA_LEAST", 50)
    with large(tmp_path) as gallery:
        rows = fill(gallery, 600)
        settle(gallery)
        monkeypatch.setattr("index.gallery.build", None)
        gallery.remove(["00003"])
        others = vectors(400, seed=77)
        inside = ((others >= rows.min(axis=0)) & (others <= rows.max(axis=0))).all(axis=1)
        more = others[inside][:60]  # what the codes can tell
        gallery.add([f"{600 + number:05d}" for number in range(60)], more, [None] * 60)
        stats = settle(gallery).stats()
        assert (stats["rows"], stats["delta"], stats["tombstones"]) == (659, 0, 1)
        assert_each_finds_itself(gallery, more, [f"{600 + number:05d}" for number in range(60)])
    with large(tmp_path) as gallery:
        assert gallery.stats()["delta"] == 0
        assert "00003" not in ids(gallery.search(more[:1], 1000)[0])


def test_new_rows_that_the_codes_cannot_tell_lead_to_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.gallery.DELTA_LEAST", 50)
    with large(tmp_path) as gallery:
        fill(gallery, 600)
        settle(gallery)
        monkeypatch.setattr("index.gallery.extend", None)
        far = np.eye(DIMENSION, dtype=np.float32)
        gallery.add([f"far {axis}" for axis in range(DIMENSION)], far, [None] * DIMENSION)
        gallery.add([f"low {axis}" for axis in range(DIMENSION)], -far, [None] * DIMENSION)
        assert settle(gallery).stats()["delta"] == 0
        assert_each_finds_itself(gallery, far, [f"far {axis}" for axis in range(DIMENSION)])


def test_many_removed_rows_are_forgotten_by_a_build(tmp_path: Path) -> None:
    with large(tmp_path) as gallery:
        fill(gallery, 800)
        settle(gallery)
        gallery.remove([f"{number:05d}" for number in range(200)])
        stats = settle(gallery).stats()
        assert (stats["rows"], stats["tombstones"]) == (600, 0)


def test_a_second_gallery_on_the_folder_takes_the_snapshot_that_the_first_one_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.gallery.PATIENCE_S", 0.02)
    with large(tmp_path) as first, large(tmp_path) as second:
        rows = fill(first, 600)
        # Whoever comes second finds the lock taken or the snapshot there; both end with the same.
        for gallery in (first, second):
            assert settle(gallery).stats()["factory"] == "HNSW16,SQ8"
            assert_each_finds_itself(gallery, rows, [f"{number:05d}" for number in range(600)])


def test_filters_agree_with_brute_force_on_an_accelerated_gallery(tmp_path: Path) -> None:
    with large(tmp_path) as gallery:
        rows = fill(gallery, 1000)
        settle(gallery)
        gallery.remove(["00010"])
        gallery.add(["00020"], rows[20:21], ["0"], [{"n": 5000}])
        for where, matching in (
            ({"label": "3"}, {n for n in range(1000) if n % 10 == 3}),
            ({"n": {"lt": 25}}, set(range(25)) - {10, 20}),
            ({"n": {"gte": 100}}, set(range(100, 1000)) | {20}),
            ({"n": 10}, set()),
            ({"label": ["0", "1"], "n": {"gt": 995}}, {20}),
        ):
            (found,) = gallery.search(rows[50:51], 2000, Filter.parse(where))
            assert {int(name) for name in ids(found)} == matching and len(found) == len(matching)
            best = sorted(matching, key=lambda n: -float(rows[n] @ rows[50]))[:3]
            (found,) = gallery.search(rows[50:51], 3, Filter.parse(where))
            expected = [float(rows[n] @ rows[50]) for n in best]
            assert [neighbor.score for neighbor in found] == pytest.approx(expected, abs=0.02)


def test_rebuild_can_be_asked_for(tmp_path: Path) -> None:
    with large(tmp_path, factory="IVF8,RaBitQfs4") as gallery:
        rows = fill(gallery, 600)
        gallery.rebuild()
        assert gallery.stats()["factory"] == "IVF8,RaBitQfs4"
        found = gallery.search(rows, 1)
        assert [neighbors[0].score for neighbors in found] == pytest.approx([1.0] * 600, abs=1e-6)  # compared exactly


def test_an_unknown_factory_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(RowRefused, match=r"'PQ8' is none of Flat, SQ8, HNSW32,SQ8"):
        large(tmp_path, factory="PQ8")


def test_one_row_is_got_by_its_id_and_by_the_digest_of_its_image(gallery: Gallery) -> None:
    gallery.add(["a", "b"], vectors(2), ["cat", None], [{"n": 1}, {}], [b"x" * 16, None])
    first, none, second = gallery.get(["a", "c", "b"])
    assert none is None and first is not None and second is not None
    assert (first.id, first.label, first.metadata, first.content) == ("a", "cat", {"n": 1}, b"x" * 16)
    np.testing.assert_array_equal(second.vector, vectors(2)[1])
    assert gallery.known_contents([b"x" * 16, b"y" * 16]) == {b"x" * 16: "a"}
