"""What stands in BatchNorm's place: groups of channels, or the rows of all processes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.two_processes import together
from training.backbone import mlp
from training.distributed import rank, world
from training.norms import ProcessBatchNorm, group_norm, joint_moments, with_group_norm, with_synchronised_norm

EXACT = {"atol": 1e-10, "rtol": 1e-10}


# Groups of channels


def test_group_norm_has_32_groups_of_neighbouring_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 3, 3) * 5 + 1
    groups = x.view(2, 32, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    torch.testing.assert_close(group_norm(64)(x), ((groups - mean) / (variance + 1e-5).sqrt()).view_as(x))


@pytest.mark.parametrize("channels, groups", [(512, 32), (64, 32), (48, 24), (8, 8), (7, 7), (37, 1), (1, 1)])
def test_the_number_of_groups_divides_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_every_batch_norm_becomes_a_group_norm_with_the_same_affine_choice() -> None:
    module = with_group_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), mlp((8, 64, 32), norm_last=True)))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    assert [norm.affine for norm in norms] == [True, True, False]
    assert not [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def test_a_lone_batch_norm_becomes_a_group_norm() -> None:
    assert isinstance(with_group_norm(nn.BatchNorm1d(64)), nn.GroupNorm)


@pytest.mark.parametrize("width", [2, 8, 32, 128, 1024])
def test_a_row_of_a_head_is_compared_with_itself_and_keeps_what_tells_it_from_others(width: int) -> None:
    torch.manual_seed(0)
    norm = with_group_norm(nn.BatchNorm1d(width))
    x = torch.randn(50, width)
    torch.testing.assert_close(norm(x)[3:4], norm(x[3:4]))
    assert norm(x).std(dim=0).min() > 0.5  # in groups of one channel all would be 0


# The rows of all processes. Two processes run once; each test below looks at some of what they returned.


def joined(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch far from zero, of which the first process has five rows and the second two."""
    images = torch.randn((7, 4, 3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 20
    return (images if name == "images" else images[:, :, 0, 0]).to(dtype)


def part(x: Tensor) -> Tensor:
    return x if world() == 1 else x.split([5, 2])[rank()]


def batch_norm(name: str) -> nn.Module:
    """For vectors one without scale and shift, for images one with."""
    if name == "vectors":
        return nn.BatchNorm1d(4, affine=False)
    norm = nn.BatchNorm2d(4)
    torch.manual_seed(1)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm


def two_steps(name: str, momentum: float | None) -> dict[str, Any]:
    """What a BatchNorm makes of two batches in training, and of one in evaluation, in float64."""
    norm = batch_norm(name)
    norm.momentum = momentum  # type: ignore[assignment]
    norm = with_synchronised_norm(norm.double())
    x = part(joined(name)).requires_grad_()
    target = part(torch.linspace(-1, 1, joined(name).numel(), dtype=torch.float64).view_as(joined(name)))
    norm(x.detach() * 2)
    y = norm(x)
    ((y - target) ** 3).sum().backward()
    return {
        "output": y.detach(),
        "gradient": x.grad,
        "gradients": {key: p.grad for key, p in norm.named_parameters()},
        "state": norm.state_dict(),
        "evaluation": norm.eval()(x).detach(),
    }


def everything() -> dict[str, Any]:
    """What each of two processes returns."""
    images = with_synchronised_norm(batch_norm("images"))
    far = torch.linspace(0, 1, 7)[:, None] + 4096
    with torch.autocast("cpu", torch.bfloat16):
        half = images(part(joined("images", torch.bfloat16)))
    layout = images(part(joined("images", torch.float32)).to(memory_format=torch.channels_last))
    frozen = with_synchronised_norm(nn.Sequential(batch_norm("images").requires_grad_(False).eval()))[0]
    return {
        "steps": {str(case): two_steps(*case) for case in CASES},
        "bf16": half.detach(),
        "channels last": layout.detach(),
        "kept channels last": layout.is_contiguous(memory_format=torch.channels_last),
        "far": joint_moments(part(far)),
        "uneven": joint_moments(far if rank() == 0 else far[:0]),
        "frozen": [type(frozen).__name__, frozen.training, *(p.requires_grad for p in frozen.parameters())],
    }


CASES = [("vectors", 0.1), ("images", 0.1), ("images", None)]


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    return together(everything)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", ["output", "gradient", "evaluation"])
def test_two_processes_see_what_one_sees_on_the_joined_batch(both: list[Any], case: Any, what: str) -> None:
    parts = [process["steps"][str(case)][what] for process in both]
    assert [len(rows) for rows in parts] == [5, 2]
    torch.testing.assert_close(torch.cat(parts), two_steps(*case)[what], **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_they_remember_the_same_mean_and_unbiased_variance(both: list[Any], case: Any) -> None:
    for process in both:
        torch.testing.assert_close(process["steps"][str(case)]["state"], two_steps(*case)["state"], **EXACT)


def test_the_gradients_of_scale_and_shift_add_up_to_those_of_one_process(both: list[Any]) -> None:
    first, second = (process["steps"][str(CASES[1])]["gradients"] for process in both)
    one = two_steps(*CASES[1])["gradients"]
    assert sorted(one) == ["bias", "weight"]
    torch.testing.assert_close({key: first[key] + second[key] for key in one}, one, **EXACT)


def test_bf16_comes_back_as_bf16_from_statistics_in_float32(both: list[Any]) -> None:
    together_ = torch.cat([process["bf16"] for process in both])
    assert together_.dtype == torch.bfloat16
    x = joined("images", torch.bfloat16)
    torch.testing.assert_close(together_, batch_norm("images")(x.float()).bfloat16())


def test_channels_last_stays_so(both: list[Any]) -> None:
    assert all(process["kept channels last"] for process in both)
    one = batch_norm("images")(joined("images", torch.float32))
    torch.testing.assert_close(torch.cat([process["channels last"] for process in both]), one)


def test_the_variance_of_values_far_from_zero_keeps_its_digits(both: list[Any]) -> None:
    """Σx² - (Σx)²/n would be a difference of numbers near 10⁸, of which float32 keeps seven digits."""
    for process in both:
        mean, variance, count = process["far"]
        torch.testing.assert_close(mean, torch.tensor([4096.5]))
        torch.testing.assert_close(variance, torch.tensor([1 / 9]), atol=1e-4, rtol=1e-3)  # of 0, 1/6, …, 1
        assert count == 7


def test_a_process_without_rows_adds_nothing(both: list[Any]) -> None:
    assert both[0]["uneven"] == both[1]["uneven"]
    torch.testing.assert_close(both[0]["uneven"][1], torch.tensor([1 / 9]), atol=1e-4, rtol=1e-3)


def test_what_is_frozen_or_evaluated_stays_so(both: list[Any]) -> None:
    assert both[0]["frozen"] == ["ProcessBatchNorm", False, False, False]


def test_a_process_alone_keeps_its_batch_norms() -> None:
    head = mlp((8, 8, 4), norm_last=True)
    layers = list(head)
    assert with_synchronised_norm(head) is head
    assert list(head) == layers


def test_a_checkpoint_of_either_loads_into_the_other() -> None:
    norm, joint = nn.BatchNorm2d(4), ProcessBatchNorm(4)
    joint.load_state_dict(norm.state_dict())
    norm.load_state_dict(joint.state_dict())
    assert list(norm.state_dict()) == list(joint.state_dict())
