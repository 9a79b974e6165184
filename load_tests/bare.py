"""The bare network of a training step: what it costs to run it forward and back, whatever it is given."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.backbone import Backbone
from training.checkpoint import Run
from training.data import Pixels
from training.objectives import Objective
from training.pretrain import train_step


class Call(NamedTuple):
    """What a backbone is given in a step."""

    backbone: Backbone
    shape: torch.Size  # (N, 3, s, s)
    learns: bool  # else it runs forward only, as momentum encoders do


class Bare(nn.Module):
    """What of an objective sees images, without its loss: the images of each call -> their outputs."""

    def __init__(self, model: Objective, calls: Sequence[Call]) -> None:
        super().__init__()
        heads = [getattr(model, name) for name in ("head", "predictor") if hasattr(model, name)]
        learning = nn.Sequential(model.backbone, *heads)
        self.networks = nn.ModuleList(learning if call.learns else call.backbone for call in calls)
        self.learns = [call.learns for call in calls]

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        outputs = []
        for network, learns, x in zip(self.networks, self.learns, images, strict=True):
            with torch.set_grad_enabled(learns):
                outputs.append(network(x))
        return outputs


def calls_of(run: Run, pixels: Pixels) -> list[Call]:
    """What the objective's backbones are given in a step, which is taken."""
    calls: list[Call] = []

    def note(backbone: Backbone, inputs: tuple[Tensor]) -> None:
        calls.append(Call(backbone, inputs[0].shape, torch.is_grad_enabled()))

    backbones = [module for module in run.model.modules() if isinstance(module, Backbone)]
    handles = [backbone.register_forward_pre_hook(note) for backbone in backbones]
    train_step(run, run.model, pixels, 0.0)
    for handle in handles:
        handle.remove()
    return calls


def random_images(calls: Sequence[Call], device: torch.device) -> list[Tensor]:
    """For each call: (N, 3, s, s) float32, in the memory format of a step's views."""
    drawn = [torch.rand(call.shape, device=device) for call in calls]
    return [images.contiguous(memory_format=torch.channels_last) for images in drawn]
