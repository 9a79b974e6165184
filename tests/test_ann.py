"""Exact search: the true neighbours in a fixed order, on rows that change while others search."""

import threading

import faiss
import numpy as np
import pytest

from index.ann import MAX_DEAD, Entry, Flat, Hit
from index.vectors import unit_rows


def flat_of(vectors: np.ndarray, names: list[str] | None = None) -> Flat:
    flat = Flat(vectors.shape[1])
    for row, vector in enumerate(vectors):
        flat.put(Entry(names[row] if names else f"{row:05d}", None, None), vector)
    return flat


def random_rows(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dimension)), dimension)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.entry.id for hit in hits]


def test_scores_are_cosines_best_first() -> None:
    view = flat_of(np.array([[0.6, 0.8], [1, 0], [0, -1], [-1, 0]], np.float32), ["a", "b", "c", "d"]).view()
    (hits,) = view.search(np.array([[1, 0]], np.float32), 4)
    assert ids(hits) == ["b", "a", "c", "d"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.0, -1.0])


@pytest.mark.parametrize("queries", [1, 5, 40])  # FAISS takes another path from 20 queries on
def test_search_agrees_with_brute_force(queries: int) -> None:
    vectors, asked = random_rows(3000), random_rows(queries, seed=1)
    expected = np.argsort(-(asked.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :10]
    found = flat_of(vectors).view().search(asked, 10)
    assert [ids(hits) for hits in found] == [[f"{row:05d}" for row in rows] for rows in expected]


def test_a_thousand_equal_rows_come_in_order_of_id_wherever_k_cuts() -> None:
    names = [f"{row * 7919 % 1000:04d}" for row in range(1000)]
    view = flat_of(np.repeat(random_rows(1), 1000, axis=0), names).view()
    for k in (1, 10, 999, 1000):
        (hits,) = view.search(random_rows(1), k)
        assert ids(hits) == sorted(names)[:k]


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours_asked_for_gives_an_empty_list_for_each_query(k: int) -> None:
    assert flat_of(random_rows(3)).view().search(random_rows(2), k) == [[], []]


def test_an_empty_index_and_no_queries_answer_nothing() -> None:
    assert Flat(16).view().search(random_rows(2), 5) == [[], []]
    assert flat_of(random_rows(3)).view().search(random_rows(0), 5) == []


def test_k_beyond_the_live_rows_gives_the_live_rows() -> None:
    flat = flat_of(random_rows(10))
    flat.drop("00003")
    (hits,) = flat.view().search(random_rows(1), 10**9)
    assert len(hits) == 9 and "00003" not in ids(hits)


def test_a_view_keeps_showing_its_moment() -> None:
    vectors = random_rows(20)
    flat = flat_of(vectors[:10])
    before = flat.view()
    flat.drop("00000")
    flat.put(Entry("00001", "changed", None), vectors[11])
    for row in range(600):  # grows past the first capacity, so that rows move
        flat.put(Entry(f"new{row}", None, None), vectors[12])
    for row, hits in enumerate(before.search(vectors[:10], 10)):
        assert hits[0].entry == Entry(f"{row:05d}", None, None)
        assert len(hits) == 10
    assert (before.count, flat.view().count) == (10, 609)


def test_many_replacements_do_not_pile_up() -> None:
    flat = flat_of(random_rows(5))
    vectors = random_rows(4 * MAX_DEAD, seed=2)
    for turn, vector in enumerate(vectors):
        flat.put(Entry("00002", str(turn), None), vector)
        view = flat.view()
    assert view.count == 5
    assert len(view.vectors) <= 5 + MAX_DEAD
    (hits,) = view.search(vectors[-1:], 5)
    assert (hits[0].entry.label, hits[0].score) == (str(len(vectors) - 1), pytest.approx(1.0))
    assert len(set(ids(hits))) == 5


def test_a_search_in_a_new_thread_uses_one_core() -> None:
    seen = []

    def search() -> None:
        flat_of(random_rows(3)).view().search(random_rows(1), 1)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]
