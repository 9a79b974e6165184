"""Rows are stored as they were sent, or refused, all of them, with the name of the bad one and the way out."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import RowRefused
from index.incoming import MAX_DIGEST_BYTES, MAX_ID_BYTES, MAX_LABEL_BYTES, MAX_METADATA_BYTES, Incoming, checked
from index.vectors import unit_rows

DIMENSION = 4


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, DIMENSION)) * 7


def rows(**changed: Any) -> Incoming:
    """Two rows, changed as told."""
    given: dict[str, Any] = {"ids": ["a", "b"], "vectors": vectors(2), "labels": ["cat", None], "metadata": None}
    return checked(**(given | {"contents": None, "dimension": DIMENSION} | changed))


def nested(levels: int) -> Any:
    """An object in an object, so many levels deep."""
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"in": inner}
    return inner


def test_rows_are_in_stored_form() -> None:
    found = rows(metadata=[{"n": 1, "tags": ("x", None)}, {}], contents=[b"0123456789abcdef", None])
    assert (found.ids, found.labels, found.contents) == (["a", "b"], ["cat", None], [b"0123456789abcdef", None])
    assert found.documents == ['{"n": 1, "tags": ["x", null]}', None]
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, unit_rows(vectors(2), DIMENSION))


def test_metadata_and_contents_may_be_left_out() -> None:
    found = rows()
    assert (found.documents, found.contents) == ([None, None], [None, None])
    assert checked([], np.empty((0, DIMENSION)), [], None, None, DIMENSION).ids == []


def test_of_an_id_that_comes_again_the_last_row_stays_whole() -> None:
    found = checked(
        list("abcab"),
        vectors(5),
        list("ABCDE"),
        [{"n": n} for n in range(5)],
        [b"%d" % n for n in range(5)],
        DIMENSION,
    )
    assert (found.ids, found.labels) == (["c", "a", "b"], ["C", "D", "E"])
    assert found.documents == ['{"n": 2}', '{"n": 3}', '{"n": 4}']
    assert found.contents == [b"2", b"3", b"4"]
    np.testing.assert_array_equal(found.vectors, unit_rows(vectors(5)[2:], DIMENSION))


def test_what_was_sent_is_not_changed_and_not_kept() -> None:
    ids, labels, sent = ["a"], ["cat"], vectors(1)
    before = sent.copy()
    found = checked(ids, sent, labels, None, None, DIMENSION)
    np.testing.assert_array_equal(sent, before)
    ids.append("b")
    sent[:] = 0
    assert found.ids == ["a"] and np.linalg.norm(found.vectors[0]) == pytest.approx(1)


LIMITS = {
    "id": {"ids": ["a", "é" * (MAX_ID_BYTES // 2)]},
    "label": {"labels": ["x" * MAX_LABEL_BYTES, None]},
    "metadata": {"metadata": [{"x": "y" * (MAX_METADATA_BYTES - 9)}, {}]},
    "depth of metadata": {"metadata": [{}, nested(250)]},
    "content": {"contents": [b"x" * MAX_DIGEST_BYTES, b"x"]},
    "numbers": {"metadata": [{"n": 2**64 - 1, "m": -(2**63)}, {"x": 1.7e308, "y": 5e-324}]},
}


@pytest.mark.parametrize("changed", LIMITS.values(), ids=LIMITS)
def test_what_is_as_large_as_may_be_is_taken(changed: dict[str, Any]) -> None:
    found = rows(**changed)
    for name, given_values in changed.items():
        stored = found.documents if name == "metadata" else getattr(found, name)
        if name == "metadata":
            stored = [json.loads(document) if document else {} for document in stored]
        assert stored == given_values


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": ["a"]}, "1 ids, 2 vectors, 2 labels and no metadata: send one of each per row"),
        ({"vectors": vectors(3)}, "2 ids, 3 vectors, 2 labels and no metadata"),
        ({"labels": []}, "2 ids, 2 vectors, 0 labels and no metadata"),
        ({"metadata": [{}] * 3}, "2 ids, 2 vectors, 2 labels and 3 metadata"),
        ({"contents": [b"x"]}, "send one of each per row"),
        ({"ids": ["a", ""]}, "id '' of row 1 must be a non-empty string; nothing was changed"),
        ({"ids": ["a", None]}, "id None of row 1 must be a non-empty string"),
        ({"ids": [b"a", "b"]}, "id b'a' of row 0 must be a non-empty string"),
        ({"ids": ["a", "b\0"]}, r"id 'b\\x00' of row 1 holds a NUL character; rename it"),
        ({"ids": ["a", "\ud800"]}, r"id '\\ud800' of row 1 is not valid Unicode; rename it"),
        ({"ids": ["é" * 513, "b"]}, "of row 0 has 1026 bytes; the limit is 1024: shorten it"),
        ({"labels": ["", None]}, "label '' of row 0 must be a non-empty string"),
        ({"labels": [None, 7]}, "label 7 of row 1 must be a non-empty string"),
        ({"labels": [None, "x" * 1025]}, "label 'x+'... of row 1 has 1025 bytes; the limit is 1024"),
        ({"labels": ["x\0", None]}, "label .* of row 0 holds a NUL character"),
        ({"vectors": vectors(2)[:, :3]}, r"vectors of shape \(2, 3\) do not fit: send \(N, 4\)"),
        ({"vectors": np.stack([vectors(1)[0], np.zeros(4)])}, r"vector 1 \(id 'b'\) is zero"),
        ({"vectors": np.full((2, 4), np.nan)}, r"vector 0 \(id 'a'\) has NaN at position 0"),
        ({"vectors": np.ones((2, 4), complex)}, "are not real numbers"),
        ({"metadata": [{}, {"x": float("nan")}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{"x": [float("-inf")]}, {}]}, "metadata of row 0 is no JSON object"),
        ({"metadata": [{}, {"x": {1, 2}}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": b"raw"}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": np.float32(1)}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {1: "x"}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": "\ud800"}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": 2**64}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": -(2**63) - 1}]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, nested(251)]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, nested(300)]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, nested(100_000)]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, None]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, "text"]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, 7]}, "metadata of row 1 is no JSON object"),
        ({"metadata": [{}, {"x": "a\0b"}]}, "metadata of row 1 .*NUL"),
        ({"metadata": [{"x": "y" * 65_530}, {}]}, "metadata of row 0 has 65539 bytes as JSON; the limit is 65535"),
        ({"contents": [b"", None]}, "content of row 0 must be a digest of 1 to 32 bytes; leave it out"),
        ({"contents": [None, "0123456789abcdef"]}, "content of row 1 must be a digest of 1 to 32 bytes"),
        ({"contents": [None, b"x" * 33]}, "content of row 1 must be a digest of 1 to 32 bytes"),
    ],
)
def test_one_bad_row_has_all_of_them_refused_by_its_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RowRefused, match=message) as refused:
        rows(**changed)
    assert refused.value.status == 400


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_characters="\0"), max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_characters="\0"), max_size=5), JSON, max_size=4))
def test_any_json_object_is_stored_as_itself(metadata: dict[str, Any]) -> None:
    try:
        found = rows(metadata=[{}, metadata])
    except RowRefused as error:
        text = json.dumps(metadata)
        assert "\\ud" in text or "\\u0000" in text, error  # halves of a character, NUL deep inside
        return
    document = found.documents[1]
    assert (json.loads(document) if document else {}) == metadata
    assert document is None or document.isascii()
