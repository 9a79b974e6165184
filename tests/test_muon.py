"""Muon against the singular value decomposition and against torch's own."""

import pytest
import torch
from torch import Tensor, nn

from training.muon import Muon, orthogonalized

BAND = (0.6, 1.25)  # where five rounds of the quintic take singular values that are not tiny


def with_singular_values(rows: int, columns: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A float32 matrix of the given singular values, and its U·Vᵀ."""
    random = torch.Generator().manual_seed(seed)
    small = min(rows, columns)
    u = torch.linalg.qr(torch.randn((rows, small), generator=random, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn((columns, small), generator=random, dtype=torch.float64)).Q
    return (u * values @ v.T).float(), (u @ v.T).float()


@pytest.mark.parametrize("rows, columns", [(16, 16), (8, 50), (50, 8), (64, 147), (1, 9), (9, 1)])
def test_singular_values_end_near_one_and_directions_stay(rows: int, columns: int) -> None:
    small = min(rows, columns)
    matrix, direction = with_singular_values(rows, columns, torch.linspace(0.5, 2, small, dtype=torch.float64))
    (found,) = orthogonalized([matrix])
    values = torch.linalg.svdvals(found)
    assert values.min() > BAND[0]
    assert values.max() < BAND[1]
    inner = torch.linalg.svdvals(direction.T @ found)[:small]  # U and V shared: the same values once more
    torch.testing.assert_close(inner, values, atol=1e-3, rtol=0)
    assert float((found * direction).sum()) == pytest.approx(float(values.sum()), rel=1e-3)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_size_of_a_gradient_does_not_matter(size: float) -> None:
    matrix, _ = with_singular_values(12, 30, torch.linspace(0.5, 2, 12, dtype=torch.float64))
    torch.testing.assert_close(orthogonalized([matrix * size])[0], orthogonalized([matrix])[0], atol=1e-3, rtol=0)


def test_matrices_of_one_batch_do_not_touch_each_other() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(16, 30), (30, 16), (16, 16), (7, 9), (16, 99)]
    matrices = [torch.randn(shape, generator=random) for shape in shapes]
    for together, matrix in zip(orthogonalized(matrices), matrices, strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(together, orthogonalized([matrix])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_low_rank_and_zero_gradients_give_finite_steps_of_that_rank(rank: int) -> None:
    values = torch.tensor([1.0] * rank + [0.0] * (16 - rank), dtype=torch.float64)
    matrix, _ = with_singular_values(16, 40, values)
    found = torch.linalg.svdvals(orthogonalized([matrix])[0])
    assert torch.isfinite(found).all()
    assert (found[:rank] > BAND[0]).all()
    assert (found[rank:] < 0.02).all()


def trained(optimizer: type, start: Tensor, gradients: list[Tensor], **options: object) -> Tensor:
    weight = nn.Parameter(start.clone())
    stepper = optimizer([weight], **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        stepper.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16)])
def test_the_updates_are_torch_optim_muons(shape: tuple[int, int]) -> None:
    """torch iterates in bfloat16, hence the tolerance: a hundredth of how far six steps went."""
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    gradients = [torch.randn(shape, generator=random) for _ in range(6)]
    options = {"lr": 0.05, "momentum": 0.95, "weight_decay": 0.01}
    ours = trained(Muon, start, gradients, **options)
    theirs = trained(torch.optim.Muon, start, gradients, nesterov=True, adjust_lr_fn="original", **options)
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_convolutions_move_alike_in_both_memory_formats() -> None:
    random = torch.Generator().manual_seed(0)
    start = torch.randn((8, 6, 3, 3), generator=random)
    gradients = [torch.randn((8, 6, 3, 3), generator=random) for _ in range(3)]
    plain = trained(Muon, start, gradients, lr=0.1)
    last = trained(
        Muon,
        start.to(memory_format=torch.channels_last),
        [gradient.to(memory_format=torch.channels_last) for gradient in gradients],
        lr=0.1,
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, atol=1e-6, rtol=0)
    flat = trained(Muon, start.flatten(1), [gradient.flatten(1) for gradient in gradients], lr=0.1)
    torch.testing.assert_close(plain.flatten(1), flat, atol=1e-6, rtol=0)


def test_a_step_is_as_long_as_the_learning_rate_whatever_the_shape() -> None:
    """In spectral norm, times √(out/in) for tall matrices."""
    for shape, factor in (((16, 64), 1.0), ((64, 16), 2.0)):
        matrix, _ = with_singular_values(*shape, torch.ones(16, dtype=torch.float64))
        moved = trained(Muon, torch.zeros(shape), [matrix], lr=0.1)
        assert 0.1 * factor * BAND[0] < torch.linalg.matrix_norm(moved, 2) < 0.1 * factor * BAND[1]


def test_weight_decay_shrinks_weights_apart_from_the_gradient() -> None:
    start = torch.randn((4, 4), generator=torch.Generator().manual_seed(0))
    still = trained(Muon, start, [torch.zeros(4, 4)] * 3, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(still, start * (1 - 0.1 * 0.5) ** 3)
    gradient = [torch.randn((4, 4), generator=torch.Generator().manual_seed(1))]
    without = trained(Muon, start, gradient, lr=0.1, weight_decay=0.0)
    decayed = trained(Muon, start, gradient, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(without - decayed, start * 0.1 * 0.5)


def test_a_least_squares_problem_is_solved() -> None:
    random = torch.Generator().manual_seed(0)
    inputs, solution = torch.randn((200, 12), generator=random), torch.randn((5, 12), generator=random)
    weight = nn.Parameter(torch.zeros(5, 12))
    optimizer, steps = Muon([weight], lr=0.1, weight_decay=0.0), 200
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        (inputs @ (weight - solution).T).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), solution, atol=0.01, rtol=0)


def test_a_weight_without_a_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([unused, used], lr=0.1)
    used.grad = torch.eye(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 3))
    assert not torch.equal(used, torch.zeros(3, 3))


def test_momentum_survives_a_round_trip_through_the_state_dict() -> None:
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn((4, 6, 3, 3), generator=random) for _ in range(4)]
    whole = trained(Muon, torch.zeros(4, 6, 3, 3), gradients, lr=0.1)
    weight = nn.Parameter(torch.zeros(4, 6, 3, 3))
    optimizer = Muon([weight], lr=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state_dict()
        optimizer = Muon([weight], lr=0.1)
        optimizer.load_state_dict(state)
    torch.testing.assert_close(weight.detach(), whole, atol=0, rtol=0)
