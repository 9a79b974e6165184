"""A draw is fair, repeats itself, and changes little where little changes."""

import numpy as np
import pytest

from index.draw import drawn_ids, drawn_keys

KEYS = np.arange(1, 100_001)
IDS = [f"row {key}" for key in KEYS[:20_000]]


def test_a_draw_of_keys_or_ids_is_even_over_all_of_them() -> None:
    numbers = np.array([int(id.split()[1]) for id in drawn_ids(IDS, 2000)]) * 5
    for drawn in (drawn_keys(KEYS, 2000), drawn_keys(KEYS, 2000)[:1000], numbers):
        assert len(set(drawn.tolist())) == len(drawn)
        tenths = np.bincount((drawn - 1) // 10_000, minlength=10) / len(drawn)
        np.testing.assert_allclose(tenths, 0.1, atol=0.03)  # more than three standard deviations of the smallest


def test_the_beginning_of_a_draw_is_a_smaller_draw() -> None:
    assert drawn_keys(KEYS, 100).tolist() == drawn_keys(KEYS, 2000)[:100].tolist()
    assert drawn_ids(IDS, 100) == drawn_ids(IDS, 2000)[:100]


def test_a_row_more_or_less_changes_a_draw_by_one_at_most() -> None:
    before = set(drawn_keys(KEYS, 2000).tolist())
    after = set(drawn_keys(np.setdiff1d(KEYS, [min(before)]), 2000).tolist())
    assert (len(before - after), len(after - before)) == (1, 1)
    assert len(before - set(drawn_keys(np.append(KEYS, 200_000), 2000).tolist())) <= 1
    assert len(set(drawn_ids(IDS, 2000)) - set(drawn_ids([*IDS, "one more"], 2000))) <= 1


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_of_fewer_than_were_asked_for_all_are_drawn(count: int) -> None:
    assert sorted(drawn_keys(KEYS[:count], 3).tolist()) == KEYS[:count].tolist()
    assert sorted(drawn_ids(IDS[:count], 3)) == IDS[:count]


def test_order_does_not_count() -> None:
    assert drawn_keys(KEYS[::-1], 50).tolist() == drawn_keys(KEYS, 50).tolist()
    assert drawn_ids(IDS[::-1], 50) == drawn_ids(IDS, 50)
