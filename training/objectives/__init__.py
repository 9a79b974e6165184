"""The self-supervised objectives, one short file a method: modules that own the backbone and map views to a Step."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """What one forward pass gives: a scalar loss to minimise, and what `monitor` watches for collapse."""

    loss: Tensor
    features: Tensor  # (2N, 512), before the head
    projections: Tensor  # (2N, d), after it, not normalised
