"""What every index does, whichever engine is behind its face: one class, run on each of them.

A module that has an index derives `IndexBehaviour` and defines two fixtures: `index`, fresh and empty, of DIMENSION
and DIGEST; and `reopen`, which opens the same data once more beside it, for a given digest.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from index.errors import RowRefused, WrongModel
from index.face import Index, Neighbor
from index.filters import Filter
from index.vectors import unit_rows

DIGEST = "d1" * 32
DIMENSION = 16
Reopen = Callable[[str], Index]

HOSTILE = [
    "a/b c.jpg",
    "ü/日本.jpg",
    "it's",
    'say "hi"',
    "back\\slash",
    "100 %",
    "line\nbreak",
    "a" * 1000,
    "\\",
    "'",
    '"',
]
DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"n": 1, "f": 0.5, "negative": -3, "large": 2**53, "flag": True, "nothing": None},
    {"nested": {"list": [1, "two", {"three": 3.5}], "empty": {}}},
    {"ü": "日本", "quote": 'say "hi"', "backslash": "a\\b", "newline": "a\nb"},
]


def rows(count: int, seed: int = 0) -> np.ndarray:
    """(count, DIMENSION) float32 of unit length."""
    return unit_rows(np.random.default_rng(seed).standard_normal((count, DIMENSION)), DIMENSION)


def ids(neighbors: list[Neighbor]) -> list[str]:
    return [neighbor.id for neighbor in neighbors]


def fill(index: Index, count: int = 120, seed: int = 0) -> np.ndarray:
    """Row i has the id `00i`, the label cat, dog or none in turn, and metadata of many kinds."""
    vectors = rows(count, seed)
    index.add(
        [f"{number:03d}" for number in range(count)],
        vectors,
        [("cat", "dog", None)[number % 3] for number in range(count)],
        [metadata_of(number) for number in range(count)],
    )
    return vectors


def metadata_of(number: int) -> dict[str, Any]:
    if number % 10 == 9:
        return {}
    return {
        "n": number,
        "half": number / 2,
        "flag": number % 2 == 0,
        "text": f"x{number:03d}",
        "mixed": [number, str(number), number % 2 == 1][number % 3],
        "quote": 'a"b\\c' if number % 4 == 0 else "plain",
        "größe": ("klein", "groß", "日本")[number % 3],
        "odd": [None, ["x"], {"x": 1}, "x"][number % 4],
    }


FILTERS: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
    ({"label": "cat"}, lambda n: n % 3 == 0),
    ({"label": ["cat", "dog"]}, lambda n: n % 3 < 2),
    ({"label": {"gt": "cat"}}, lambda n: n % 3 == 1),
    ({"label": "cow"}, lambda n: False),
    ({"n": 7}, lambda n: n == 7),
    ({"n": 7.0}, lambda n: n == 7),
    ({"n": [1, 2, 300]}, lambda n: n in (1, 2)),
    ({"n": "7"}, lambda n: False),
    ({"n": {"gte": 20, "lt": 30}}, lambda n: 20 <= n < 29),
    ({"half": {"gt": 50.25}}, lambda n: n > 100 and n % 10 != 9),
    ({"text": {"gte": "x010", "lte": "x012"}}, lambda n: n in (10, 11, 12)),
    ({"flag": True}, lambda n: n % 2 == 0 and n % 10 != 9),
    ({"flag": False}, lambda n: n % 2 == 1 and n % 10 != 9),
    ({"flag": 1}, lambda n: False),
    ({"n": True}, lambda n: False),
    ({"mixed": 3}, lambda n: n == 3),
    ({"mixed": "4"}, lambda n: n == 4),
    ({"mixed": True}, lambda n: n % 3 == 2 and n % 2 == 1 and n % 10 != 9),
    ({"mixed": {"lt": 9}}, lambda n: n % 3 == 0 and n < 9),
    ({"missing": 1}, lambda n: False),
    ({"quote": 'a"b\\c'}, lambda n: n % 4 == 0),
    ({"größe": ["groß", "日本"]}, lambda n: n % 3 > 0 and n % 10 != 9),
    ({"odd": "x"}, lambda n: n % 4 == 3 and n % 10 != 9),
    (
        {"label": "dog", "n": {"gt": 50}, "flag": [True]},
        lambda n: n % 3 == 1 and n > 50 and n % 2 == 0 and n % 10 != 9,
    ),
]


class IndexBehaviour:
    """The contract of index/face.py."""

    score_tolerance = 1e-5
    refuses_other_models = True  # False: each model has a place of its own, and begins empty

    def test_a_new_index_is_empty_and_answers_so(self, index: Index) -> None:
        assert index.count == 0 and index.stats()["rows"] == 0
        assert index.search(rows(2), 5) == [[], []]
        assert index.get(["a"]) == [None] and list(index.records()) == []
        assert index.search(rows(1), 5, Filter.parse({"label": "cat"}), 0.5) == [[]]
        assert index.remove(["a"]) == 0

    def test_a_call_about_no_rows_does_nothing(self, index: Index) -> None:
        fill(index, 3)
        index.add([], rows(0), [])
        assert (index.get([]), index.remove([]), index.known_contents([]), index.count) == ([], 0, {}, 3)

    def test_rows_are_counted_as_they_come_and_go(self, index: Index) -> None:
        fill(index, 20)
        index.add(["003", "new"], rows(2, seed=9), [None, None])
        index.remove(["004", "005"])
        assert index.count == index.stats()["rows"] == sum(map(len, index.records())) == 19

    @pytest.mark.parametrize("seed", [0, 1])
    def test_a_search_agrees_with_brute_force(self, index: Index, seed: int) -> None:
        vectors = fill(index, seed=seed)
        queries = rows(5, seed=100 + seed)
        for k in (1, 7, 120, 500):
            for query, found in zip(queries, index.search(queries, k), strict=True):
                scores = vectors @ query
                expected = np.sort(scores)[::-1][:k]
                assert [one.score for one in found] == pytest.approx(expected.tolist(), abs=self.score_tolerance)
                assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
                assert len(set(ids(found))) == len(found) == min(k, 120)
                exact = [float(scores[int(one.id)]) for one in found]
                assert [one.score for one in found] == pytest.approx(exact, abs=self.score_tolerance)

    def test_a_row_finds_itself_with_its_label_and_metadata(self, index: Index) -> None:
        vectors = fill(index)
        for number, (best,) in enumerate(index.search(vectors[:12], 1)):
            assert best.id == f"{number:03d}" and best.score == pytest.approx(1, abs=self.score_tolerance)
            assert best.label == ("cat", "dog", None)[number % 3] and best.metadata == metadata_of(number)

    def test_no_neighbours_are_none_and_fewer_than_none_are_refused(self, index: Index) -> None:
        fill(index, 5)
        assert index.search(rows(1), 0) == [[]]
        assert index.search(rows(0), 3) == []
        with pytest.raises(RowRefused, match="k is -1"):
            index.search(rows(1), -1)

    @pytest.mark.parametrize(("where", "matches"), FILTERS, ids=[str(where) for where, _ in FILTERS])
    def test_a_filter_admits_what_it_says(
        self, index: Index, where: dict[str, Any], matches: Callable[[int], bool]
    ) -> None:
        vectors = fill(index)
        expected = {number for number in range(120) if matches(number)}
        (found,) = index.search(vectors[:1], 500, Filter.parse(where))
        assert {int(one.id) for one in found} == expected and len(found) == len(expected)
        (nearest,) = index.search(vectors[:1], 3, Filter.parse(where))
        best = sorted((float(vectors[number] @ vectors[0]) for number in expected), reverse=True)[:3]
        assert [one.score for one in nearest] == pytest.approx(best, abs=self.score_tolerance)

    def test_filters_that_python_takes_for_equal_are_told_apart(self, index: Index) -> None:
        vectors = fill(index)
        for where, count in (
            ({"flag": True}, 60),
            ({"flag": 1}, 0),
            ({"n": 1}, 1),
            ({"n": True}, 0),
            ({"n": 1.0}, 1),
        ):
            assert len(index.search(vectors[:1], 500, Filter.parse(where))[0]) == count, where

    def test_a_filter_asked_again_sees_what_was_written_since(self, index: Index) -> None:
        vectors = fill(index, 30)
        where = Filter.parse({"label": "dog", "n": {"lt": 10}})
        assert set(ids(index.search(vectors[:1], 30, where)[0])) == {"001", "004", "007"}
        index.remove(["001"])
        index.add(["004", "new"], rows(2, seed=9), ["cat", "dog"], [{"n": 4}, {"n": 9.5}])
        assert set(ids(index.search(vectors[:1], 30, where)[0])) == {"007", "new"}

    def test_what_is_too_far_away_is_left_out(self, index: Index) -> None:
        vectors = fill(index)
        (everything,) = index.search(vectors[3:4], 120)
        least = (everything[9].score + everything[10].score) / 2
        assert index.search(vectors[3:4], 120, min_score=least) == [everything[:10]]
        assert ids(index.search(vectors[3:4], 120, Filter.parse({"n": {"lt": 60}}), least)[0]) == [
            one.id for one in everything[:10] if one.metadata.get("n", 60) < 60
        ]

    def test_equal_scores_are_ordered_by_id(self, index: Index) -> None:
        one = rows(1)
        names = ["d", "b", "a", "c", "e"]
        index.add(names, np.repeat(one, 5, axis=0), [None] * 5)
        assert ids(index.search(one, 5)[0]) == sorted(names)
        assert ids(index.search(one, 2)[0]) == ["a", "b"]

    def test_adding_an_id_again_replaces_its_row(self, index: Index) -> None:
        vectors = fill(index, 10)
        new = rows(1, seed=9)
        index.add(["003"], new, ["new"], [{"a": 1}])
        assert index.count == 10
        (best,) = index.search(new, 1)[0]
        assert (best.id, best.label, best.metadata) == ("003", "new", {"a": 1})
        assert index.search(vectors[3:4], 1)[0][0].score < 0.999

    def test_of_an_id_given_twice_the_later_row_stays(self, index: Index) -> None:
        index.add(["a", "b", "a"], rows(3), ["first", None, "later"])
        assert index.count == 2
        (row,) = index.get(["a"])
        assert row is not None and row.label == "later"
        np.testing.assert_allclose(row.vector, rows(3)[2], atol=1e-6)

    def test_what_was_removed_is_gone(self, index: Index) -> None:
        vectors = fill(index, 10)
        assert index.remove(["003", "nobody", "004", "003"]) == 2
        assert index.remove(["003"]) == 0
        assert index.count == 8 and index.get(["003"]) == [None]
        assert not {"003", "004"} & set(ids(index.search(vectors[3:4], 100)[0]))
        index.add(["003"], vectors[3:4], ["back"])
        assert index.search(vectors[3:4], 1)[0][0].label == "back"

    def test_rows_are_got_in_the_order_of_their_ids_as_asked(self, index: Index) -> None:
        vectors = fill(index, 10)
        records = index.get(["007", "none", "002", "007"])
        assert [record and record.id for record in records] == ["007", None, "002", "007"]
        assert records[2] is not None and records[2].metadata == metadata_of(2) and records[2].content is None
        np.testing.assert_allclose(records[2].vector, vectors[2], atol=1e-6)

    def test_every_row_is_among_the_records_once(self, index: Index) -> None:
        vectors = fill(index, 100)
        index.remove(["050"])
        found = [record for batch in index.records(batch=17) for record in batch]
        assert sorted(record.id for record in found) == [f"{number:03d}" for number in range(100) if number != 50]
        for record in found:
            np.testing.assert_allclose(record.vector, vectors[int(record.id)], atol=1e-6)

    def test_a_sample_has_whole_rows_that_are_there_and_is_the_same_each_time(self, index: Index) -> None:
        assert index.sample(8) == []
        vectors = fill(index, 30)
        index.remove(["005"])
        drawn = index.sample(8)
        assert len({row.id for row in drawn}) == 8
        for row in drawn:
            assert row.metadata == metadata_of(int(row.id))
            np.testing.assert_allclose(row.vector, vectors[int(row.id)], atol=1e-6)
        whole = [row.id for row in index.sample(500)]
        assert whole[:8] == [row.id for row in drawn]
        assert sorted(whole) == [f"{number:03d}" for number in range(30) if number != 5]

    def test_the_images_that_are_there_are_known_by_their_digests(self, index: Index) -> None:
        digests = [bytes([number]) * 16 for number in range(3)]
        index.add(["a", "b", "c"], rows(3), [None] * 3, contents=[digests[0], None, digests[1]])
        assert index.known_contents(digests) == {digests[0]: "a", digests[1]: "c"}
        index.remove(["a"])
        assert index.known_contents(digests) == {digests[1]: "c"}

    def test_ids_and_labels_may_hold_anything(self, index: Index) -> None:
        vectors = rows(len(HOSTILE))
        index.add(HOSTILE, vectors, HOSTILE)
        assert [found[0].id for found in index.search(vectors, 1)] == HOSTILE
        assert [record and record.id for record in index.get(HOSTILE)] == HOSTILE
        for name in HOSTILE:
            assert ids(index.search(vectors[:1], 100, Filter.parse({"label": name}))[0]) == [name]
        assert index.remove(HOSTILE) == len(HOSTILE) and index.count == 0

    @pytest.mark.parametrize("name", ["x" * 1024, "ü" * 512], ids=["ascii", "umlauts"])
    def test_an_id_and_a_label_may_have_1024_bytes(self, index: Index, name: str) -> None:
        index.add([name], rows(1), [name])
        (best,) = index.search(rows(1), 1, Filter.parse({"label": name}))[0]
        assert (best.id, best.label) == (name, name) and index.remove([name]) == 1

    def test_metadata_comes_back_as_it_went(self, index: Index) -> None:
        index.add(
            [str(number) for number in range(len(DOCUMENTS))],
            rows(len(DOCUMENTS)),
            [None] * len(DOCUMENTS),
            DOCUMENTS,
        )
        found = {one.id: one.metadata for one in index.search(rows(1), 10)[0]}
        assert [found[str(number)] for number in range(len(DOCUMENTS))] == DOCUMENTS
        records = index.get([str(number) for number in range(len(DOCUMENTS))])
        assert [record and record.metadata for record in records] == DOCUMENTS

    def test_vectors_are_scaled_to_unit_length(self, index: Index) -> None:
        index.add(["a"], 30 * rows(1), [None])
        (row,) = index.get(["a"])
        assert row is not None and np.linalg.norm(row.vector) == pytest.approx(1, abs=1e-6)
        assert index.search(0.01 * rows(1), 1)[0][0].score == pytest.approx(1, abs=self.score_tolerance)

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
    def test_vectors_may_be_of_any_real_type(self, index: Index, dtype: type) -> None:
        given = (100 * rows(1)).astype(dtype)
        index.add(["a"], given, [None])
        (row,) = index.get(["a"])
        assert row is not None and row.vector.dtype == np.float32
        np.testing.assert_allclose(row.vector, unit_rows(given, DIMENSION)[0], atol=1e-6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vectors": np.full((2, DIMENSION), np.nan)}, "NaN"),
            ({"vectors": np.full((2, DIMENSION), np.inf)}, "Inf"),
            ({"vectors": np.zeros((2, DIMENSION))}, "zero"),
            ({"vectors": np.ones((2, DIMENSION + 1))}, "do not fit"),
            ({"vectors": np.ones((3, DIMENSION))}, "one of each per row"),
            ({"ids": ["new", ""]}, "id ''"),
            ({"ids": ["new", "nul\0"]}, "NUL"),
            ({"ids": ["new", "x" * 1025]}, "1025 bytes; the limit is 1024"),
            ({"labels": ["x", ""]}, "label ''"),
            ({"metadata": [{}, {"score": float("nan")}]}, "metadata of row 1"),
            ({"metadata": [{}, {"text": "x" * 70_000}]}, "the limit is 65535"),
            ({"metadata": [{}, {"what": object()}]}, "metadata of row 1"),
            ({"ids": ["new", "\ud800"]}, "not valid Unicode"),
            ({"contents": [None, b""]}, "content of row 1"),
            ({"contents": [None, "text"]}, "content of row 1"),
        ],
    )
    def test_one_bad_row_is_refused_and_nothing_is_changed(
        self, index: Index, change: dict[str, Any], message: str
    ) -> None:
        index.add(["old"], rows(1), ["before"])
        good: dict[str, Any] = {"ids": ["old", "new"], "vectors": rows(2, seed=1), "labels": ["after", "after"]}
        with pytest.raises(RowRefused, match=message):
            index.add(**(good | change))
        assert index.count == 1
        (row,) = index.get(["old"])
        assert row is not None and row.label == "before"

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
    def test_a_query_without_direction_is_refused(self, index: Index, bad: float) -> None:
        fill(index, 3)
        with pytest.raises(RowRefused, match="vector 0"):
            index.search(np.full((1, DIMENSION), bad), 1)

    def test_what_one_writes_the_other_finds_at_once(self, index: Index, reopen: Reopen) -> None:
        other = reopen(DIGEST)
        try:
            for turn in range(5):
                vector = rows(1, seed=50 + turn)
                index.add([str(turn)], vector, [None])
                assert ids(other.search(vector, 1)[0]) == [str(turn)]
                assert other.remove([str(turn)]) == 1
                assert index.search(vector, 10) == [[]]
        finally:
            other.close()

    def test_everything_is_there_when_it_is_opened_again(self, index: Index, reopen: Reopen) -> None:
        vectors = fill(index, 30)
        index.remove(["001"])
        other = reopen(DIGEST)
        try:
            assert other.count == 29
            assert [ids(found) for found in other.search(vectors[2:9], 1)] == [
                [f"{number:03d}"] for number in range(2, 9)
            ]
        finally:
            other.close()

    def test_vectors_of_another_model_are_never_among_them(self, index: Index, reopen: Reopen) -> None:
        fill(index, 3)
        if self.refuses_other_models:
            with pytest.raises(WrongModel, match="d1d1d1d1d1d1"):
                reopen("e2" * 32)
        else:
            other = reopen("e2" * 32)
            try:
                assert other.count == 0 and other.search(rows(1), 3) == [[]]
            finally:
                other.close()
