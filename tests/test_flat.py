"""Exact search: the true neighbours in a fixed order, on rows that change while others search."""

import threading
from collections.abc import Iterable

import faiss
import numpy as np
import pytest

from index.face import Neighbor
from index.flat import FIRST_CAPACITY, MAX_DEAD, Entry, Flat, FlatView, best_first, neighbor
from index.store import Row
from index.vectors import unit_rows


def flat_of(vectors: np.ndarray, names: list[str] | None = None) -> Flat:
    """Its keys are 1, 2, ...; its seqs ten times as much."""
    flat = Flat(vectors.shape[1])
    for row, vector in enumerate(vectors):
        flat.put(row + 1, 10 * (row + 1), entry(names[row] if names else f"{row:05d}"), vector)
    return flat


def entry(name: str, label: str = "") -> Entry:
    return Entry(name, label, "")


def random_rows(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dimension)), dimension)


def ids(neighbors: Iterable[Neighbor]) -> list[str]:
    return [neighbor.id for neighbor in neighbors]


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[str]]:
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    return [[f"{row:05d}" for row in np.argsort(-some, kind="stable")[:k]] for some in scores]


def test_scores_are_cosines_best_first() -> None:
    view = flat_of(np.array([[0.6, 0.8], [1, 0], [0, -1], [-1, 0]], np.float32), ["a", "b", "c", "d"]).view()
    (found,) = view.search(np.array([[1, 0]], np.float32), 4)
    assert ids(found) == ["b", "a", "c", "d"]
    assert [one.score for one in found] == pytest.approx([1.0, 0.6, 0.0, -1.0])


def test_a_result_has_the_label_and_metadata_of_its_row() -> None:
    assert neighbor(0.5, Entry("a", "cat", '{"by": "Zo\\u00eb", "n": [1]}')) == Neighbor(
        "a", 0.5, "cat", {"by": "Zoë", "n": [1]}
    )
    assert neighbor(-1.0, Entry("b", "", "")) == Neighbor("b", -1.0, None, {})
    row = Row(1, 2, "a", random_rows(1)[0], None, None, b"digest")
    assert Entry.of(row) == Entry("a", "", "")
    assert Entry.of(row._replace(label="cat", metadata="{}")) == Entry("a", "cat", "{}")


def test_equal_scores_are_sorted_by_id_and_others_by_score() -> None:
    near = [
        neighbor(score, entry(name)) for score, name in ((0.5, "b"), (0.9, "z"), (0.5, "a"), (-1, "0"), (0.9, "Z"))
    ]
    assert ids(best_first(near)) == ["Z", "z", "a", "b", "0"]


@pytest.mark.parametrize("queries", [1, 5, 40])  # FAISS takes another path from 20 queries on
@pytest.mark.parametrize("k", [1, 10, 2999, 3000, 3001])
def test_search_agrees_with_brute_force(queries: int, k: int) -> None:
    vectors, asked = random_rows(3000), random_rows(queries, seed=1)
    found = flat_of(vectors).view().search(asked, k)
    truth = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    for near, names, scores in zip(found, brute_force(vectors, asked, k), truth, strict=True):
        assert len(near) == min(k, 3000) == len(set(ids(near)))
        # Rows may change places only where their scores are as good as equal.
        assert [one.score for one in near] == pytest.approx([scores[int(name)] for name in names], abs=1e-6)
        assert [one.score for one in near] == pytest.approx([scores[int(one.id)] for one in near], abs=1e-6)
    if k == 10:
        assert [ids(near) for near in found] == brute_force(vectors, asked, k)


@pytest.mark.parametrize("dead", [0, 3, 255])
def test_a_thousand_equal_rows_come_in_order_of_id_wherever_k_cuts(dead: int) -> None:
    names = [f"{row * 7919 % 1000:04d}" for row in range(1000)]
    flat = flat_of(np.repeat(random_rows(1), 1000, axis=0), names)
    gone = set(np.random.default_rng(1).choice(1000, dead, replace=False).tolist())
    for row in gone:
        flat.drop(row + 1)
    left = sorted(name for row, name in enumerate(names) if row not in gone)
    view = flat.view()
    for k in (1, 10, len(left) - 1, len(left), 1000):
        (found,) = view.search(random_rows(1), k)
        assert ids(found) == left[:k]


def test_equal_rows_at_the_end_of_the_list_are_chosen_by_id() -> None:
    vectors = np.concatenate([random_rows(1), np.repeat(random_rows(1, seed=1), 50, axis=0), -random_rows(1)])
    view = flat_of(vectors, ["best", *(f"{row:02d}" for row in range(49, -1, -1)), "worst"]).view()
    for k in (2, 20, 50, 51):
        (found,) = view.search(random_rows(1), k)
        assert ids(found) == ["best", *(f"{row:02d}" for row in range(50))][:k]


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours_asked_for_gives_an_empty_list_for_each_query(k: int) -> None:
    assert flat_of(random_rows(3)).view().search(random_rows(2), k) == [[], []]


def test_an_empty_index_and_no_queries_answer_nothing() -> None:
    assert Flat(16).view().search(random_rows(2), 5) == [[], []]
    assert flat_of(random_rows(3)).view().search(random_rows(0), 5) == []
    gone = flat_of(random_rows(1))
    gone.drop(1)
    assert gone.view().search(random_rows(2), 5) == [[], []]


def test_k_beyond_the_live_rows_gives_the_live_rows() -> None:
    flat = flat_of(random_rows(10))
    flat.drop(4)
    flat.drop(4)
    flat.drop(99)
    (found,) = flat.view().search(random_rows(1), 10**9)
    assert len(found) == 9 and "00003" not in ids(found)


@pytest.mark.parametrize("share", [0, 1 / 500, 0.01, 0.5, 1])
@pytest.mark.parametrize("k", [1, 7, 400, 1000])
def test_among_some_keys_only_their_live_rows_are_found(share: float, k: int) -> None:
    vectors, asked = random_rows(500), random_rows(3, seed=1)
    flat = flat_of(vectors)
    random = np.random.default_rng(2)
    gone = random.choice(500, 100, replace=False)
    for row in gone:
        flat.drop(int(row) + 1)
    rows = np.sort(random.choice(500, round(share * 500), replace=False))
    keys = np.concatenate([rows + 1, [777]])  # one that is not here
    among = flat.view().among(keys)
    left = np.setdiff1d(rows, gone)
    assert among.count == len(left)
    assert (among.keys.tolist(), among.seqs.tolist()) == ((left + 1).tolist(), (10 * (left + 1)).tolist())
    for near, query in zip(among.search(asked, k), asked, strict=True):
        order = np.argsort(-(vectors[left].astype(np.float64) @ query), kind="stable")[:k]
        assert ids(near) == [f"{left[place]:05d}" for place in order]


def assert_shows(view: FlatView, rows: dict[int, tuple[int, str, np.ndarray]]) -> None:
    """Whether it holds these rows, key -> (seq, label, vector), and no others, wherever one looks."""
    live = view.live()
    assert view.count == len(live) == len(rows)
    shown = zip(view.keys[live].tolist(), view.seqs[live].tolist(), live.tolist(), strict=True)
    assert {key: (seq, view.entries[place].label, view.vectors[place].tobytes()) for key, seq, place in shown} == {
        key: (seq, label, vector.tobytes()) for key, (seq, label, vector) in rows.items()
    }
    queries = random_rows(2, seed=3)
    for query, near in zip(queries, view.search(queries, len(rows) + 5), strict=True):
        assert sorted(ids(near)) == sorted(str(key) for key in rows)
        for one in near:
            _, label, vector = rows[int(one.id)]
            assert (one.label, one.score) == (label, pytest.approx(float(vector @ query), abs=1e-6))


@pytest.mark.parametrize("seed", range(3))
def test_every_view_keeps_showing_its_moment_through_any_changes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.flat.MAX_DEAD", 20)
    random = np.random.default_rng(seed)
    vectors = random_rows(200, seed=seed)
    flat, rows, kept = Flat(16), {}, []
    for seq in range(1, 1500):
        key = int(random.integers(1, 150 if seq < 700 else 600))
        if random.random() < 0.3:
            flat.drop(key)
            rows.pop(key, None)
        else:
            rows[key] = (seq, f"{seq}", vectors[random.integers(200)])
            flat.put(key, seq, entry(f"{key}", f"{seq}"), rows[key][2])
        if seq % 60 == 0:
            kept.append((flat.view(), dict(rows)))
    assert len(rows) > FIRST_CAPACITY  # so that they were moved to a larger place
    for view, then in kept:
        assert_shows(view, then)


def test_many_replacements_do_not_pile_up() -> None:
    flat = flat_of(random_rows(5))
    vectors = random_rows(4 * MAX_DEAD, seed=2)
    for turn, vector in enumerate(vectors):
        flat.put(3, 100 + turn, entry("00002", str(turn)), vector)
        view = flat.view()
    assert view.count == 5
    assert len(view.vectors) <= 5 + MAX_DEAD
    (found,) = view.search(vectors[-1:], 5)
    assert (found[0].label, found[0].score) == (str(len(vectors) - 1), pytest.approx(1.0))
    assert len(set(ids(found))) == 5


def test_a_search_in_a_new_thread_uses_one_core() -> None:
    seen = []

    def search() -> None:
        flat_of(random_rows(3)).view().search(random_rows(1), 1)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]
