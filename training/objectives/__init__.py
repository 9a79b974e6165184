"""The self-supervised objectives, one short file a method, and what all of them are to `pretrain`.

`pretrain` draws the views an objective asks for, calls it, differentiates the loss, and lets it move what has no
gradient. It knows nothing else about a method, so a new one is a file here and a line in training/methods.py.
"""

from typing import NamedTuple

from torch import Tensor, nn

from training.augment import Augmentation
from training.backbone import Backbone


class Batch(NamedTuple):
    """What one step sees of this process's share of the images."""

    views: tuple[Tensor, ...]  # one for each of the objective's views: (B, 3, s, s) float32 in [0, 1], s its own
    rows: Tensor  # (B,) int64, the images' numbers in the pool: for methods with a target for every image


class Step(NamedTuple):
    """What one forward pass gives: a scalar loss to minimise, and what `monitor` watches for collapse."""

    loss: Tensor
    features: Tensor  # (V·B, 512), before the head; where V is 2, rows n and B + n are views of one image
    projections: Tensor  # (V·B, d), after it, not normalised


class Objective(nn.Module):
    """A method: it owns every network it needs, of which `backbone` is the one that stays.

    Parameters that require no gradient (a momentum encoder's) are left alone by the optimizer. Everything that
    has to survive a kill is a parameter or a buffer. Where several processes train, `forward` sees one process's
    images and gives the loss of all of them (`training.distributed.gathered`), the same in every process.
    """

    backbone: Backbone

    def views(self, view: Augmentation) -> tuple[Augmentation, ...]:
        """The views a step draws of every image, made of the recipe's one."""
        return view, view

    def forward(self, batch: Batch) -> Step:
        raise NotImplementedError(f"{type(self).__name__} has to say what its loss is")

    def before_step(self, progress: float) -> None:
        """Called before each forward pass. progress: how far the schedule is, 0 to 1. What changes with it lives
        in buffers, so that a compiled forward pass sees the change."""

    def after_step(self) -> None:
        """Called after the optimizers have stepped."""
