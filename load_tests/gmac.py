"""The work of a network: multiply-accumulates, whatever computes them."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def gmac(network: nn.Module, size: int) -> float:
    """10⁹ multiply-accumulates of convolutions and linear layers for one image of size × size pixels.

    network: takes (N, 3, size, size) float32, in evaluation mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    operations: int = counter.get_total_flops()
    return operations / 2 / 1e9  # a multiplication and an addition count as two
