"""The temperature of a contrastive loss, which can change with the schedule."""

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """τ from `start` to `end` along half a cosine, as the learning rate goes."""

    value: Tensor  # scalar float32

    def __init__(self, start: float, end: float | None = None) -> None:
        super().__init__()
        self.start, self.end = start, start if end is None else end
        self.register_buffer("value", torch.tensor(start), persistent=False)

    def anneal(self, progress: float) -> None:
        """progress: how far the schedule is, 0 to 1."""
        self.value.fill_(self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress)))
