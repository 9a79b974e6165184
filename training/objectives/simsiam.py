"""SimSiam (arXiv 2011.10566, algorithm 1): each view predicts the other's projection, which is held still.

No negatives, no momentum encoder: the predictor and the stop-gradient keep it from collapsing (section 4).
Both views pass through the network as one batch, so BatchNorm's statistics are those of both.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import Backbone
from training.distributed import gathered
from training.objectives import Batch, Objective, Step


@dataclass(frozen=True)
class SimSiamKnobs:
    bottleneck: int = 512  # width of the predictor's hidden layer; section 4.4 has it at a quarter of the output

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck {self.bottleneck} is no width of a layer; give at least 1")


class SimSiam(Objective):
    def __init__(self, backbone: Backbone, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.predictor = backbone, head, predictor

    def forward(self, batch: Batch) -> Step:
        features = self.backbone(torch.cat(batch.views))
        projections = self.head(features)
        predictions = self.predictor(projections)
        with torch.autocast(features.device.type, enabled=False):
            z1, z2 = (gathered(view) for view in projections.detach().float().chunk(2))
            p1, p2 = (gathered(view) for view in predictions.float().chunk(2))
            loss = negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2
        return Step(loss, features, projections)


def negative_cosine(predictions: Tensor, projections: Tensor) -> Tensor:
    """Mean over the rows of -cos(p, z), through which only the predictions learn: -1 where all agree, 1 where all
    are opposite. predictions, projections: (N, d) float."""
    return -F.cosine_similarity(predictions, projections.detach(), dim=1).mean()
