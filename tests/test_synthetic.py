"""Vectors made to match: the statistics are right, and what is made has them."""

import numpy as np
import pytest

from load_tests.synthetic import NAMES, Statistics, comparison, fit, statistics


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def gaussian(rows: int, dimension: int, within: int, seed: int = 0) -> np.ndarray:
    """On a flat patch of `dimension` dimensions far from the origin, so that scaling hardly bends it."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal((within, dimension + 1)))[0].T.astype(np.float32)
    return unit(random.standard_normal((rows, dimension)).astype(np.float32) @ basis[1:] + 20 * basis[0])


@pytest.mark.parametrize("dimension", [4, 7, 10])
def test_the_dimension_of_a_patch_is_found(dimension: int) -> None:
    found = statistics(gaussian(20_000, dimension, 64), sample=1000).dimension
    assert found == pytest.approx(dimension, rel=0.12)


def test_distances_are_those_of_known_neighbours() -> None:
    angles = np.arange(3000) * 2 * np.pi / 3000  # points on a circle, evenly spaced
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = statistics(np.pad(circle, ((0, 0), (0, 6))), sample=500)
    step = 2 * np.sin(np.pi / 3000)
    assert found.first == pytest.approx((step,) * 3, rel=0.05)
    assert found.tenth == pytest.approx((5 * step,) * 3, rel=0.05)  # five on either side


def test_copies_are_no_neighbours() -> None:
    rows = gaussian(2000, 5, 32)
    assert statistics(np.concatenate([rows, rows[:100]]), sample=2100).first[0] > 1e-3


def test_what_is_made_matches_and_is_not_what_was_given() -> None:
    clusters = np.random.default_rng(1).standard_normal((40, 64))
    random = np.random.default_rng(2)
    spread = random.standard_normal((6000, 8)) @ random.standard_normal((8, 64)) * 0.25
    real = unit(np.abs(clusters[random.integers(40, size=6000)] + spread))
    fitted = fit(real, sample=1500)
    made = fitted.vectors(len(real), seed=3)
    table, worst = comparison(real, made, sample=1500)
    assert worst < 0.1, table
    assert made.dtype == np.float32 and (made >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert (made @ real.T).max() < 0.99999
    np.testing.assert_array_equal(made, fitted.vectors(len(real), seed=3))
    assert not np.array_equal(made, fitted.vectors(len(real), seed=4))


def test_the_worst_difference_is_found_in_either_direction() -> None:
    one = Statistics((1, 2, 3), (4, 5, 6), 10)
    assert one.worst(Statistics((1, 2, 3), (4, 5, 6), 8)) == pytest.approx(0.2)
    assert one.worst(Statistics((1, 2, 3.3), (4, 5, 6), 10)) == pytest.approx(0.1)
    assert len(NAMES) == len(one.numbers())
