"""Neighbours vote by their similarity: known weights, ties, and those that abstain."""

from math import exp

import pytest

from index.face import Neighbor
from index.votes import Vote, vote


def neighbor(score: float, label: str | None) -> Neighbor:
    return Neighbor(f"{label}-{score}", score, label, {})


def test_a_vote_weighs_exp_of_the_score_over_the_temperature() -> None:
    found = vote([neighbor(0.9, "dog"), neighbor(0.83, "cat"), neighbor(0.83, "cat")])
    # One temperature below counts 1/e: two such cats have 2/e against the dog's 1.
    assert [one.label for one in found] == ["dog", "cat"]
    assert found[0].share == pytest.approx(1 / (1 + 2 / exp(1)), abs=1e-9)
    assert found[1].share == pytest.approx(1 - found[0].share, abs=1e-9)


def test_three_equal_neighbours_outvote_one_that_is_half_a_temperature_nearer() -> None:
    found = vote([neighbor(0.835, "dog"), *[neighbor(0.8, "cat")] * 3])
    assert found[0].label == "cat"
    assert found[0].share == pytest.approx(3 / (3 + exp(0.5)), abs=1e-9)


def test_neighbours_without_a_label_do_not_vote() -> None:
    assert vote([neighbor(1.0, None), neighbor(-0.2, "cat")]) == [Vote("cat", 1.0)]
    assert vote([neighbor(1.0, None)]) == []
    assert vote([]) == []


def test_equal_shares_are_ordered_by_label() -> None:
    found = vote([neighbor(0.5, "dog"), neighbor(0.5, "cat"), neighbor(0.5, "ape")])
    assert found == [Vote("ape", 1 / 3), Vote("cat", 1 / 3), Vote("dog", 1 / 3)]


def test_no_score_overflows() -> None:
    assert vote([neighbor(1e6, "dog"), neighbor(-1e6, "cat")]) == [Vote("dog", 1.0), Vote("cat", 0.0)]
