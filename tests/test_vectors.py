"""One rule for vectors: finite, of the right size, not zero, then of unit length."""

import numpy as np
import pytest

from index.errors import RowRefused
from index.vectors import unit_rows


def test_length_is_removed_and_direction_kept() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, -1e-30], [3e38, 4e37]], np.float32), 2)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:2], [[0.6, 0.8], [0.0, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)


def test_float16_rows_become_unit_float32_again() -> None:
    exact = unit_rows(np.random.default_rng(0).standard_normal((50, 512)), 512)
    repaired = unit_rows(exact.astype(np.float16), 512)
    np.testing.assert_allclose(np.linalg.norm(repaired, axis=1), 1.0, atol=1e-6)
    assert np.einsum("nd,nd->n", exact, repaired).min() > 0.9999


@pytest.mark.parametrize(
    ("bad", "fault"),
    [(np.nan, "has NaN at position 2"), (-np.inf, "has Inf at position 2"), (0.0, "is zero")],
)
def test_a_row_without_direction_is_refused_by_number_and_id(bad: float, fault: str) -> None:
    vectors = np.ones((3, 4), np.float32)
    vectors[1] = [0, 0, bad, 0]
    with pytest.raises(RowRefused, match=rf"vector 1 \(id 'second'\) {fault}"):
        unit_rows(vectors, 4, names=["first", "second", "third"])


@pytest.mark.parametrize(
    "vectors",
    [np.ones((2, 3), np.float32), np.ones(4, np.float32), np.ones((2, 2, 4)), np.ones((1, 4), complex)],
)
def test_another_shape_or_kind_of_number_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(RowRefused, match="send"):
        unit_rows(vectors, 4)
