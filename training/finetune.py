"""Fine-tuning: how good an encoder becomes when labels may change all of it (SimCLR, section 4 and appendix B.5).

The whole network learns, with a linear layer on its unit vectors that begins as the linear probe of the same labels:
what begins with a random layer spoils good features before it has learned to use them (arXiv 2202.10054).
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from training.augment import Augmentation, Randomness, view
from training.backbone import Backbone
from training.features import BATCH as ASKED_AT_ONCE
from training.features import Labelled
from training.labelled import Split
from training.probe import FOLDS, Probe, fit_few, percent, summary
from training.protocol import rounded, share_draws
from training.schedule import rate_factor

BATCH = 64
LEARNING_RATE = 3e-4  # of AdamW, after a rise over WARMUP; then a cosine to zero
WARMUP = 0.1
WEIGHT_DECAY = 0.05
DRAWS = 3  # of the ten that the probe has at 5% of the labels: each is a training of its own


class Classifier(nn.Module):
    """(N, 3, S, S) float in [0, 1] -> (N, C) logits."""

    mean: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, known: Labelled, probe: Probe) -> None:
        """`backbone` is copied; `probe` was fitted on `known`, which `backbone` embedded. The logits are the probe's,
        but its layer acts on standardised features: on raw ones, which differ little from each other, its weights
        are so large that a step of the backbone upsets all of them."""
        super().__init__()
        self.backbone = deepcopy(backbone)
        self.register_buffer("mean", torch.from_numpy(known.vectors.mean(axis=0)))
        self.register_buffer("spread", torch.from_numpy(known.vectors.std(axis=0) + 1e-8))
        self.head = nn.Linear(*reversed(probe.weight.shape))
        with torch.no_grad():
            weight = torch.from_numpy(probe.weight)
            self.head.weight.copy_(weight * self.spread)
            self.head.bias.copy_(torch.from_numpy(probe.bias) + weight @ self.mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((F.normalize(self.backbone(x), dim=1) - self.mean) / self.spread)


def mild(size: int) -> Augmentation:
    """Views that keep what a class is told by: crops of half the image and more, mirrored, in true colours."""
    return Augmentation(size, scale=(0.5, 1.0), jitter=0, grayscale=0, blur=0)


def finetune(
    backbone: Backbone, split: Split, known: Labelled, epochs: int, device: torch.device, seed: int = 0
) -> Classifier:
    """A classifier trained on all of `split`, which `backbone` embeds as `known`; from a copy of it and the probe.

    BatchNorm keeps the statistics it came with: few labels give poor ones, and training begins where the probe ends.
    """
    model = Classifier(backbone, known, fit_few(*known)).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    canvas = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous().to(device)
    side = torch.full((len(canvas),), canvas.shape[-1], device=device)
    labels = torch.from_numpy(split.labels).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    aug, steps = mild(canvas.shape[-1]), epochs * math.ceil(len(canvas) / BATCH)
    for step, rows in enumerate(batches(len(canvas), epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_factor(step / steps, WARMUP)
        rows = rows.to(device, non_blocking=True)
        x = view(canvas[rows], side[rows], aug, Randomness(seed, step, device))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels[rows]).backward()
        optimizer.step()
    return model


def batches(count: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers, every row once an epoch, in batches that differ by one at most: none is left with one image."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=order).tensor_split(math.ceil(count / BATCH))


@torch.no_grad()
def accuracy(model: Classifier, split: Split, device: torch.device) -> float:
    """Percent."""
    logits = []
    for start in range(0, len(split.images), ASKED_AT_ONCE):
        x = torch.from_numpy(split.images[start : start + ASKED_AT_ONCE]).to(device)
        logits.append(model(x.permute(0, 3, 1, 2).float() / 255).cpu().numpy())
    return percent(np.concatenate(logits), split.labels)


def measure(
    backbone: Backbone, train: Split, known: Labelled, test: Split | None, epochs: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """{"train": …, "test": …} with finetuned and finetuned_5_percent, in percent.

    train: the first of the probe's five folds is asked of what was trained on the other four; 5%, [mean, sd] of three
    draws, is asked the others. test: trained on all labels; the draws' networks are asked once more. known: what
    `backbone` makes of `train`.
    """
    result: dict[str, dict[str, Any]] = {place: {} for place in ("train", "test") if place == "train" or test}
    rows, asked = next(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train.labels, train.labels))
    model = finetune(backbone, train.rows(rows), known.rows(rows), epochs, device)
    result["train"]["finetuned"] = round(accuracy(model, train.rows(asked), device), 2)
    if test:
        model = finetune(backbone, train, known, epochs, device)
        result["test"]["finetuned"] = round(accuracy(model, test, device), 2)
    few: dict[str, list[float]] = {place: [] for place in result}
    for rows in share_draws(train.labels, DRAWS):
        model = finetune(backbone, train.rows(rows), known.rows(rows), epochs, device)
        others = np.delete(np.arange(len(train.labels)), rows)
        few["train"].append(accuracy(model, train.rows(others), device))
        if test:
            few["test"].append(accuracy(model, test, device))
    for place, values in few.items():
        if values:
            result[place]["finetuned_5_percent"] = rounded(summary(values))
    return result
