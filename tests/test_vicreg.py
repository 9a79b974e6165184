"""VICReg's three terms against section 4 in plain loops, and their known values."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.objectives import Batch
from training.objectives.vicreg import VICReg, VICRegKnobs, missing_spread, shared, vicreg_loss


def rows(seed: int, count: int = 9, width: int = 4) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(first: np.ndarray, second: np.ndarray, knobs: VICRegKnobs) -> float:
    count, width = first.shape
    invariance = sum((float(first[n, j]) - float(second[n, j])) ** 2 for n in range(count) for j in range(width))
    variance = covariance = 0.0
    for z in (first, second):
        mean = z.mean(axis=0)
        for i in range(width):
            for j in range(width):
                c = sum(float((z[n, i] - mean[i]) * (z[n, j] - mean[j])) for n in range(count)) / (count - 1)
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(c + 1e-4)) / width
                else:
                    covariance += c**2 / width
    return knobs.invariance * invariance / count / width + knobs.variance * variance + knobs.covariance * covariance


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_is_the_brute_force_double_loop(weights: tuple[float, float, float]) -> None:
    first, second, knobs = 0.8 * rows(0) + 7, 1.1 * rows(1), VICRegKnobs(*weights)
    expected = by_hand(first.numpy(), second.numpy(), knobs)
    assert expected > 0.01
    assert float(vicreg_loss(first, second, knobs)) == pytest.approx(expected, rel=1e-10)


def test_constant_projections_miss_all_spread_but_the_root_of_epsilon() -> None:
    z = torch.full((8, 5), 3.0, requires_grad=True)
    assert float(missing_spread(z).detach()) == pytest.approx(1 - math.sqrt(1e-4))
    loss = vicreg_loss(z, z, VICRegKnobs())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(25 * 2 * 0.99)
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_equal_views_that_spread_without_covariance_give_zero() -> None:
    """Hadamard's columns: 1 and -1 in equal number, each pair orthogonal."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    z = torch.kron(two, torch.kron(two, two))[:, 1:]
    assert float(vicreg_loss(z, z, VICRegKnobs())) == pytest.approx(0, abs=1e-6)


def test_spread_beyond_the_margin_is_not_rewarded() -> None:
    z = rows(0)
    assert float(missing_spread(100 * z)) == 0
    assert float(missing_spread(z - 5)) == pytest.approx(float(missing_spread(z)), rel=1e-10)


def test_two_equal_dimensions_share_their_squared_variance() -> None:
    z = torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]).expand(-1, 2)  # variance 20 / 3
    assert float(shared(z)) == pytest.approx(2 * (20 / 3) ** 2 / 2)


def test_the_distance_of_the_views_is_a_mean_over_rows_and_dimensions() -> None:
    first = rows(0)
    assert float(vicreg_loss(first, first + 2, VICRegKnobs(1.0, 0.0, 0.0))) == pytest.approx(4)


def test_the_gradient_is_that_of_finite_differences() -> None:
    first, second = 0.5 * rows(0), 0.5 * rows(1)
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: vicreg_loss(a, b, VICRegKnobs()), inputs)


def test_a_forward_pass_compares_the_two_views_of_its_images() -> None:
    model = VICReg(nn.Flatten(), nn.Identity(), VICRegKnobs())  # type: ignore[arg-type]
    first, second = rows(0).float(), rows(1).float()
    step = model(Batch((first, second), torch.arange(9)))
    torch.testing.assert_close(step.loss, vicreg_loss(first, second, VICRegKnobs()))


@pytest.mark.parametrize("name", ["invariance", "variance", "covariance"])
def test_negative_weights_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} -1.0 would reward what it is to prevent; give 0 or more"):
        VICRegKnobs(**{name: -1.0})
