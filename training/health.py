"""Numbers that tell a representation from a collapsed one, and a watch that says when they do.

Alignment and uniformity are those of Wang and Isola (arXiv 2005.10242, section 4.1), of the features that stay.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import FEATURES
from training.objectives import Step

# Fresh weights begin at 0.17 (GroupNorm) to 0.8 and at ranks of tens, and stay well above these limits as they learn.
# Loss of agreement alone, nothing held apart, fell below the first in 25 steps: in the projections, while BatchNorm
# kept the features at 0.7. Hence both are watched.
LEAST_SPREAD = 0.1  # in 1/√d, the spread of directions that fill all d dimensions evenly
LEAST_RANK = 2.0  # directions along one line have 1
FIRST_LOGS = 5  # not judged: the first steps of a run may shake everything
LOGS_IN_A_ROW = 3  # a single batch may be an odd one


@torch.no_grad()
def health(model: nn.Module, step: Step, views: int = 2) -> dict[str, float]:
    """Numbers of one batch, in a group of processes of this one's share. What is not finite is left out.

    views: how many the step drew of every image. Alignment is of pairs, so only two views have it.
    """
    features = step.features.detach().float()
    projections = step.projections.detach().float()
    directions = F.normalize(features, dim=1)
    each_view = directions.chunk(views)
    numbers = {
        "feature_spread": directions.std(dim=0).mean(),  # 1/√d: evenly spread, 0: all at one point
        "effective_rank": effective_rank(features),
        "uniformity": torch.stack([uniformity(view) for view in each_view]).mean(),
        # In 1/√d, since d is the method's own: 1, or 0 where all meet (SimSiam, arXiv 2011.10566, section 4.1).
        "projection_spread": math.sqrt(projections.shape[1]) * F.normalize(projections, dim=1).std(dim=0).mean(),
        "projection_rank": effective_rank(projections),
        "projection_norm": projections.norm(dim=1).mean(),
        "gradient_norm": nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]),
    }
    if views == 2:
        numbers["alignment"] = alignment(*each_view)
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy and Vetterli 2007):
    1 when all lie on a line, d when they fill all d dimensions evenly. features: (N, d) float."""
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp())


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean ‖f(x) - f(y)‖² over positive pairs, the rows of two (B, d) tensors of unit vectors: 0 where views of an
    image agree, 2 where they know nothing of each other."""
    return (first - second).square().sum(dim=1).mean()


def uniformity(directions: Tensor) -> Tensor:
    """log of the mean exp(-2 ‖f(x) - f(y)‖²) over all pairs of different rows of (B, d) unit vectors: 0 where all are
    the same, near -4 where they fill a sphere of many dimensions evenly. NaN where there is no pair."""
    return torch.pdist(directions).square().mul(-2).exp().mean().log()


class Collapse:
    """Reads the rows of a run as they are logged and speaks up, once, when features or projections have collapsed:
    all images at one point (the spread goes to 0), or along one line (the effective rank goes to 1)."""

    def __init__(self, width: int = FEATURES) -> None:
        """width: d, the dimension of the features."""
        self.limits = {
            "feature_spread": LEAST_SPREAD / math.sqrt(width),
            "effective_rank": LEAST_RANK,
            "projection_spread": LEAST_SPREAD,
            "projection_rank": LEAST_RANK,
        }
        self.below = dict.fromkeys(self.limits, 0)  # logs in a row
        self.logs, self.noticed = 0, False

    def sign(self, row: Mapping[str, Any]) -> str | None:
        """What to tell the user, the first time there is something to tell."""
        self.logs += 1
        if self.logs <= FIRST_LOGS or self.noticed:
            return None
        for key, limit in self.limits.items():
            self.below[key] = self.below[key] + 1 if row.get(key, math.inf) < limit else 0
        collapsed = [key for key, logs in self.below.items() if logs >= LOGS_IN_A_ROW]
        if not collapsed:
            return None
        self.noticed = True
        findings = ", ".join(f"{key.replace('_', ' ')} {row[key]:.2g} < {self.limits[key]:.2g}" for key in collapsed)
        return (
            f"the representation has collapsed: {findings} in {LOGS_IN_A_ROW} logs in a row; raise --temperature "
            "where the method has one, lower --lr, or check that the views (--view-…) leave something to recognise"
        )
