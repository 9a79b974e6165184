"""The served module: pixels in, unit embedding and probe logits out. The projection head stays behind."""

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
        features = self.backbone(image.permute(0, 3, 1, 2).float() / 255)
        embedding = features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        return embedding, self.probe(embedding)


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
