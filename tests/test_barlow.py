"""Barlow Twins' loss against algorithm 1 in plain loops, and its known values."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.objectives import Batch
from training.objectives.barlow import BarlowKnobs, BarlowTwins, barlow_loss


def rows(seed: int, count: int = 9, width: int = 4) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uncorrelated(count: int = 16, width: int = 5) -> Tensor:
    """Columns of mean 0 and variance 1 that are orthogonal: a discrete cosine transform's, without the constant."""
    n, k = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(1, width + 1, dtype=torch.float64)
    return math.sqrt(2) * torch.cos(math.pi / count * (n + 0.5) * k)


def by_hand(first: np.ndarray, second: np.ndarray, redundancy: float) -> float:
    width, loss = first.shape[1], 0.0
    a = (first - first.mean(axis=0)) / first.std(axis=0)
    b = (second - second.mean(axis=0)) / second.std(axis=0)
    for i in range(width):
        for j in range(width):
            correlation = sum(float(x) * float(y) for x, y in zip(a[:, i], b[:, j], strict=True)) / len(a)
            loss += (1 - correlation) ** 2 if i == j else redundancy * correlation**2
    return loss


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 1.0])
def test_the_loss_is_the_brute_force_double_loop(redundancy: float) -> None:
    first, second = 100 * rows(0) + 7, 100 * rows(1)  # so wide that what is added to the variance is nothing
    expected = by_hand(first.numpy(), second.numpy(), redundancy)
    assert float(barlow_loss(first, second, redundancy)) == pytest.approx(expected, rel=1e-6)


def test_equal_views_without_correlation_between_dimensions_give_zero() -> None:
    z = uncorrelated()
    assert float(barlow_loss(z, z, 1.0)) == pytest.approx(0, abs=1e-8)


def test_opposite_views_give_four_for_each_dimension() -> None:
    z = uncorrelated(width=5)
    assert float(barlow_loss(z, -z, 0.0)) == pytest.approx(4 * 5, rel=1e-4)


def test_dimensions_that_all_say_the_same_pay_for_each_pair() -> None:
    z = uncorrelated(width=1).expand(-1, 6)
    assert float(barlow_loss(z, z, 0.01)) == pytest.approx(0.01 * 6 * 5, rel=1e-4)


def test_constant_projections_give_one_for_each_dimension_and_a_finite_gradient() -> None:
    z = torch.full((8, 5), 3.0, requires_grad=True)
    loss = barlow_loss(z, z, 0.0051)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(5)
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_neither_mean_nor_scale_of_a_dimension_matters() -> None:
    first, second = 10 * rows(0), 10 * rows(1)
    scale, shift = torch.tensor([1.0, 5.0, 20.0, 3.0]), torch.tensor([-3.0, 0.0, 50.0, 1.0])
    moved = barlow_loss(first * scale + shift, second * scale.flip(0) - shift, 0.1)
    torch.testing.assert_close(moved, barlow_loss(first, second, 0.1), rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    first, second = rows(0).requires_grad_(), rows(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: barlow_loss(a, b, 0.1), (first, second))


def test_a_forward_pass_correlates_the_two_views_of_its_images() -> None:
    model = BarlowTwins(nn.Flatten(), nn.Identity(), BarlowKnobs(redundancy=0.5, scale=0.1))  # type: ignore[arg-type]
    first, second = rows(0).float(), rows(1).float()
    step = model(Batch((first, second), torch.arange(9)))
    torch.testing.assert_close(step.loss, 0.1 * barlow_loss(first, second, 0.5))


@pytest.mark.parametrize("knobs", [{"redundancy": -0.1}, {"scale": 0.0}])
def test_weights_that_reward_the_wrong_thing_are_refused(knobs: dict[str, float]) -> None:
    ((name, value),) = knobs.items()
    with pytest.raises(ValueError, match=f"{name} {value} .*; give"):
        BarlowKnobs(**knobs)
