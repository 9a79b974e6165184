"""BYOL (arXiv 2006.07733, section 3): an online network predicts what a slow copy of it, the target, says of the
other view. Both views pass through each network as one batch, so BatchNorm's statistics are those of both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.backbone import Backbone
from training.distributed import gathered
from training.objectives import Batch, Objective, Step
from training.objectives.momentum import follow, frozen_copy
from training.objectives.simsiam import negative_cosine


@dataclass(frozen=True)
class BYOLKnobs:
    momentum: float = 0.99  # share of itself that the target keeps at the first step; a cosine takes it to 1

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum {self.momentum} is no share of the target; give 0 to 1")


class BYOL(Objective):
    def __init__(self, backbone: Backbone, head: nn.Module, predictor: nn.Module, knobs: BYOLKnobs) -> None:
        super().__init__()
        self.backbone, self.head, self.predictor = backbone, head, predictor
        self.target_backbone, self.target_head = frozen_copy(backbone), frozen_copy(head)
        self.momentum = self.first_momentum = knobs.momentum

    def before_step(self, progress: float) -> None:
        self.momentum = 1 - (1 - self.first_momentum) * (1 + math.cos(math.pi * progress)) / 2  # section 3.3

    def forward(self, batch: Batch) -> Step:
        images = torch.cat(batch.views)
        features = self.backbone(images)
        projections = self.head(features)
        predictions = self.predictor(projections)
        with torch.no_grad():
            targets = self.target_head(self.target_backbone(images))
        with torch.autocast(features.device.type, enabled=False):
            z1, z2 = (gathered(view) for view in targets.float().chunk(2))
            p1, p2 = (gathered(view) for view in predictions.float().chunk(2))
            loss = distance(p1, z2) + distance(p2, z1)
        return Step(loss, features, projections)

    def after_step(self) -> None:
        follow(self.target_backbone, self.backbone, self.momentum)
        follow(self.target_head, self.head, self.momentum)


def distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows of ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos, equation 2, through which only the predictions learn: 0
    where all agree, 4 where all are opposite. predictions, targets: (N, d) float."""
    return 2 + 2 * negative_cosine(predictions, targets)
