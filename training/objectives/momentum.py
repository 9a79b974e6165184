"""The momentum encoder of MoCo (arXiv 1911.05722, section 3.2) and BYOL (arXiv 2006.07733, section 3.1): a copy
without a gradient of its own, whose weights are the moving average of those that learn.

Only parameters are averaged. A BatchNorm in training normalises by the statistics of the batch before it, and the
copy is never asked outside training, so nobody reads its running statistics: they follow the copy's own batches.
"""

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """A copy that starts equal, and that neither gradients nor optimizers move."""
    return copy.deepcopy(network).requires_grad_(False)


def follow(copied: nn.Module, learning: nn.Module, momentum: float, statistics: bool = False) -> None:
    """Each of the copy's parameters becomes momentum · itself + (1 - momentum) · the learning one, in place; with
    `statistics` the running ones of BatchNorm too, for a copy that is asked outside training."""
    averaged: list[list[Tensor]] = [[*copied.parameters()], [*learning.parameters()]]
    if statistics:
        for tensors, network in zip(averaged, (copied, learning), strict=True):
            tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    get_ema_multi_avg_fn(momentum)(*averaged, 0)
