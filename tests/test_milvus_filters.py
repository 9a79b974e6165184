"""Milvus's language as text: what is quoted, what is listed, and what each engine is spared. Needs no server."""

import pytest

from index import milvus_filters
from index.filters import Filter
from index.milvus_filters import LISTED_BYTES, SLICE_ROWS, among, expression, quoted, slices


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("", '""'),
        ("cat", '"cat"'),
        ('say "hi"', r'"say \"hi\""'),
        ("it's", '"it\'s"'),
        ("C:\\new", r'"C:\\new"'),
        ('\\"', r'"\\\""'),
        ("a\nb\rc\td", r'"a\nb\rc\td"'),
        ("\\u0041", r'"\\u0041"'),
        ("日😀\u2028\x01\x7f", '"日😀\u2028\x01\x7f"'),
        ("50% {x}", '"50% {x}"'),
    ],
)
def test_a_string_has_its_quotes_backslashes_and_line_ends_escaped_and_nothing_else(text: str, written: str) -> None:
    assert quoted(text) == written


@pytest.mark.parametrize(
    ("given", "server", "lite"),
    [
        (None, "", ""),
        ({}, "", ""),
        ({"label": "cat"}, '(label in ["cat"])', '(label in ["cat"])'),
        ({"label": ["cat", 'a"b']}, r'(label in ["cat", "a\"b"])', r'(label in ["cat", "a\"b"])'),
        ({"indoors": True}, '(metadata["indoors"] in [true])', '(metadata["indoors"] == true)'),
        ({"n": [1, -2]}, '(metadata["n"] in [1, -2])', '(metadata["n"] == 1 or metadata["n"] == -2)'),
        ({"n": [0.5, 1e17]}, '(metadata["n"] in [0.5, 1e+17])', '(metadata["n"] == 0.5 or metadata["n"] == 1e+17)'),
        (
            {"x": [1, "1", True, 2, 1.0, False]},
            '(metadata["x"] in [1, 2] or metadata["x"] in ["1"] or metadata["x"] in [true, false]'
            ' or metadata["x"] in [1.0])',
            '(metadata["x"] == 1 or metadata["x"] == "1" or metadata["x"] == true or metadata["x"] == 2'
            ' or metadata["x"] == 1.0 or metadata["x"] == false)',
        ),
        (
            {"label": "cat", "n": [1, "b"]},
            '(label in ["cat"]) and (metadata["n"] in [1] or metadata["n"] in ["b"])',
            '(label in ["cat"]) and (metadata["n"] == 1 or metadata["n"] == "b")',
        ),
    ],
)
def test_a_filter_is_written_as_each_engine_understands_it(given: object, server: str, lite: str) -> None:
    where = Filter.parse(given)
    assert expression(where, lite=False) == server
    assert expression(where, lite=True) == lite


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"n": {"gt": 0, "lte": 9}}, '(metadata["n"] > 0 and metadata["n"] <= 9)'),
        ({"year": {"gte": 1990, "lt": 2000.5}}, '(metadata["year"] >= 1990 and metadata["year"] < 2000.5)'),
        ({"label": {"gte": "a", "lt": "ü\n"}}, r'(label >= "a" and label < "ü\n")'),
    ],
)
def test_a_range_is_written_alike_for_both_engines(given: object, written: str) -> None:
    where = Filter.parse(given)
    assert expression(where, lite=False) == expression(where, lite=True) == written


def test_rows_are_named_by_the_values_of_a_field_and_none_by_no_values() -> None:
    assert list(among("id", [])) == []
    assert list(among("id", ["a", 'b"', "日"])) == [r'id in ["a", "b\"", "日"]']


def test_a_list_goes_in_as_few_expressions_as_rows_and_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}" for number in range(SLICE_ROWS + 1)]
    first, second = among("content", names)
    assert first.count(",") == SLICE_ROWS - 1 and first.startswith('content in ["0", "1"')
    assert second == f'content in ["{SLICE_ROWS}"]'
    half = "ü" * (LISTED_BYTES // 4)  # two bytes each
    assert len(list(among("id", [half, half]))) == 1
    assert len(list(among("id", [half, half, "x"]))) == 2
    monkeypatch.setattr(milvus_filters, "LISTED_BYTES", 3)
    assert list(among("id", ["ü", "ab", "c"])) == ['id in ["ü"]', 'id in ["ab", "c"]']


def test_slices_keep_the_order_and_what_is_larger_than_the_limit_goes_alone() -> None:
    assert list(slices([], [], 10)) == []
    assert list(slices("abcde", [4, 6, 1, 99, 1], 10)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert [len(some) for some in slices(range(1200), [0] * 1200, 10)] == [SLICE_ROWS, SLICE_ROWS, 200]
