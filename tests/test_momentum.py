"""The momentum copy: the lecture's numbers, what moves and what does not."""

import pytest
import torch
from torch import Tensor, nn

from training.backbone import mlp
from training.objectives.momentum import follow, frozen_copy


def network(weights: list[float]) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    return layer


def test_the_lectures_example_of_a_moving_average() -> None:
    """m 0.9: a target of [10, 2] follows [12, 3] to [10.2, 2.1], then [11, 5] to [10.28, 2.39]."""
    target = frozen_copy(network([10.0, 2.0]))
    for online, expected in (([12.0, 3.0], [10.2, 2.1]), ([11.0, 5.0], [10.28, 2.39])):
        follow(target, network(online), 0.9)
        torch.testing.assert_close(target.weight, nn.Parameter(torch.tensor([expected]), requires_grad=False))


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, [12.0, 3.0]), (1.0, [10.0, 2.0])])
def test_momentum_zero_copies_and_momentum_one_stays(momentum: float, expected: list[float]) -> None:
    target = frozen_copy(network([10.0, 2.0]))
    follow(target, network([12.0, 3.0]), momentum)
    assert target.weight.tolist() == [expected]


def test_a_copy_begins_equal_learns_nothing_and_shares_nothing() -> None:
    learning = mlp((4, 3, 2))
    copied = frozen_copy(learning)
    for name, value in learning.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)
        assert copied.state_dict()[name].data_ptr() != value.data_ptr()
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in learning.parameters())


def test_every_parameter_follows_and_no_buffer_does() -> None:
    learning = mlp((4, 3, 2))
    copied = frozen_copy(learning)
    before = {name: value.clone() for name, value in copied.state_dict().items()}
    for tensor in (*learning.parameters(), *(b for b in learning.buffers() if b.is_floating_point())):
        tensor.data += 1
    follow(copied, learning, 0.75)
    names = {name for name, _ in copied.named_parameters()}
    assert len(names) == 5  # two weights, one bias, and BatchNorm's scale and shift
    for name, value in copied.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.25 * (name in names), check_dtype=False)


def test_following_leaves_no_trace_in_autograd() -> None:
    learning = mlp((4, 3, 2))
    copied = frozen_copy(learning)
    follow(copied, learning, 0.5)
    outputs: Tensor = copied(torch.rand(5, 4))
    assert not outputs.requires_grad


def test_running_statistics_follow_only_where_that_is_asked_for() -> None:
    learning = mlp((4, 3, 2))
    copies = [frozen_copy(learning), frozen_copy(learning)]
    learning[1].running_mean.fill_(10.0)
    learning[1].num_batches_tracked.fill_(7)
    for copied, statistics in zip(copies, (False, True), strict=True):
        follow(copied, learning, 0.75, statistics)
    assert copies[0][1].running_mean.tolist() == [0, 0, 0]
    assert copies[1][1].running_mean.tolist() == [2.5, 2.5, 2.5]
    assert int(copies[1][1].num_batches_tracked) == 0  # a count is no average
