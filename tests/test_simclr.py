"""NT-Xent and DCL against brute force, known values and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.backbone import Backbone, mlp
from training.objectives import Batch
from training.objectives.simclr import SimCLR, nt_xent
from training.objectives.temperature import Temperature


def projections(rows: int, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def anchor_losses(z: Tensor, temperature: float, decoupled: bool = False) -> list[float]:
    """Each anchor's loss, one similarity at a time, as the papers' sums are written."""
    total, losses = len(z), []
    for i in range(total):
        partner = (i + total // 2) % total
        denominator = 0.0
        for k in range(total):
            if k == i or (decoupled and k == partner):
                continue
            denominator += math.exp(float(F.cosine_similarity(z[i], z[k], dim=0)) / temperature)
        positive = math.exp(float(F.cosine_similarity(z[i], z[partner], dim=0)) / temperature)
        losses.append(-math.log(positive / denominator))
    return losses


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [4, 6, 16])
def test_the_loss_is_the_brute_force_double_loop(rows: int, temperature: float, decoupled: bool) -> None:
    z = projections(rows)
    expected = sum(anchor_losses(z, temperature, decoupled)) / rows
    assert float(nt_xent(z, temperature, decoupled)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("images", [2, 8, 256])
def test_identical_embeddings_give_the_log_of_the_number_of_choices(images: int) -> None:
    z = torch.ones((2 * images, 5), dtype=torch.float64)
    assert float(nt_xent(z, 0.07)) == pytest.approx(math.log(2 * images - 1), rel=1e-10)
    assert float(nt_xent(z, 0.07, decoupled=True)) == pytest.approx(math.log(2 * images - 2), rel=1e-10)


def with_similarities_to_the_first(similarities: list[float]) -> Tensor:
    """Unit vectors: e0, then one with each given cosine to e0, leaning into a direction of its own."""
    rows = torch.eye(len(similarities) + 1, dtype=torch.float64)
    for row, cosine in enumerate(similarities, start=1):
        rows[row] *= math.sqrt(1 - cosine**2)
        rows[row, 0] = cosine
    return rows


def test_the_lectures_worked_case() -> None:
    """An anchor with 0.9 to its positive, 0.2 and -0.1 to the negatives, τ 0.1, has a loss of 0.00096."""
    other, positive, another = 0.2, 0.9, -0.1  # rows 0 and 2 are a pair
    z = with_similarities_to_the_first([other, positive, another])
    rest = anchor_losses(z, 0.1)[1:]
    assert 4 * float(nt_xent(z, 0.1)) - sum(rest) == pytest.approx(0.00096, abs=5e-6)


def test_decoupled_leaves_the_positive_out_of_the_same_sum() -> None:
    """Of one anchor: NT-Xent is -s + log(exp s + D), DCL -s + log D; so exp NT-Xent is 1 + exp DCL."""
    z = projections(8)
    for coupled, decoupled in zip(anchor_losses(z, 0.2), anchor_losses(z, 0.2, decoupled=True), strict=True):
        assert math.exp(coupled) == pytest.approx(1 + math.exp(decoupled), rel=1e-10)
    assert nt_xent(z, 0.2, decoupled=True) < nt_xent(z, 0.2)


def test_a_well_told_pair_still_pulls_when_decoupled() -> None:
    """NT-Xent's gradient fades as the pair is told apart; DCL's does not (its section 3)."""
    z = torch.cat([torch.eye(4, dtype=torch.float64)] * 2) + 0.1 * projections(8, 4)
    gradients = []
    for decoupled in (False, True):
        leaf = z.clone().requires_grad_()
        nt_xent(leaf, 0.1, decoupled).backward()
        gradients.append(float(leaf.grad.norm()))
    assert gradients[1] > 50 * gradients[0]


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_length_of_a_projection_does_not_matter(decoupled: bool) -> None:
    z = projections(10)
    lengths = torch.logspace(-3, 3, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(nt_xent(z * lengths, 0.1, decoupled), nt_xent(z, 0.1, decoupled))


def test_swapping_the_two_views_or_reordering_the_images_does_not_matter() -> None:
    z, order = projections(8), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(nt_xent(z.roll(4, dims=0), 0.1), nt_xent(z, 0.1))
    torch.testing.assert_close(nt_xent(z[torch.cat([order, order + 4])], 0.1), nt_xent(z, 0.1))


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_gradient_is_that_of_finite_differences(decoupled: bool) -> None:
    z = projections(8).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: nt_xent(p, 0.2, decoupled), (z,))


def test_low_temperatures_do_not_overflow() -> None:
    z = projections(8).float()
    assert torch.isfinite(nt_xent(z, 0.001)).item()


def test_the_temperature_may_be_a_tensor() -> None:
    z = projections(8)
    assert torch.equal(nt_xent(z, torch.tensor(0.25, dtype=torch.float64)), nt_xent(z, 0.25))


@pytest.fixture(scope="module")
def model() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Backbone(), mlp((512, 16, 8), norm_last=True), Temperature(0.2, 0.1))


def test_a_forward_pass_gives_the_loss_of_its_own_projections_in_full_precision(model: SimCLR) -> None:
    batch = Batch((torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)), torch.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.features.shape == (8, 512)
    assert step.projections.shape == (8, 8)
    assert step.loss.dtype == torch.float32
    torch.testing.assert_close(step.loss, nt_xent(step.projections.float(), 0.2))


def test_the_loss_is_that_of_the_annealed_temperature(model: SimCLR) -> None:
    model.before_step(1.0)
    step = model(Batch((torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)), torch.arange(4)))
    torch.testing.assert_close(step.loss, nt_xent(step.projections, 0.1))
