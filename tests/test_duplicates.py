"""Groups of near-duplicates, against all pairs compared one by one."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from index.duplicates import MOST_NEIGHBORS, near_duplicates
from index.errors import RowRefused
from index.gallery import Gallery
from index.vectors import unit_rows
from tests.brute_index import BruteIndex

DIMENSION = 16


def filled(vectors: np.ndarray, names: list[str] | None = None) -> BruteIndex:
    index = BruteIndex("d" * 64, DIMENSION)
    ids = names or [f"{number:04d}" for number in range(len(vectors))]
    index.add(ids, vectors, [None] * len(ids))
    return index


def clusters(sizes: list[int], spread: float, seed: int = 0) -> np.ndarray:
    """(sum of sizes, DIMENSION), each cluster around a direction of its own, in random order."""
    random = np.random.default_rng(seed)
    centres = unit_rows(random.standard_normal((len(sizes), DIMENSION)), DIMENSION).repeat(sizes, axis=0)
    return random.permutation(unit_rows(centres + spread * random.standard_normal(centres.shape), DIMENSION))


def compared(vectors: np.ndarray, min_score: float) -> list[list[str]]:
    """The groups, by comparing all pairs and spreading the smallest number until nothing changes."""
    group = np.arange(len(vectors))
    pairs = [(a, b) for a, b in combinations(range(len(vectors)), 2) if vectors[a] @ vectors[b] >= min_score]
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            if group[a] != group[b]:
                group[a] = group[b] = min(group[a], group[b])
                changed = True
    groups = [[f"{row:04d}" for row in np.flatnonzero(group == number)] for number in set(group.tolist())]
    return sorted((one for one in groups if len(one) > 1), key=lambda one: (-len(one), one))


@pytest.mark.parametrize(("min_score", "k"), [(0.97, 10), (0.9, 1), (0.8, 3), (0.98, 10)])
def test_groups_are_those_of_all_pairs_compared(min_score: float, k: int) -> None:
    vectors = clusters([1] * 60 + [2] * 20 + [3] * 10 + [30, 45], spread=0.05)
    expected = compared(vectors, min_score)
    assert len(expected) > 3, "a case without groups says nothing"
    assert near_duplicates(filled(vectors), min_score, k) == expected


def test_a_group_wider_than_k_is_found_whole() -> None:
    # A star: every leaf is near the centre alone, which has to ask for all of them.
    leaves = np.hstack([np.full((DIMENSION - 1, 1), 2.0), np.eye(DIMENSION - 1)])
    vectors = unit_rows(np.vstack([np.eye(1, DIMENSION), leaves]), DIMENSION)
    assert vectors[1] @ vectors[2] < 0.85 < vectors[0] @ vectors[1]
    assert near_duplicates(filled(vectors), 0.85, k=1) == [[f"{number:04d}" for number in range(DIMENSION)]]


def test_rows_that_are_linked_through_others_are_one_group() -> None:
    angles = np.radians([0, 5, 10, 15, 90])
    vectors = np.zeros((5, DIMENSION))
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    assert near_duplicates(filled(vectors), np.cos(np.radians(6)), k=2) == [["0000", "0001", "0002", "0003"]]


def test_exact_copies_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(np.ones((200, DIMENSION)))
    searches: list[int] = []
    search = index.search
    monkeypatch.setattr(index, "search", lambda *asked, **how: searches.append(asked[1]) or search(*asked, **how))
    (group,) = near_duplicates(index, 0.99, k=10)
    assert len(group) == 200
    assert searches == [11, 88, 704]


def test_larger_groups_come_first_then_by_id() -> None:
    vectors = np.eye(DIMENSION)[[0, 0, 1, 1, 1, 2, 2, 3]]
    names = ["z", "y", "c", "b", "a", "x", "w", "alone"]
    assert near_duplicates(filled(vectors, names), 0.9) == [["a", "b", "c"], ["w", "x"], ["y", "z"]]


def test_no_row_is_near_itself_alone() -> None:
    assert near_duplicates(filled(np.eye(DIMENSION)), 0.5) == []
    assert near_duplicates(filled(np.empty((0, DIMENSION)), []), 0.5) == []


def test_progress_counts_every_row() -> None:
    told: list[int] = []
    near_duplicates(filled(clusters([1] * 600, 0.1)), 0.99, on_batch=told.append)
    assert sum(told) == 600
    assert len(told) > 1


@pytest.mark.parametrize(("min_score", "k"), [(1.5, 10), (float("nan"), 10), (0.9, 0)])
def test_senseless_limits_are_refused(min_score: float, k: int) -> None:
    with pytest.raises(RowRefused):
        near_duplicates(filled(np.eye(DIMENSION)), min_score, k)


def test_no_search_asks_for_more_than_every_index_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.duplicates.MOST_NEIGHBORS", 50)
    assert MOST_NEIGHBORS == 16_384
    index = filled(clusters([120], 0.01))
    asked: list[int] = []
    search = index.search
    monkeypatch.setattr(index, "search", lambda *given, **how: asked.append(given[1]) or search(*given, **how))
    (group,) = near_duplicates(index, 0.9)
    assert len(group) == 120
    assert max(asked) == 50


def test_the_gallery_gives_the_same_groups(tmp_path: Path) -> None:
    vectors = clusters([1] * 60 + [2] * 20 + [30], spread=0.05)
    with Gallery.open(tmp_path, "d" * 64, DIMENSION) as gallery:
        gallery.add([f"{number:04d}" for number in range(len(vectors))], vectors, [None] * len(vectors))
        assert near_duplicates(gallery, 0.9, k=4) == compared(vectors, 0.9)
