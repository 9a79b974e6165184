"""MoCo v2 (arXiv 2003.04297; the method is arXiv 1911.05722, section 3): a query finds its key, the other view as a
slow copy of the network sees it, among the keys of the last batches, which a queue keeps.

A query and its key must not share BatchNorm's statistics: they tell the pair apart from the queue without a look at
the image (section 3.3). So keys are shuffled over the processes and normalised in groups, by the statistics of a
part of the batch that is another at each step, queries by those of the whole.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import Backbone
from training.distributed import gathered, share, world
from training.norms import BATCH_NORMS
from training.objectives import Batch, Objective, Step
from training.objectives.momentum import Network, follow, frozen_copy
from training.objectives.temperature import Temperature


@dataclass(frozen=True)
class MoCoKnobs:
    queue: int = 4096  # keys that are kept as negatives
    momentum: float = 0.99  # share of itself that the key encoder keeps at each step
    groups: int = 8  # parts of a batch of keys, over all processes, with BatchNorm statistics of their own

    def __post_init__(self) -> None:
        for name in ("queue", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is too little; give at least 1")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum {self.momentum} is no share of the key encoder; give 0 to 1")


class MoCo(Objective):
    queue: Tensor  # (K, d) float32, unit rows, the oldest first
    batches: Tensor  # scalar int64, how many were encoded

    def __init__(self, backbone: Backbone, head: nn.Module, temperature: Temperature, knobs: MoCoKnobs) -> None:
        super().__init__()
        self.backbone, self.head, self.temperature, self.momentum = backbone, head, temperature, knobs.momentum
        self.key_backbone = with_split_norm(frozen_copy(backbone), knobs.groups)
        self.key_head = with_split_norm(frozen_copy(head), knobs.groups)
        width = [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
        self.register_buffer("queue", F.normalize(torch.randn(knobs.queue, width), dim=1))
        self.register_buffer("batches", torch.tensor(0))

    def before_step(self, progress: float) -> None:
        self.temperature.anneal(progress)

    def forward(self, batch: Batch) -> Step:
        first, second = batch.views
        features = self.backbone(first)
        projections = self.head(features)
        key_features, key_projections = self.encode_keys(second)
        with torch.autocast(features.device.type, enabled=False):
            queries = F.normalize(gathered(projections.float()), dim=1)
            keys = F.normalize(key_projections.float(), dim=1)
            # A copy, as the queue moves on before the gradient is asked for.
            loss = info_nce(queries, keys, self.queue.to(keys.dtype, copy=True), self.temperature.value)
        self.enqueue(keys)
        return Step(
            loss,
            torch.cat([features, share(key_features)]),
            torch.cat([projections, share(key_projections)]),
        )

    @torch.no_grad()
    def encode_keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, s, s) of each process. Returns features (N, 512) and projections (N, d) of all of them."""
        everyone = gathered(images)
        order = permutation(len(everyone), self.batches)
        self.batches.add_(1)
        features = self.key_backbone(everyone[share(order)])
        projections = self.key_head(features)
        back = order.argsort()
        return gathered(features)[back], gathered(projections)[back]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """keys: (N, d) unit rows. The oldest N leave; where N is more than the queue holds, its last rows stay."""
        self.queue.copy_(torch.cat([self.queue, keys])[-len(self.queue) :])

    def after_step(self) -> None:
        follow(self.key_backbone, self.backbone, self.momentum)
        follow(self.key_head, self.head, self.momentum)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean over the queries of -log( exp(q·k/τ) / (exp(q·k/τ) + Σ_j exp(q·n_j/τ)) ), equation 1.

    queries, keys: (N, d) float, row n a pair; negatives: (K, d); unit rows all.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.T], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def permutation(count: int, turn: Tensor) -> Tensor:
    """(count,) int64, another at each turn, the same in every process. A generator would have to be seeded with
    `turn` (scalar int64) on the host, which would wait for the device; so numbers are hashed and sorted there.
    """
    x = (turn * count + torch.arange(count, device=turn.device)) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).argsort()  # no two are equal: each line can be undone


class SplitBatchNorm(nn.Module):
    """BatchNorm that normalises each of several parts of its batch by that part's own statistics, and keeps none.

    It is no BatchNorm to `with_synchronised_norm`: other processes' rows are what it is to do without.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, groups: int) -> None:
        """groups: parts of the batches of all processes together."""
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, groups

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C) or (B, C, H, W). Parts are as even as can be; a small batch has fewer, of two rows or three."""
        parts = max(1, min(self.groups // world(), len(x) // 2))
        return torch.cat(
            [
                F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)
                for part in x.tensor_split(parts)
            ]
        )


def with_split_norm(network: Network, groups: int) -> Network:
    """`network` with a SplitBatchNorm in the place of every BatchNorm, around the same parameters."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, BATCH_NORMS):
                setattr(module, name, SplitBatchNorm(child, groups))
    return network
