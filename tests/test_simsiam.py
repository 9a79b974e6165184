"""SimSiam's loss against its algorithm, known values, and where its gradient goes."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.backbone import mlp
from training.objectives import Batch
from training.objectives.simsiam import SimSiam, SimSiamKnobs, negative_cosine


def rows(seed: int, count: int = 6, width: int = 5) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(predictions: Tensor, projections: Tensor) -> float:
    """Algorithm 1's D, one product at a time."""
    total = 0.0
    for p, z in zip(predictions.tolist(), projections.tolist(), strict=True):
        product = sum(a * b for a, b in zip(p, z, strict=True))
        total -= product / math.sqrt(sum(a * a for a in p) * sum(b * b for b in z))
    return total / len(predictions)


def test_the_loss_is_the_brute_force_loop() -> None:
    p, z = rows(0), rows(1)
    assert float(negative_cosine(p, z)) == pytest.approx(by_hand(p, z), rel=1e-12)


def test_equal_gives_minus_one_opposite_one_and_orthogonal_zero() -> None:
    z = rows(0)
    assert float(negative_cosine(3 * z, z)) == pytest.approx(-1)
    assert float(negative_cosine(-z, z)) == pytest.approx(1)
    assert float(negative_cosine(torch.eye(4), torch.eye(4).roll(1, dims=0))) == 0


def test_only_the_predictions_get_a_gradient_and_it_is_that_of_finite_differences() -> None:
    p, z = rows(0).requires_grad_(), rows(1).requires_grad_()
    negative_cosine(p, z).backward()
    assert p.grad is not None and z.grad is None
    assert torch.autograd.gradcheck(lambda p: negative_cosine(p, z.detach()), (p,))


@pytest.mark.parametrize("shape", [(3, 4)])
def test_an_all_zero_row_gives_a_finite_loss_and_gradient(shape: tuple[int, int]) -> None:
    p = torch.zeros(shape, requires_grad=True)
    loss = negative_cosine(p, torch.zeros(shape))
    loss.backward()
    assert float(loss.detach()) == 0 and p.grad is not None and bool(p.grad.isfinite().all())


@pytest.fixture
def model() -> SimSiam:
    torch.manual_seed(0)
    head = mlp((48, 16, 16, 8), norm_last=True)
    return SimSiam(nn.Sequential(nn.Flatten(), mlp((48, 48))), head, mlp((8, 4, 8)))  # type: ignore[arg-type]


def test_each_view_predicts_the_other_ones_projection(model: SimSiam) -> None:
    first, second = torch.rand(6, 3, 4, 4), torch.rand(6, 3, 4, 4)
    step = model(Batch((first, second), torch.arange(6)))
    predictions = model.predictor(step.projections)
    (z1, z2), (p1, p2) = step.projections.chunk(2), predictions.chunk(2)
    expected = by_hand(p1.detach(), z2.detach()) / 2 + by_hand(p2.detach(), z1.detach()) / 2
    assert float(step.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_head_learns_through_the_predictor_alone(model: SimSiam) -> None:
    """A predictor of zeros passes no gradient on; the projection on the other side would, were it not held still."""
    torch.nn.init.zeros_(model.predictor[-1].weight)  # type: ignore[index,union-attr]
    model(Batch((torch.rand(6, 3, 4, 4), torch.rand(6, 3, 4, 4)), torch.arange(6))).loss.backward()
    assert float(model.predictor[-1].weight.grad.norm()) > 0  # type: ignore[index,union-attr]
    assert all(not bool(p.grad.any()) for p in (*model.head.parameters(), *model.backbone.parameters()))


def test_a_bottleneck_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="bottleneck 0 is no width of a layer; give at least 1"):
        SimSiamKnobs(bottleneck=0)
