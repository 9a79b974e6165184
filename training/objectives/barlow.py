"""Barlow Twins (arXiv 2103.03230, algorithm 1): the cross-correlation of two views' projections is to be the
identity, so that each dimension agrees over the views and says what the others do not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.backbone import Backbone
from training.objectives.pairs import Pairs

EPSILON = 1e-5  # added to variances, as BatchNorm does


@dataclass(frozen=True)
class BarlowKnobs:
    redundancy: float = 0.0051  # λ, weight of each pair of dimensions beside each dimension's own agreement
    scale: float = 0.024  # of the loss, which grows with the width of the projections; the published code's

    def __post_init__(self) -> None:
        if self.redundancy < 0:
            raise ValueError(f"redundancy {self.redundancy} would reward dimensions that agree; give 0 or more")
        if self.scale <= 0:
            raise ValueError(f"scale {self.scale} leaves nothing to learn from; give more than 0")


class BarlowTwins(Pairs):
    def __init__(self, backbone: Backbone, head: nn.Module, knobs: BarlowKnobs) -> None:
        super().__init__(backbone, head)
        self.knobs = knobs

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        return self.knobs.scale * barlow_loss(first, second, self.knobs.redundancy)


def barlow_loss(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """Σ_i (1 - C_ii)² + λ Σ_i Σ_{j≠i} C_ij², C the correlation of the first view's dimension i with the second's j.

    first, second: (N, d) float, row n of each a view of image n.
    """
    correlation = standardised(first).T @ standardised(second) / len(first)
    agreement = correlation.diagonal()
    rest = correlation.square().sum() - agreement.square().sum()
    return (1 - agreement).square().sum() + redundancy * rest


def standardised(projections: Tensor) -> Tensor:
    """Each column less its mean, over its standard deviation. A constant one becomes 0."""
    variance, mean = torch.var_mean(projections, dim=0, correction=0)
    return (projections - mean) * (variance + EPSILON).rsqrt()
