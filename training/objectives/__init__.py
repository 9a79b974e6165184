"""The self-supervised objectives, one short file a method, behind one small protocol that `pretrain` drives."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Step(NamedTuple):
    """What one forward pass gives: a scalar loss to minimise, and what `monitor` watches for collapse."""

    loss: Tensor
    features: Tensor  # (2N, 512), before the head
    projections: Tensor  # (2N, d), after it, not normalised


class Objective(Protocol):
    """A module that owns the backbone and whatever else the method trains."""

    backbone: nn.Module

    def __call__(self, views: Tensor) -> Step:
        """views: (2N, 3, S, S) in [0, 1]; rows n and N + n are two views of image n."""
        ...

    def parameters(self) -> object: ...
