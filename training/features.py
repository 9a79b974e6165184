"""Images as a frozen encoder's unit vectors, and the proof that it stayed frozen."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training.backbone import Backbone
from training.labelled import read_split

Embed = Callable[[np.ndarray], np.ndarray]  # (N, size, size, 3) uint8 -> (N, D) float32 unit vectors
BATCH = 250


class Labelled(NamedTuple):
    """The embeddings of a labelled split, or of a part of it."""

    vectors: np.ndarray  # (N, D) float32, unit norm
    labels: np.ndarray  # (N,) int64, from 0

    def rows(self, rows: np.ndarray) -> "Labelled":
        return Labelled(self.vectors[rows], self.labels[rows])


def embed_images(embed: Embed, images: np.ndarray) -> np.ndarray:
    """(N, D) float32 unit vectors of images (N, size, size, 3) uint8, a batch at a time."""
    return np.concatenate([embed(images[row : row + BATCH]) for row in range(0, len(images), BATCH)])


def embed_split(embed: Embed, data: Path, split: str, size: int) -> Labelled:
    """The embeddings of a split of a labelled data set, its images brought to size × size."""
    images, labels = read_split(data, split, size)
    return Labelled(embed_images(embed, images), labels)


def torch_embedder(backbone: Backbone, device: torch.device) -> Embed:
    """`backbone` is put into evaluation mode, on `device`."""
    backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def embed(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255
        return F.normalize(backbone(x), dim=1).cpu().numpy()

    return embed


def state_digest(module: nn.Module) -> str:
    """64 hex: sha256 over every parameter and buffer, BatchNorm's statistics and what checkpoints leave out among
    them. The same on every device and in every memory format."""
    digest = sha256()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
