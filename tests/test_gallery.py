"""The face: what is added is found, by this process and others, whatever happens beside it."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryCorrupt, RowRefused
from index.gallery import Gallery, Neighbor
from index.store import FILE_NAME
from index.vectors import unit_rows
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


def test_known_names_the_ids_that_have_a_row(gallery: Gallery) -> None:
    gallery.add(["a", "b"], vectors(2), [None] * 2)
    gallery.remove(["b"])
    assert gallery.known(["a", "b", "c"]) == {"a"}


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
    monkeypatch.setattr("index.ann.MAX_DEAD", 5)
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
