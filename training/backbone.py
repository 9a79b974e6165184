"""The network that stays: ResNet-18 (arXiv 1512.03385) without its classifier, and the projection head that goes."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

# Per-channel mean and standard deviation of STL-10's images in [0, 1]; they live in the module, hence in the graph.
MEAN = (0.4467, 0.4398, 0.4066)
STD = (0.2603, 0.2566, 0.2713)
FEATURES = 512


class Backbone(nn.Module):
    """(N, 3, S, S) float in [0, 1] -> (N, 512) features after global average pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, stem: str = "standard") -> None:
        """stem: "standard" is torchvision's 7×7 convolution of stride 2; "small" is a 3×3 one of stride 1, four
        times the work at the same image size, for images of about 64 pixels. Both keep the max pooling."""
        super().__init__()
        self.stem = stem
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.net = resnet18()
        self.net.fc = nn.Identity()
        if stem == "small":
            self.net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        elif stem != "standard":
            raise ValueError(f"unknown stem {stem!r}; use 'standard' or 'small'")

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def projection_head(hidden: int, output: int, batch_norm: bool) -> nn.Sequential:
    """Two layers, 512 → hidden → output (SimCLR, section 4.2); used in training and dropped after it."""
    if batch_norm:
        return nn.Sequential(
            nn.Linear(FEATURES, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, output, bias=False),
            nn.BatchNorm1d(output, affine=False),
        )
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, output))
