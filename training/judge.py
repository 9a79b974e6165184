"""How good features are, fast and inside the train labels: what an ablation and a speedrun compare.

The linear probe is cross-validated at one strength, so nothing is chosen; `akin evaluate` searches it.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedKFold

from images.sources import SourceError, open_source
from training import probe
from training.backbone import Backbone
from training.features import embed_images, torch_embedder
from training.health import effective_rank
from training.labelled import Split, read_split

# Of the probe's L2 penalty (C): within half a point of the best one for random weights and for trained ones.
STRENGTH = 3e-3


class Judgement(NamedTuple):
    """Of unit embeddings, on the images they were all taken from."""

    linear: float  # percent, 5-fold cross-validation at STRENGTH
    knn20: float  # percent, leave-one-out
    tightness: float  # see `tightness`
    silhouette: float  # -1 to 1 (Rousseeuw 1987) by cosine: how much nearer the own class is than the next one
    effective_rank: float  # 1 to the dimension of the embeddings


def judge(backbone: Backbone, labelled: Split, device: torch.device) -> Judgement:
    """Judge a backbone, which is left in evaluation mode on `device`."""
    vectors = embed_images(torch_embedder(backbone, device), labelled.images)
    return judged(vectors, labelled.labels)


def judged(vectors: np.ndarray, labels: np.ndarray) -> Judgement:
    """vectors: (N, D) float32 of unit length; labels: (N,) integers, at least five of each class."""
    centred = directions(vectors)
    return Judgement(
        linear=cross_validated(vectors, labels),
        knn20=probe.neighbor_accuracy(vectors, labels, None, labels),
        tightness=tightness(vectors, labels),
        silhouette=float(silhouette_score(centred, labels, metric="cosine")),
        effective_rank=effective_rank(torch.from_numpy(vectors)),
    )


def cross_validated(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Percent that a linear probe of fixed strength gets right, each fold asked of one fitted on the others."""
    hits = 0.0
    for known, asked in StratifiedKFold(probe.FOLDS, shuffle=True, random_state=0).split(vectors, labels):
        weight, bias = probe.regression(vectors[known], labels[known], STRENGTH)
        hits += probe.percent(vectors[asked] @ weight.T + bias, labels[asked]) * len(asked)
    return hits / len(vectors)


def directions(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (N, D) as seen from their mean, unit again: behind a ReLU all features lie in one narrow cone,
    and cosines from the origin would say more of the cone than of what is in it."""
    centred = vectors - vectors.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-12)


def tightness(vectors: np.ndarray, labels: np.ndarray) -> float:
    """How tight classes are as clusters: the mean cosine of two images of one class minus that of two images of
    different classes, both over all pairs, as seen from the mean of all images.

    0 where the labels say nothing about the vectors; K / (K - 1) where each of K classes of one size is one point,
    all as far from each other as they can be. vectors: (N, D) of unit length; labels: (N,).
    """
    unit = directions(vectors)
    sums = np.stack([unit[labels == label].sum(axis=0) for label in np.unique(labels)]).astype(np.float64)
    sizes = np.unique(labels, return_counts=True)[1]
    same = (sums**2).sum()  # of all ordered pairs of one class, an image with itself among them
    itself = (unit.astype(np.float64) ** 2).sum()
    everything = (sums.sum(axis=0) ** 2).sum()
    pairs_within = (sizes * (sizes - 1)).sum()
    pairs_between = len(labels) ** 2 - (sizes**2).sum()
    return float((same - itself) / pairs_within - (everything - same) / pairs_between)


def find_labelled(labels: str, data: Sequence[str]) -> Path:
    """Where the labels to judge by are: `labels`, else the first of `data` that has a labelled train split."""
    candidates = [labels] if labels else list(data)
    for candidate in candidates:
        if has_labels(Path(candidate)):
            return Path(candidate)
    raise SystemExit(
        f"no labelled STL-10 in {', '.join(candidates)}: features are judged inside its train labels. Name a folder "
        "with stl10_binary/ or stl10-train.zip by --labels; torchvision.datasets.STL10(FOLDER, download=True) "
        "fetches one"
    )


def has_labels(path: Path) -> bool:
    """Whether `path` has a train split whose images carry labels."""
    try:
        return any(item.label is not None for item in islice(open_source(path, "train"), 1))
    except SourceError:
        return False


def read_labelled(path: Path, size: int) -> Split:
    """The train split at `path`, every image size × size."""
    return read_split(path, "train", size)
