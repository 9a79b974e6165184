"""A base holds what the truth held, is built beside writers, and grows without a build from the start."""

import threading
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from index.base import Base
from index.builder import BADLY_CODED_MOST, Stopped, build, extend, fits
from index.flat import Entry
from index.overlay import Overlay, View
from tests.acceleration import DIMENSION, FACTORIES, Truth, random_rows


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    made = Truth(tmp_path, rows=1500)
    yield made
    made.store.close()


def held(base: Base) -> dict[int, tuple[int, Entry]]:
    """Key to seq and entry of every row but those replaced before the last extension."""
    entries = base.documents.at(np.arange(len(base)))
    rows = zip(base.keys.tolist(), base.seqs.tolist(), entries, strict=True)
    return {key: (seq, entry) for key, seq, entry in rows if seq}


def there(truth: Truth) -> dict[int, tuple[int, Entry]]:
    return {
        row.key: (row.seq, Entry.of(row)) for rows in truth.store.scan() for row in rows if row.vector is not None
    }


def view_of(truth: Truth, base: Base) -> View:
    return truth.follow(Overlay(DIMENSION, base))


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_live_row_is_in_it_once_with_its_own_seq_and_vector(truth: Truth, factory: str) -> None:
    truth.change(replaced=100, removed=100, added=50)
    told: list[int] = []
    base = build(truth.store, factory, 1, on_rows=told.append)
    assert (base.factory, base.last_seq, len(base)) == (factory, truth.store.last_seq(), truth.store.count())
    assert held(base) == there(truth)
    assert sum(told) == len(base) == base.index.ntotal
    if factory.endswith("Flat"):
        if factory.startswith("IVF"):
            base.index.make_direct_map()
        vectors = base.index.reconstruct_n(0, len(base))
        rows = truth.store.by_key(base.keys.tolist())
        assert [vector.tobytes() for vector in vectors] == [rows[key].vector.tobytes() for key in base.keys.tolist()]


def test_a_build_by_parts_of_any_size_gives_the_same_base(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    truth.change(replaced=100, removed=700, added=50)  # tombstones make some batches of the scan small
    whole = build(truth.store, "SQ8", 1)
    for rows in (1, 333, 1024, 10**6):
        monkeypatch.setattr("index.builder.ADD_ROWS", rows)
        told: list[int] = []
        base = build(truth.store, "SQ8", 1, on_rows=told.append)
        assert all(count == rows for count in told[:-1]) and 0 < told[-1] <= rows
        assert (base.keys.tolist(), base.documents.text) == (whole.keys.tolist(), whole.documents.text)
        assert faiss.serialize_index(base.index).tobytes() == faiss.serialize_index(whole.index).tobytes()


def test_a_row_that_changes_during_a_build_brings_its_own_seq_along(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.builder.ADD_ROWS", 100)
    before = truth.store.last_seq()
    first, last = truth.names[0], truth.names[-1]

    def write(_: int) -> None:
        if truth.store.last_seq() == before:
            truth.add([first, last])

    base = build(truth.store, "SQ8", 1, on_rows=write)
    assert base.last_seq == before
    rows = held(base)
    assert rows[1] != there(truth)[1]  # it was read before
    assert rows[len(truth.names)] == there(truth)[len(truth.names)]
    assert rows[len(truth.names)][0] > base.last_seq


def test_it_is_trained_on_rows_from_all_over_the_gallery(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours in it come from one album: here the later half points the other way."""
    one_way = random_rows(1500, 1)
    one_way[:, 0] = np.where(np.arange(1500) < 750, 1.0, -1.0)
    truth.add(truth.names, one_way)
    monkeypatch.setattr("index.builder.TRAINING_ROWS", 100)
    base = build(truth.store, "SQ8", 1)
    codes = base.index.sa_decode(base.index.sa_encode(one_way / np.linalg.norm(one_way, axis=1, keepdims=True)))
    assert set(np.sign(codes[:, 0]).tolist()) == {1.0, -1.0}


def test_cells_beyond_the_usual_sample_are_learned_from_as_many_rows_as_they_need(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.builder.TRAINING_ROWS", 20)
    assert build(truth.store, "IVF32,Flat", 1).index.nlist == 32


def test_a_build_that_is_stopped_stops(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.builder.ADD_ROWS", 100)
    stop, told = threading.Event(), []

    def stop_soon(rows: int) -> None:
        told.append(rows)
        if len(told) == 3:
            stop.set()

    with pytest.raises(Stopped):
        build(truth.store, "SQ8", 1, stop, stop_soon)
    assert told == [100] * 3
    view = view_of(truth, build(truth.store, "SQ8", 1))
    truth.change(0, 0, 10)
    with pytest.raises(Stopped):
        extend(view_of(truth, view.base), 1, stop)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_gallery_without_rows_has_nothing_to_learn_from(truth: Truth, factory: str) -> None:
    truth.store.remove(truth.names)
    if factory == "HNSW16,Flat":  # learns nothing
        assert len(build(truth.store, factory, 1)) == 0
        return
    with pytest.raises(Stopped):
        build(truth.store, factory, 1)


def test_rows_that_all_go_after_the_training_leave_an_empty_base(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = truth.store.scan
    monkeypatch.setattr(truth.store, "scan", lambda: truth.store.remove(truth.names) and scan())
    base = build(truth.store, "HNSW16,SQ8", 1)
    assert (len(base), base.index.ntotal, len(base.documents)) == (0, 0, 0)
    monkeypatch.undo()
    view = view_of(truth, base)
    assert view.search(random_rows(2, 1), 5, truth.store.by_key) == [[], []]
    truth.add(["back"])
    (near,) = view_of(truth, base).search(random_rows(1, 1), 5, truth.store.by_key)
    assert [one.id for one in near] == ["back"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_extension_puts_the_delta_behind_the_base_and_marks_what_was_masked(truth: Truth, factory: str) -> None:
    base = build(truth.store, factory, 1)
    written = faiss.serialize_index(base.index).tobytes(), base.seqs.copy(), base.keys.copy()
    truth.change(replaced=100, removed=100, added=50)
    view = view_of(truth, base)
    extended = extend(view, 1)
    assert len(extended) == len(base) + view.delta.count == extended.index.ntotal
    assert (extended.seqs == 0).sum() == view.masked > 100
    assert (extended.factory, extended.last_seq) == (factory, truth.store.last_seq())
    assert held(extended) == there(truth)
    assert extended.keys[: len(base)].tolist() == base.keys.tolist()
    # The former base goes on being searched.
    assert faiss.serialize_index(base.index).tobytes() == written[0]
    assert (base.seqs.tolist(), base.keys.tolist()) == (written[1].tolist(), written[2].tolist())
    twice = extend(view_of(truth, extended), 1)  # nothing to add
    assert held(twice) == there(truth) and len(twice) == len(extended)


def vectors_of(truth: Truth) -> np.ndarray:
    """Those of the rows that were there first: what was learned from them suits them."""
    rows = truth.store.by_id(truth.names)
    return np.stack([rows[name].vector for name in truth.names])


def outliers(count: int) -> np.ndarray:
    """Rows along one axis each: far beyond the components of others."""
    rows = random_rows(count, 9) * 0.1
    rows[np.arange(count), np.arange(count) % DIMENSION] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("factory", FACTORIES)
def test_rows_beyond_what_the_codes_can_tell_do_not_fit(truth: Truth, factory: str) -> None:
    base = build(truth.store, factory, 1)
    truth.add([f"copy {name}" for name in truth.names], vectors_of(truth))
    assert fits(view_of(truth, base))
    truth.add([f"out {row}" for row in range(20)], outliers(20))
    exact = factory.endswith("Flat") or "RaBitQ" in factory
    assert fits(view_of(truth, base)) is exact
    # Where they fit, their scores are right once they are in the base.
    view = view_of(truth, extend(view_of(truth, base), 1))
    near = [found[0] for found in view.search(outliers(20), 1, truth.store.by_key)]
    worst = max(abs(one.score - 1) for one in near)
    assert worst < 1e-5 if exact else worst > 0.05


def test_no_new_rows_fit(truth: Truth) -> None:
    view = view_of(truth, build(truth.store, "SQ8", 1))
    assert view.delta.count == 0 and fits(view)


def test_a_few_rows_may_be_badly_coded(truth: Truth) -> None:
    base = build(truth.store, "SQ8", 1)
    for turn in "first", "second":  # 3,000 rows
        truth.add([f"{turn} {name}" for name in truth.names], vectors_of(truth))
    assert BADLY_CODED_MOST == 1 / 1000
    for count, fit in ((1, True), (3, True), (4, False)):
        truth.add([f"out {row}" for row in range(count)], outliers(count))
        assert fits(view_of(truth, base)) is fit
