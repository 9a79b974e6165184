"""The recall that is told is the share of true neighbours found, against every row of the truth."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from index.builder import build
from index.face import Neighbor
from index.overlay import Overlay, View
from index.recall import measured
from tests.acceleration import DIMENSION, Truth, random_rows


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    made = Truth(tmp_path, rows=600)
    yield made
    made.store.close()


class Worse(View):
    """Finds only the rows that are named so."""

    def search(self, queries: np.ndarray, k: int, *given: object) -> list[list[Neighbor]]:
        found = View.search(self, queries, 10**6, *given)
        return [[one for one in near if self.finds(one.id)][:k] for near in found]

    def finds(self, name: str) -> bool:
        return int(name) % 2 == 0


def worse_than(view: View) -> Worse:
    return Worse(view.base, view.admitted, view.masked, view.delta, view.last_seq)


def flat(truth: Truth) -> View:
    return truth.follow(Overlay(DIMENSION))


def test_exact_search_finds_all_of_them(truth: Truth) -> None:
    recall = measured(truth.store, flat(truth))
    assert recall is not None
    assert (recall["at"], recall["value"], recall["queries"]) == (10, 1.0, 64)
    assert 0 <= recall["seconds"] < 30


def test_a_search_that_finds_every_second_row_has_half_the_recall(truth: Truth) -> None:
    recall = measured(truth.store, worse_than(flat(truth)), queries=600)
    assert recall is not None and recall["queries"] == 600
    # What the 10 nearest of a row hold of the even ones; counted apart.
    vectors = np.array([row.vector for row in truth.rows().values()])
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    nearest = np.argsort(-scores, axis=1)[:, :10]
    assert recall["value"] == pytest.approx(np.mean(nearest % 2 == 0), abs=1e-4)


def test_of_an_accelerated_gallery_rows_of_the_base_and_beside_are_asked(truth: Truth) -> None:
    overlay = Overlay(DIMENSION, build(truth.store, "IVF64,Flat", 1))  # visits 8 of 64 cells
    truth.change(replaced=200, removed=100, added=100)
    view = truth.follow(overlay)
    assert view.base is not None
    recall = measured(truth.store, view, queries=10**6)
    assert recall is not None and recall["queries"] == view.count
    assert 0.3 < recall["value"] < 0.99
    all_of_it = truth.follow(Overlay(DIMENSION, build(truth.store, "HNSW16,Flat", 1)))
    better = measured(truth.store, all_of_it, queries=10**6)
    assert better is not None and better["value"] > 0.98


def test_among_equals_any_will_do(truth: Truth) -> None:
    truth.add(truth.names, np.repeat(random_rows(1, 5), 600, axis=0))
    for view in flat(truth), truth.follow(Overlay(DIMENSION, build(truth.store, "HNSW16,Flat", 1))):
        recall = measured(truth.store, view)
        assert recall is not None and recall["value"] == 1.0


@pytest.mark.parametrize(("left", "at"), [(11, 10), (10, 9), (2, 1)])
def test_of_few_rows_as_many_neighbours_are_asked_for_as_there_are(truth: Truth, left: int, at: int) -> None:
    truth.store.remove(truth.names[left:])
    recall = measured(truth.store, flat(truth))
    assert recall is not None and (recall["at"], recall["value"], recall["queries"]) == (at, 1.0, left)


@pytest.mark.parametrize("left", [0, 1])
def test_without_two_rows_there_is_none(truth: Truth, left: int) -> None:
    truth.store.remove(truth.names[left:])
    assert measured(truth.store, flat(truth)) is None


def test_rows_that_go_while_it_is_measured_count_against_it_at_most(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, scan = flat(truth), truth.store.scan

    def gone(names: Sequence[str]) -> None:
        monkeypatch.setattr(truth.store, "scan", lambda **given: [truth.store.remove(names), scan(**given)][1])

    gone(truth.names[:300])
    some = measured(truth.store, view)
    assert some is not None and 0 <= some["value"] <= 1
    gone(truth.names)
    all_gone = measured(truth.store, view)
    assert all_gone is None or all_gone["value"] == 0
    assert measured(truth.store, view) is None  # and those that were asked are gone as well
