"""A filter says the same to SQLite and in plain Python, whatever names and values it meets, or is refused."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from index.errors import RowRefused
from index.face import Record
from index.filters import MAX_CONDITIONS, MAX_NAME, MAX_VALUES, Filter, OneOf, Within
from index.gallery import Gallery
from index.incoming import checked
from index.schema import CREATE
from index.selection import where_clause
from tests.brute_index import matches

DIMENSION = 2
VECTOR = np.array([1, 0], np.float32)
HOSTILE = [
    *(
        "a",
        "A",
        "label",
        "id",
        "key",
        "removed",
        "metadata",
        "a.b",
        "a[0]",
        "[0]",
        "$",
        "$.a",
        "#",
        "*",
        "%",
        "_",
        " ",
    ),
    *("größe", "年", "😀", "é", "e\u0301", " a ", "--", "); DROP TABLE rows; --", "?", "?1", ":a", "@a", "{}", "a,b"),
    *("a:b", "a/b", "~", "`", "x" * MAX_NAME),
]


def row_of(label: str | None, metadata: dict[str, Any]) -> Record:
    """As it comes back from an index."""
    (document,) = checked(["a"], VECTOR[None], [label], [metadata], None, DIMENSION).documents
    return Record("a", VECTOR, label, json.loads(document) if document else {})


def found_by_sql(where: Filter, rows: list[Record]) -> list[int]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in CREATE:
            connection.execute(statement)
        for key, row in enumerate(rows):
            document = json.dumps(row.metadata) if row.metadata else None
            values = (key, key, f"{key}", row.label, document, None, 0, 0)
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        clause, bound = where_clause(where)
        query = f"SELECT key FROM rows WHERE removed = 0 AND {clause} ORDER BY key"
        return [key for (key,) in connection.execute(query, bound)]
    finally:
        connection.close()


def agree(where: object, rows: list[Record]) -> list[int]:
    """The rows that match by SQL, which are those that match otherwise."""
    filter = Filter.parse(where)
    assert filter is not None
    found = found_by_sql(filter, rows)
    assert found == [key for key, row in enumerate(rows) if matches(filter, row)]
    assert found == [key for key, row in enumerate(rows) if filter.matches(row.label, row.metadata)]
    return found


TEXTS = st.one_of(
    st.sampled_from(["", "a", "b", "é", "1", "true", "null", "%", "'", '"', "\\", "😀", "\uffff"]),
    st.text(max_size=3),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([-0.0, 0.5, 1.0, 1e15, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63) + 1, 5e-324, 0.1, 1 / 3]),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(-(2.0**62), 2.0**62),
)
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans())
BEYOND = st.sampled_from([None, [], {}, [1], ["a"], {"a": 1}, 2**64 - 1, -(2**63), 1e300, -1e300, [[True]]])
NAMES = st.one_of(st.sampled_from(HOSTILE[:8]), st.sampled_from(HOSTILE), st.text(min_size=1, max_size=3))
FIELDS = st.dictionaries(NAMES, st.one_of(SCALARS, BEYOND), max_size=4)
LABELS = st.one_of(st.none(), TEXTS.filter(lambda text: text and "\0" not in text))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[str | None, dict[str, Any]]]]:
    """Some rows, and a filter made of their names and values, of near ones, and of others."""
    rows = draw(st.lists(st.tuples(LABELS, FIELDS), min_size=1, max_size=5))
    there = [(name, value) for label, fields in rows for name, value in [("label", label), *fields.items()]]
    where: dict[str, Any] = {}
    for name, value in draw(st.lists(st.sampled_from(there), min_size=1, max_size=2)):
        like = TEXTS if name == "label" or isinstance(value, str) else draw(st.sampled_from([NUMBERS, SCALARS]))
        scalar = value if isinstance(value, str | int | float) else draw(like)
        if draw(st.booleans()):
            others = draw(st.lists(like, max_size=2))
            where[name] = draw(st.permutations([scalar, *others])) if draw(st.booleans()) else scalar
        else:
            like = TEXTS if isinstance(scalar, str) else NUMBERS
            bounds = draw(st.lists(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1, max_size=2, unique=True))
            ends = [draw(like) if isinstance(scalar, bool) or draw(st.booleans()) else scalar for _ in bounds]
            where[name] = dict(zip(bounds, ends, strict=True))
    return where, rows


@settings(max_examples=300, deadline=None)
@given(cases())
@example(({"x": "cat"}, [(None, {"x": "cat\0dog"}), (None, {"x": "cat"})]))
@example(({"größe": 1}, [(None, {"größe": 1}), (None, {"gr": 1})]))
@example(({"x": 2**63 - 1}, [(None, {"x": 2**64 - 1}), (None, {"x": 2.0**63}), (None, {"x": 2**63 - 1})]))
@example(({"label": {"gt": "a"}}, [("a", {}), ("é", {"label": "z"}), (None, {"label": "b"})]))
def test_a_filter_admits_the_same_rows_in_sql_and_in_python(
    case: tuple[dict[str, Any], list[tuple[str | None, dict[str, Any]]]],
) -> None:
    where, given_rows = case
    try:
        filter = Filter.parse(where)
        rows = [row_of(*row) for row in given_rows]
    except RowRefused:
        return
    assert filter is not None
    agree(where, rows)


VALUES = ["a", "1", "true", "", 0, 1, 1.0, 1.5, -1, True, False, None, [1], {"a": 1}, 2**53, 2**53 + 1, float(2**53)]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_field_of_any_name_is_found_and_no_other(name: str) -> None:
    label = name == "label"  # of that name there is one beside the metadata
    rows = [row_of("x" if label else None, {name: "x"}), row_of("y", {name + "x": "x", "b": {name: "x"}})]
    rows += [row_of(None, {other: "x"}) for other in HOSTILE if other != name]
    assert agree({name: "x"}, rows) == [0]
    assert agree({name: {"gte": "x"}}, rows) == ([0, 1] if label else [0])


@pytest.mark.parametrize("value", [value for value in VALUES if isinstance(value, str | int | float)])
def test_types_are_kept_apart(value: str | float | bool) -> None:
    rows = [row_of(None, {"x": other}) for other in VALUES] + [row_of(None, {})]
    equal = [place for place, other in enumerate(VALUES) if kind(other) == kind(value) and other == value]
    assert agree({"x": value}, rows) == equal
    assert agree({"x": [value, "z"]}, rows) == equal
    if not isinstance(value, bool):
        assert set(equal) < set(agree({"x": {"lte": value}}, rows)) | set(agree({"x": {"gte": value}}, rows))
        assert agree({"x": {"gt": value, "lt": value}}, rows) == []
        assert agree({"x": {"gte": value, "lte": value}}, rows) == equal


def kind(value: object) -> type:
    return float if type(value) is int else type(value)


def test_strings_compare_by_code_point_and_ranges_take_or_leave_their_ends() -> None:
    rows = [row_of(text, {"x": text}) for text in ["A", "Z", "a", "z", "é", "\ue000", "\uffff", "😀"]]
    for field in "label", "x":
        assert agree({field: {"gt": "Z", "lte": "é"}}, rows) == [2, 3, 4]
        assert agree({field: {"gte": "\ue000", "lt": "😀"}}, rows) == [5, 6]
        assert agree({field: {"lt": "a", "gte": "A"}}, rows) == [0, 1]


def test_all_conditions_must_hold() -> None:
    rows = [row_of(label, {"n": n, "on": n > 1}) for label in ("cat", "dog", None) for n in (1, 2)]
    assert agree({"label": ["cat", "dog"], "n": {"gt": 1}, "on": True}, rows) == [1, 3]
    assert agree({"label": "cat", "n": 3}, rows) == []


def test_as_many_conditions_and_values_as_are_allowed_can_be_asked_for() -> None:
    where = {f"f{number}": list(range(MAX_VALUES)) for number in range(MAX_CONDITIONS)}
    rows = [row_of(None, dict.fromkeys(where, 999)), row_of(None, dict.fromkeys(where, 1000))]
    assert agree(where, rows) == [0]
    assert agree({"n": [f"{value}" for value in range(MAX_VALUES)]}, [row_of(None, {"n": "999"})]) == [0]


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path, "a" * 64, DIMENSION) as opened:
        yield opened


def test_what_a_filter_matched_is_not_remembered_for_another_one_that_python_takes_for_equal(
    gallery: Gallery,
) -> None:
    gallery.add(
        ["true", "one", "false", "zero"], np.ones((4, 2)), [None] * 4, [{"x": x} for x in (True, 1, False, 0)]
    )
    for _ in range(2):
        for value, name in ((1, "one"), (True, "true"), (0.0, "zero"), (False, "false"), (1.0, "one"), (0, "zero")):
            (near,) = gallery.search(np.ones((1, 2)), 5, Filter.parse({"x": value}))
            assert [one.id for one in near] == [name]
    gallery.add(["one too"], np.ones((1, 2)), [None], [{"x": 1}])
    (near,) = gallery.search(np.ones((1, 2)), 5, Filter.parse({"x": 1}))
    assert [one.id for one in near] == ["one", "one too"]


def test_what_filters_matched_takes_no_more_memory_than_agreed(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many other ones a client makes up while nobody writes; those that match nothing are remembered too."""
    monkeypatch.setattr("index.gallery.REMEMBERED_FILTERS", 10)
    monkeypatch.setattr("index.gallery.REMEMBERED_KEYS", 100)
    gallery.add([f"{row}" for row in range(30)], np.ones((30, 2)), ["cat"] * 30)
    for turn in range(20):
        (near,) = gallery.search(np.ones((1, 2)), 99, Filter.parse({"label": ["cat", f"{turn}"]}))
        assert len(near) == 30
        assert sum(len(one.keys) for one in gallery._matching.values()) < 100 + 30
    gallery.remove(["0"])
    for turn in range(20):
        assert gallery.search(np.ones((1, 2)), 99, Filter.parse({"label": f"{turn}"})) == [[]]
    assert len(gallery._matching) == 10


def test_no_filter_is_none_and_a_filter_is_read_as_it_is_written() -> None:
    assert Filter.parse(None) is Filter.parse({}) is None
    where = Filter.parse({"label": ("cat", "dog"), "n": {"gte": 1, "lt": 2.5}, "on": True, "s": ["a", 1]})
    assert where == Filter(
        (
            OneOf("label", ("cat", "dog")),
            Within("n", (("gte", 1), ("lt", 2.5))),
            OneOf("on", (True,)),
            OneOf("s", ("a", 1)),
        )
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"filter is \[\], not a JSON object: write"),
        ("label", "filter is 'label', not a JSON object"),
        (7, "filter is 7, not a JSON object"),
        ({f"f{n}": 1 for n in range(17)}, "filter has 17 conditions; the limit is 16"),
        ({"": 1}, "filter field '' must be a name of 1 to 128 printable characters without quotes"),
        ({"x" * 129: 1}, r"filter field 'xxx.*\.\.\. must be a name"),
        ({7: 1}, "filter field 7 must be a name"),
        *(({f"a{bad}": 1}, "must be a name of 1 to 128 printable") for bad in "\"'\\\n\0\x7f\u200b\ud800"),
        ({"n": []}, "filter field 'n' lists 0 values; send 1 to 1000"),
        ({"n": [1] * 1001}, "filter field 'n' lists 1001 values"),
        ({"n": None}, "filter field 'n' is None: write"),
        ({"n": [1, None]}, "filter field 'n' is None: write"),
        ({"n": [[1]]}, r"filter field 'n' is \[1\]: write"),
        ({"n": b"x"}, "filter field 'n' is b'x': write"),
        ({"n": {}}, r"filter field 'n' has the bounds \[\]; there are gt, gte, lt, lte"),
        ({"n": {"eq": 1}}, r"has the bounds \['eq'\]; there are gt, gte, lt, lte"),
        ({"n": {"gt": 1, "ne": 2}}, "there are gt, gte, lt, lte"),
        ({"n": {1: 1}}, "there are gt, gte, lt, lte"),
        ({"n": {"gt": None}}, "filter field 'n' is None: write"),
        ({"n": {"gt": [1]}}, r"filter field 'n' is \[1\]: write"),
        ({"n": {"gt": True}}, "filter field 'n' mixes types in its bounds; send numbers or strings"),
        ({"n": {"gt": 1, "lt": "a"}}, "mixes types in its bounds"),
        ({"label": 1}, "filter field 'label' is 1; labels are strings"),
        ({"label": ["a", True]}, "filter field 'label' is True; labels are strings"),
        ({"label": {"gt": 1}}, "filter field 'label' is compared with a number; labels are strings"),
        ({"s": "a\0"}, "filter field 's' holds a NUL character"),
        ({"s": ["\udce9"]}, "filter field 's' is .*, which is not valid Unicode"),
        *(({"n": bad}, "filter field 'n'.*finite") for bad in (float("nan"), float("inf"), -float("inf"))),
        *(({"n": bad}, "filter field 'n'.*fit") for bad in (2**63, -(2**63), 1e19, 10**400, -(10**5000))),
        *(({"n": {"lt": bad}}, "filter field 'n'.*fit") for bad in (float("nan"), 2**63, 10**400)),
    ],
)
def test_what_is_no_filter_is_refused_with_the_way_out(given: object, message: str) -> None:
    with pytest.raises(RowRefused, match=message) as refused:
        Filter.parse(given)
    assert refused.value.status == 400
