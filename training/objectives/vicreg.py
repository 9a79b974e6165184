"""VICReg (arXiv 2105.04906, section 4): two views' projections are close (invariance), every dimension spreads
(variance), and no two say the same (covariance)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import Backbone
from training.objectives.pairs import Pairs

SPREAD = 1.0  # γ, the standard deviation that every dimension is pushed up to
EPSILON = 1e-4  # added to variances


@dataclass(frozen=True)
class VICRegKnobs:
    invariance: float = 25.0  # λ, weight of the distance between the views
    variance: float = 25.0  # μ, weight of each dimension's missing spread
    covariance: float = 1.0  # ν, weight of what dimensions share

    def __post_init__(self) -> None:
        for name in ("invariance", "variance", "covariance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} would reward what it is to prevent; give 0 or more")


class VICReg(Pairs):
    def __init__(self, backbone: Backbone, head: nn.Module, knobs: VICRegKnobs) -> None:
        super().__init__(backbone, head)
        self.knobs = knobs

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        return vicreg_loss(first, second, self.knobs)


def vicreg_loss(first: Tensor, second: Tensor, knobs: VICRegKnobs) -> Tensor:
    """λ s(Z, Z') + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z')), equation 6.

    first, second: (N, d) float, N at least 2, row n of each a view of image n. s is the mean over rows and
    dimensions, as in appendix A's algorithm, which the weights are for; equation 5 leaves out the dimensions.
    """
    return (
        knobs.invariance * F.mse_loss(first, second)
        + knobs.variance * (missing_spread(first) + missing_spread(second))
        + knobs.covariance * (shared(first) + shared(second))
    )


def missing_spread(projections: Tensor) -> Tensor:
    """v, equation 1: mean over the columns of max(0, γ - √(Var + ε))."""
    return F.relu(SPREAD - (projections.var(dim=0) + EPSILON).sqrt()).mean()


def shared(projections: Tensor) -> Tensor:
    """c, equation 4: the squared covariances of all pairs of columns, summed, over the number of columns."""
    centred = projections - projections.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / projections.shape[1]
