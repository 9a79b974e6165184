"""The network that stays: ResNet-18 (arXiv 1512.03385) without its classifier, and the heads that go."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from training.norms import group_norm

# Per-channel mean and standard deviation of STL-10's images in [0, 1]; they live in the module, hence in the graph.
MEAN = (0.4467, 0.4398, 0.4066)
STD = (0.2603, 0.2566, 0.2713)
FEATURES = 512

Stem = Literal["standard", "small"]
Norm = Literal["batch", "group"]


class Backbone(nn.Module):
    """(N, 3, S, S) float in [0, 1] -> (N, 512) features after global average pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, stem: Stem = "standard", norm: Norm = "batch") -> None:
        """stem: "standard" is torchvision's 7×7 convolution of stride 2; "small" is a 3×3 one of stride 1, four
        times the work at the same image size, for images of about 64 pixels. Both keep the max pooling.
        norm: "group" has GroupNorm (arXiv 1803.08494) in BatchNorm's place: no statistics of the batch."""
        super().__init__()
        self.stem, self.norm = stem, norm
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.net = resnet18(norm_layer=group_norm if norm == "group" else nn.BatchNorm2d)
        self.net.fc = nn.Identity()
        if stem == "small":
            self.net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        elif stem != "standard":
            raise ValueError(f"unknown stem {stem!r}; use 'standard' or 'small'")

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def mlp(widths: Sequence[int], norm: bool = True, norm_last: bool = False) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1] with ReLU between them: projection heads and predictors.

    norm: BatchNorm before each ReLU; norm_last: also behind the last layer, there without scale and shift.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (wide, narrow) in enumerate(pairwise(widths)):
        normed = norm_last if i == last else norm
        layers.append(nn.Linear(wide, narrow, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(narrow, affine=i != last))
        if i != last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
