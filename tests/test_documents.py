"""Entries of many rows in one piece of memory come back as they went in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.documents import Documents
from index.flat import Entry

ENTRIES = [
    Entry("a", "", ""),
    Entry("ä/😀.jpg", "café", '{"by": "Zo\\u00eb"}'),
    Entry("b", "", '{"n": 1}'),
    Entry("c", "cat", ""),
    Entry("x" * 1024, "y" * 1024, '{"z": "' + "z" * 60_000 + '"}'),
]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)


def all_of(documents: Documents) -> list[Entry]:
    return documents.at(np.arange(len(documents)))


def test_entries_are_read_at_any_positions_in_the_order_asked_for() -> None:
    packed = Documents.pack(ENTRIES)
    assert len(packed) == 5
    assert all_of(packed) == ENTRIES
    assert packed.at(np.array([4, 0, 0, 2])) == [ENTRIES[4], ENTRIES[0], ENTRIES[0], ENTRIES[2]]
    assert packed.at(np.array([], np.int64)) == []


@given(st.lists(st.builds(Entry, TEXT.filter(bool), TEXT, TEXT), max_size=12), st.data())
def test_any_entries_packed_in_any_parts_and_joined_are_the_entries(
    entries: list[Entry], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=4)))
    spans = zip([0, *cuts], [*cuts, len(entries)], strict=True)
    joined = Documents.join([Documents.pack(entries[start:end]) for start, end in spans])
    whole = Documents.pack(entries)
    assert len(joined) == len(entries)
    assert all_of(joined) == all_of(whole) == entries
    assert (joined.text, joined.bounds.tolist()) == (whole.text, whole.bounds.tolist())
    assert joined.bounds.dtype == whole.bounds.dtype == np.int64


@pytest.mark.parametrize(
    "documents", [Documents.pack([]), Documents.join([]), Documents.join([Documents.pack([])] * 3)]
)
def test_no_entries_are_none(documents: Documents) -> None:
    assert (len(documents), documents.text, documents.bounds.tolist()) == (0, b"", [0])
    assert all_of(Documents.join([documents, Documents.pack(ENTRIES), documents])) == ENTRIES


def test_positions_may_be_of_any_kind_of_whole_number() -> None:
    packed = Documents.pack(ENTRIES)
    assert packed.at(np.array([1], np.int32)) == packed.at(np.array([1], np.int64)) == [ENTRIES[1]]
