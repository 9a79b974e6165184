"""An encoder of another library, filled with its weights and ready to be exported.

load("timm:vit_tiny_patch16_224", Weights(random=True), size=64).encoder    # (N, 3, 64, 64) -> (N, 192)
"""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.foreign_error import ForeignError
from export.foreign_weights import fill, parse_keys, read_state, renamed
from export.libraries import Pixels, from_hugging_face, from_timm, from_torchvision

LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm, "hf": from_hugging_face}


@dataclass(frozen=True)
class Weights:
    """What to fill a network with: a checkpoint, random numbers or, with neither, what its library publishes."""

    file: str = ""
    keys: str = ""  # the key map: see export/foreign_weights.py
    random: bool = False


@dataclass(frozen=True)
class Foreign:
    """An encoder to export."""

    network: nn.Module  # whose weights have the names that its library gives them
    encoder: nn.Module  # (N, 3, crop, crop) normalised float32 -> (N, D) features
    pixels: Pixels  # as it will be served
    own_pixels: Pixels  # as its library has it
    library: str  # "timm 1.0.31"
    source: str  # "timm:vit_tiny_patch16_224"; of a folder its name alone
    weights: str  # which they are
    dropped: tuple[str, ...]  # names of given weights that were not taken


def load(source: str, weights: Weights, size: int = 0) -> Foreign:
    """The network that `source` names: torchvision:NAME, timm:NAME or hf:FOLDER. size: of the served image in
    pixels, of which nothing is cropped off; 0: size and crop as the library has them."""
    kind, _, name = source.partition(":")
    if kind not in LIBRARIES or not name:
        raise ForeignError(f"--from {source!r} names no network; give torchvision:NAME, timm:NAME or hf:FOLDER")
    torch.manual_seed(0)
    built = LIBRARIES[kind](name, not weights.file and not weights.random, size)
    dropped = list(built.dropped)
    if weights.file:
        path = Path(weights.file)
        state, unwanted = renamed(read_state(path), parse_keys(weights.keys))
        dropped += unwanted + fill(built.network, state, built.heads, str(path))
        told = f"{path.name}, sha256 {sha256(path.read_bytes()).hexdigest()}"
    elif weights.random:
        told = "random, seed 0"
    else:
        told = "those of the folder" if kind == "hf" else f"those that {kind} publishes"
    foreign = Foreign(
        built.network,
        built.encoder.eval(),
        replace(built.pixels, resize=size, crop=size) if size else built.pixels,
        built.pixels,
        built.library,
        f"hf:{Path(name).resolve().name}" if kind == "hf" else source,
        told,
        tuple(dropped),
    )
    require_vectors(foreign)
    return foreign


def require_vectors(foreign: Foreign) -> None:
    """Two black images must give two vectors."""
    side = foreign.pixels.crop
    try:
        with torch.no_grad():
            features = foreign.encoder(torch.zeros(2, 3, side, side))
    except Exception as error:  # whatever a network says of a size that it does not take
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ForeignError(
            f"{foreign.source} does not take images of {side} pixels ({reason}); give another --size"
        ) from error
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ForeignError(f"{foreign.source} gives {shape} for two images, not a vector each; name another model")


def write_foreign_weights(path: Path, foreign: Foreign) -> None:
    """The weights as they are, under their library's names, and in the metadata what else makes the model what it
    is. One entry there: several have no fixed order, and the same weights must give the same bytes."""
    told = {"from": foreign.source, "pixels": asdict(foreign.pixels)}
    tensors = {name: value.detach().clone().contiguous() for name, value in foreign.network.state_dict().items()}
    save_file(tensors, path, metadata={"akin": json.dumps(told, sort_keys=True)})
