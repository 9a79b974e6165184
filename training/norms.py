"""What stands in BatchNorm's place where a batch is small or spread over processes."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.distributed import gathered, world

GROUPS = 32  # arXiv 1803.08494, section 4
CHANNELS_PER_GROUP = 16  # as well proven there (table 3); what a group needs where there are no pixels to add to it

M = TypeVar("M", bound=nn.Module)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def group_norm(channels: int, most: int = GROUPS, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm for `channels` channels, in `most` groups or in as many as divide them."""
    groups = next(g for g in range(max(1, min(most, channels)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=affine)


def replaced(module: M, new: Callable[[nn.BatchNorm1d | nn.BatchNorm2d], nn.Module]) -> M:
    """`module` with `new(norm)` in the place of every BatchNorm, itself included."""
    if isinstance(module, BATCH_NORMS):
        return new(module)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, replaced(child, new))
    return module


def with_group_norm(module: M) -> M:
    """`module` with a new GroupNorm (arXiv 1803.08494) in the place of every BatchNorm: no statistics of the batch.

    Vectors, (N, C), get fewer and larger groups: a group of one channel would have nothing to be compared with.
    """

    def group(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
        most = norm.num_features // CHANNELS_PER_GROUP if isinstance(norm, nn.BatchNorm1d) else GROUPS
        return group_norm(norm.num_features, most, norm.affine)

    return replaced(module, group)


def with_synchronised_norm(module: M) -> M:
    """`module` with the statistics of all processes' rows in every BatchNorm; itself where one process is alone.

    Call it when the module is on its device: torch's SyncBatchNorm trains on GPUs only. Weights and
    buffers stay the same objects under the same names: a checkpoint of either kind loads into the other.
    """
    return replaced(module, _synchronised) if world() > 1 else module


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    kind = nn.SyncBatchNorm if norm.running_mean is not None and norm.running_mean.is_cuda else ProcessBatchNorm
    joint = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(joint, name, getattr(norm, name))
    return joint.train(norm.training)


class ProcessBatchNorm(_BatchNorm):
    """torch's SyncBatchNorm in plain operations, which any device has."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C) or (N, C, H, W), N free to differ between processes. Returns its shape and dtype."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channel = (1, -1) + (1,) * (x.ndim - 2)
        mean, variance, count = joint_moments(wide)
        self._remember(mean, variance, count)
        y = (wide - mean.view(channel)) * torch.rsqrt(variance + self.eps).view(channel)
        if self.affine:
            y = y * self.weight.view(channel) + self.bias.view(channel)
        return y.to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Vectors and images both have their channels in dimension 1."""

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)


def joint_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () of all processes' values, differentiable. x: (N, C, …), our part.

    Each process takes its own mean off before it squares; the parts are then joined as in Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979): nothing large cancels.
    """
    dims = [dim for dim in range(x.ndim) if dim != 1]
    channels, count = x.shape[1], x.numel() // x.shape[1]
    mean = x.sum(dim=dims, keepdim=True) / max(count, 1)
    squares = (x - mean).square().sum(dim=dims)
    parts = gathered(torch.cat([mean.flatten(), squares, squares.new_full((1,), count)])[None])
    means, squares, counts = parts.split([channels, channels, 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    variance = (squares + counts * (means - mean).square()).sum(dim=0) / total
    return mean, variance, total
