"""Self-distillation across image sizes: an encoder learns to see in a small image what it sees in a larger one.

Objects look larger in training's crops than in whole images, so an encoder is better on images larger than it was
trained on (arXiv 1906.06423, section 3), and slower. Here the encoder that a run begins with is the teacher (arXiv
1503.02531, section 2, on embeddings instead of logits): frozen, it looks at a view of every image, and the student,
which starts as its equal, at the same view made smaller.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment import Augmentation
from training.backbone import Backbone
from training.distributed import gathered
from training.objectives import Batch, Objective, Step
from training.objectives.momentum import frozen_copy


@dataclass(frozen=True)
class DistillKnobs:
    size: int = 64  # side of the student's images, in pixels; the teacher sees them at --view-size

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size {self.size} is no side of an image; give at least 1 pixel")


class Distill(Objective):
    def __init__(self, backbone: Backbone, knobs: DistillKnobs) -> None:
        super().__init__()
        self.backbone, self.size = backbone, knobs.size
        self.teacher = frozen_copy(backbone).eval()

    def train(self, mode: bool = True) -> "Distill":
        super().train(mode)
        self.teacher.eval()  # what it says of an image does not depend on the batch
        return self

    def views(self, view: Augmentation) -> tuple[Augmentation, ...]:
        return (view,)

    def forward(self, batch: Batch) -> Step:
        (large,) = batch.views
        small = F.interpolate(large, size=(self.size, self.size), mode="bilinear", antialias=True)
        with torch.no_grad():
            target = self.teacher(large)
        features = self.backbone(small)
        with torch.autocast(features.device.type, enabled=False):
            loss = cosine_distance(gathered(features.float()), gathered(target.float()))
        return Step(loss, features, features)


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean of 1 - cos over the rows of two (N, d) tensors: 0 where they point the same way, 2 where opposite."""
    return (1 - F.cosine_similarity(one, other, dim=1)).mean()
