"""BYOL's loss against equation 2, its schedule, its target, and where its gradient goes."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.backbone import mlp
from training.objectives import Batch
from training.objectives.byol import BYOL, BYOLKnobs, distance


def rows(seed: int, count: int = 6, width: int = 5) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(predictions: Tensor, targets: Tensor) -> float:
    """Equation 2: the mean square distance of the normalised rows, one number at a time."""
    total = 0.0
    for p, z in zip(predictions.tolist(), targets.tolist(), strict=True):
        p_norm, z_norm = math.hypot(*p), math.hypot(*z)
        total += sum((a / p_norm - b / z_norm) ** 2 for a, b in zip(p, z, strict=True))
    return total / len(predictions)


def test_the_loss_is_the_brute_force_loop() -> None:
    p, z = rows(0), rows(1)
    assert float(distance(p, z)) == pytest.approx(by_hand(p, z), rel=1e-12)


def test_equal_gives_zero_opposite_four_and_orthogonal_two() -> None:
    z = rows(0)
    assert float(distance(0.1 * z, z)) == pytest.approx(0, abs=1e-12)
    assert float(distance(-z, z)) == pytest.approx(4)
    assert float(distance(torch.eye(4), torch.eye(4).roll(1, dims=0))) == pytest.approx(2)


def test_only_the_predictions_get_a_gradient_and_it_is_that_of_finite_differences() -> None:
    p, z = rows(0).requires_grad_(), rows(1).requires_grad_()
    distance(p, z).backward()
    assert p.grad is not None and z.grad is None
    assert torch.autograd.gradcheck(lambda p: distance(p, z.detach()), (p,))


@pytest.fixture
def model() -> BYOL:
    torch.manual_seed(0)
    backbone, head = nn.Sequential(nn.Flatten(), mlp((48, 48))), mlp((48, 16, 8))
    return BYOL(backbone, head, mlp((8, 16, 8)), BYOLKnobs(momentum=0.9))  # type: ignore[arg-type]


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand((2, 6, 3, 4, 4), generator=generator)
    return Batch((first, second), torch.arange(6))


def test_each_view_predicts_what_the_target_says_of_the_other(model: BYOL) -> None:
    for parameter in model.target_head.parameters():
        parameter.data += 0.3  # no longer what the online network says
    step = model(batch())
    p1, p2 = model.predictor(step.projections).detach().chunk(2)
    z1, z2 = model.target_head(model.target_backbone(torch.cat(batch().views))).chunk(2)
    expected = by_hand(p1, z2) + by_hand(p2, z1)
    assert float(step.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert abs(by_hand(p1, z1) + by_hand(p2, z2) - expected) > 1e-3


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_target_slows_down_along_a_cosine(model: BYOL, progress: float, momentum: float) -> None:
    model.before_step(progress)
    assert model.momentum == pytest.approx(momentum)


def test_the_target_follows_after_the_step_by_the_schedules_share(model: BYOL) -> None:
    pairs = [(model.target_backbone, model.backbone), (model.target_head, model.head)]
    parameters = [p for target, online in pairs for p in zip(target.parameters(), online.parameters(), strict=True)]
    before = [target.clone() for target, _ in parameters]
    for _, online in parameters:
        online.data += 1
    model.before_step(0.5)
    model(batch())
    assert all(torch.equal(target, old) for (target, _), old in zip(parameters, before, strict=True))
    model.after_step()
    for (target, _), old in zip(parameters, before, strict=True):
        torch.testing.assert_close(target.data, old + 0.05)


def test_no_gradient_reaches_the_target(model: BYOL) -> None:
    model(batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_that_is_no_share_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=f"momentum {momentum} is no share of the target; give 0 to 1"):
        BYOLKnobs(momentum=momentum)
