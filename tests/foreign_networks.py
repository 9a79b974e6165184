"""Networks of other libraries for tests: a small DINOv2 folder, checkpoints in others' dress, and pictures.

folder = write_dinov2(tmp_path / "dinov2")            # as Hugging Face publishes one
state = with_outliers(dinov2().state_dict(), 1000)    # says the same, and no 8-bit range can hold it
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from images.decode import resize
from images.spec import PreprocessSpec
from tests.tiny_stl10 import tinted_scene

SIDE, CROP, PATCH, WIDTH, LAYERS = 36, 32, 8, 64, 2
CHANNEL = 5  # that the outliers are planted in
PIXELS = {
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": CROP, "width": CROP},
    "do_center_crop": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def pictures(count: int, size: int, first: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8 scenes, those of ten colours in turn."""
    spec = PreprocessSpec(size=size)
    return np.stack([resize(tinted_scene(row % 10, row), spec) for row in range(first, first + count)])


def write_pictures(path: Path, count: int = 120, size: int = SIDE) -> Path:
    """A .npy of pictures, which is a source of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pictures(count, size))
    return path


def dinov2() -> Dinov2Model:
    """Real layers and few of them: random weights, seed 3."""
    torch.manual_seed(3)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, image_size=CROP, patch_size=PATCH
        )
    ).eval()


def write_dinov2(folder: Path) -> Path:
    """A folder as Hugging Face has it."""
    dinov2().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


def with_outliers(state: dict[str, Tensor], magnitude: float) -> dict[str, Tensor]:
    """The state of a DINOv2 that computes the same: one channel of every norm is `magnitude` times as large, and what
    the next layer makes of it as much smaller. It is how large transformers' activations look."""
    state = {name: value.clone() for name, value in state.items()}
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        readers = {"norm1": [f"attention.{name}_proj" for name in "qkv"], "norm2": ["mlp.fc1"]}
        for norm, following in readers.items():
            state[f"{layer}.{norm}.weight"][CHANNEL] *= magnitude
            state[f"{layer}.{norm}.bias"][CHANNEL] *= magnitude
            for name in following:
                state[f"{layer}.{name}.weight"][:, CHANNEL] /= magnitude
    return state
