"""What the methods have in common whose loss compares the projections of two views of every image."""

import torch
from torch import Tensor, nn

from training.backbone import Backbone
from training.distributed import gathered
from training.objectives import Batch, Objective, Step


class Pairs(Objective):
    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """first, second: (N, d) float32, the projections of all processes; row n of both is of one image."""
        raise NotImplementedError(f"{type(self).__name__} has to say what its loss is")

    def forward(self, batch: Batch) -> Step:
        features = self.backbone(torch.cat(batch.views))
        projections = self.head(features)
        with torch.autocast(features.device.type, enabled=False):  # losses need more than bf16's 8 bits
            first, second = (gathered(view) for view in projections.float().chunk(2))
            loss = self.loss(first, second)
        return Step(loss, features, projections)
