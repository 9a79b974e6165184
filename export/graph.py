"""The served module: pixels in, unit embedding and probe logits out. The projection head stays behind."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.backbone import Backbone
from training.probe import Probe


class Served(nn.Module):
    """image (N, size, size, 3) uint8 -> embedding (N, 512) float32 of unit norm, logits (N, C) float32.

    Scaling, mean and standard deviation, L2 normalisation and the linear probe are all inside, so that no caller
    does arithmetic on pixels.
    """

    def __init__(self, backbone: Backbone, probe: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.probe = backbone, probe

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        embedding = unit(self.backbone(image.permute(0, 3, 1, 2).float() / 255))
        return embedding, self.probe(embedding)


class ServedForeign(nn.Module):
    """image (N, side, side, 3) uint8 -> embedding (N, D) float32 of unit norm, through a network of another library.

    Its mean and standard deviation, and the border that its library crops off, are inside.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], side: int, crop: int) -> None:
        """network: (N, 3, crop, crop) float32 -> (N, D); side: of the image in pixels; mean and std: of each
        channel, in [0, 1]."""
        super().__init__()
        self.network, self.crop, self.border = network, crop, (side - crop) // 2
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        kept = slice(self.border, self.border + self.crop)
        x = image[:, kept, kept].permute(0, 3, 1, 2).float() / 255
        return unit(self.network((x - self.mean) / self.std))


def unit(features: Tensor) -> Tensor:
    """(N, D) scaled to a norm of 1."""
    return features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


def linear_of(probe: Probe) -> nn.Linear:
    """The probe as a layer of torch."""
    classes, dimension = probe.weight.shape
    layer = nn.Linear(dimension, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        layer.bias.copy_(torch.from_numpy(probe.bias))
    return layer


def fold_batch_norm(backbone: Backbone) -> Backbone:
    """Each BatchNorm of a ResNet folded into the convolution before it; the backbone is changed and returned."""
    backbone.eval()
    for name, bn in [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]:
        owner_name, _, child = name.rpartition(".")
        owner = backbone.get_submodule(owner_name)
        # bn1 follows conv1, bn2 follows conv2; a shortcut is Sequential(convolution, BatchNorm).
        before = child.replace("bn", "conv") if child.startswith("bn") else str(int(child) - 1)
        convolution = cast(nn.Conv2d, owner.get_submodule(before))
        setattr(owner, before, fuse_conv_bn_eval(convolution, bn))
        setattr(owner, child, nn.Identity())
    return backbone
