"""Online 20-NN: how well the backbone of a run sorts a labelled set, measured now and then while it trains."""

from pathlib import Path

import numpy as np
import torch

from training import probe
from training.backbone import Backbone
from training.features import embed_images, torch_embedder
from training.labelled import read_split

MOST = 2000  # images: enough for a curve, a point of it within 1%


class Watch:
    """The labelled images that a run is measured on, read once. They are inside the train labels, so that what is
    stopped, kept or chosen by this number has not seen the test split."""

    def __init__(self, folder: Path, size: int, device: torch.device) -> None:
        """folder: with STL-10 or CIFAR-10; size: side the images are brought to, in pixels; device: where the
        backbone is."""
        split = read_split(folder, "train", size)
        rows = evenly(split.labels, MOST)
        self.images, self.labels, self.device = split.images[rows], split.labels[rows], device

    def measure(self, backbone: Backbone) -> float:
        """Leave-one-out 20-NN accuracy in percent. The backbone's weights, BatchNorm statistics and modes stay as
        they are, and no random number is drawn."""
        modes = [(module, module.training) for module in backbone.modules()]
        try:
            vectors = embed_images(torch_embedder(backbone, self.device), self.images)
        finally:
            for module, mode in modes:
                module.training = mode
        return probe.neighbor_accuracy(vectors, self.labels, None, self.labels)


def evenly(labels: np.ndarray, most: int) -> np.ndarray:
    """Rows of at most `most` labels (N,), in order: of every class the first, then of every class the second…"""
    place = np.empty(len(labels), dtype=np.int64)  # the how-manieth of its class a row is
    for label in np.unique(labels):
        members = labels == label
        place[members] = np.arange(members.sum())
    return np.sort(np.argsort(place, kind="stable")[:most])
