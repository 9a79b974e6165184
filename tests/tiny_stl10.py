"""A small STL-10 of generated scenes, and weights of no training, for tests of evaluation and export.

write_tiny_stl10(folder)                   # stl10_binary/ as the official archive has it
write_checkpoint(folder)                   # checkpoint.pt as `akin pretrain` leaves it
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from images.stl10 import CLASS_NAMES
from tests.pictures import scene
from training import pretrain
from training.backbone import Backbone
from training.recipes import PRESETS

CLASSES = len(CLASS_NAMES)
TINTS = np.random.default_rng(7).uniform(0, 255, (CLASSES, 3)).astype(np.float32)  # one colour a class


def write_tiny_stl10(folder: Path, train: int = 120, test: int = 40) -> Path:
    """Write both labelled splits below `folder`, which is returned; classes take turns."""
    binaries = folder / "stl10_binary"
    binaries.mkdir(parents=True)
    for split, count, first_seed in (("train", train, 0), ("test", test, 10_000)):
        images = np.stack([tinted_scene(row % CLASSES, first_seed + row) for row in range(count)])
        images.transpose(0, 3, 2, 1).tofile(binaries / f"{split}_X.bin")
        (np.arange(count, dtype=np.uint8) % CLASSES + 1).tofile(binaries / f"{split}_y.bin")
    return folder


def tinted_scene(label: int, seed: int) -> np.ndarray:
    """(96, 96, 3) uint8: a scene under a film in its class's colour, so that there is something to learn."""
    return (0.5 * np.asarray(scene(96, 96, seed)) + 0.5 * TINTS[label]).astype(np.uint8)


def lively_backbone(stem: str = "standard", seed: int = 0) -> Backbone:
    """Random weights, and BatchNorms that have seen something: none of their numbers is 0 or 1."""
    torch.manual_seed(seed)
    backbone = Backbone(stem).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.6, 1.5)
    return backbone


def write_checkpoint(folder: Path, stem: str = "standard") -> Path:
    """The checkpoint of a run that has not taken a step, with the weights of `lively_backbone`."""
    config = replace(PRESETS["cpu"], stem=stem, hidden=8, output=8, data=("photos",), optimizer="sgd")
    run = pretrain.start(config, torch.device("cpu"))
    run.model.backbone.load_state_dict(lively_backbone(stem).state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    pretrain.save(run, folder)
    return folder / "checkpoint.pt"
