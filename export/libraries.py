"""Networks of other libraries without their classification heads, and what each library knows about their pixels.

Every function here takes a model's name, whether to give it the weights that its library publishes (else they are
random), and the side of the image in pixels (0: the library's).
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.foreign_error import ForeignError

TORCHVISION_HEADS = ("fc", "classifier", "head", "heads")  # the part that has the last layer in it
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which Hugging Face's files have


@dataclass(frozen=True)
class Pixels:
    """How a library makes the pixels of a model."""

    mean: tuple[float, ...]  # of each channel, in [0, 1]
    std: tuple[float, ...]
    resize: int  # pixels of the shorter side
    crop: int  # pixels a side that are left of its centre
    interpolation: str


@dataclass(frozen=True)
class Built:
    """A network of another library."""

    network: nn.Module  # whose weights have the names that its library gives them
    encoder: nn.Module  # (N, 3, S, S) normalised float32 -> (N, D) features
    pixels: Pixels
    library: str  # "timm 1.0.31"
    heads: tuple[str, ...]  # where weights of a classification head, which it has not, may be
    dropped: tuple[str, ...] = ()  # names of published weights that were not taken


def from_torchvision(name: str, published: bool, size: int) -> Built:
    import torchvision
    from torchvision import models

    require_known(name, models.list_models(module=models), "torchvision")
    weights = models.get_model_weights(name).DEFAULT
    told = weights.transforms()
    pixels = Pixels(
        tuple(told.mean), tuple(told.std), told.resize_size[0], told.crop_size[0], told.interpolation.value
    )
    fixed = {"image_size": size or pixels.crop} if name.startswith("vit_") else {}
    network = build(
        lambda: models.get_model(name, weights=weights if published else None, **fixed),
        f"torchvision:{name}",
        published,
    )
    head = remove_last_linear(network, name)
    return Built(network, network, pixels, f"torchvision {torchvision.__version__}", (head,))


def remove_last_linear(network: nn.Module, name: str) -> str:
    """Puts nothing in the place of the layer that gives the classes; its name."""
    linears = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path.partition(".")[0] in TORCHVISION_HEADS
    ]
    if not linears:
        raise ForeignError(f"torchvision:{name} does not end in a linear layer; take timm's model of that name")
    network.set_submodule(linears[-1], nn.Identity())
    return linears[-1]


def from_timm(name: str, published: bool, size: int) -> Built:
    import timm  # here alone, and transformers below: slow to import, and for few

    if not timm.is_model(name):
        require_known(name, timm.list_models(), "timm")
    told = timm.get_pretrained_cfg(name)
    if told is None:
        raise ForeignError(f"timm:{name}: timm knows no mean, deviation and size for it; name a model that it has")
    side = told.input_size[-1]
    resize = math.floor(side / told.crop_pct) if told.crop_mode == "center" else side
    pixels = Pixels(tuple(told.mean), tuple(told.std), resize, side, told.interpolation)
    fixed: dict[str, Any] = {"img_size": size or side} if told.fixed_input_size else {}
    network = build(
        lambda: timm.create_model(name, pretrained=published, num_classes=0, **fixed), f"timm:{name}", published
    )
    heads = (told.classifier,) if isinstance(told.classifier, str) else tuple(told.classifier or ())
    return Built(network, network, pixels, f"timm {timm.__version__}", heads)


def from_hugging_face(name: str, published: bool, size: int) -> Built:
    """`name` is a folder; published: with the weights in it. Nothing is downloaded."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = Path(name)
    pixels = hugging_face_pixels(folder)
    dropped: list[str] = []

    def model() -> nn.Module:
        if not published:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            return transformers.AutoModel.from_config(config)
        found, loading = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
        if missing := sorted(loading["missing_keys"]):
            raise ForeignError(f"model.safetensors of {folder} lacks {', '.join(missing[:5])}; fetch it again")
        dropped.extend(sorted(loading["unexpected_keys"]))
        return found

    network = build(model, f"hf:{name}", published)
    version = f"transformers {transformers.__version__}"
    return Built(network, FirstToken(network), pixels, version, ("classifier", "head"), tuple(dropped))


class FirstToken(nn.Module):
    """A Hugging Face model as (N, 3, S, S) -> (N, D): its class token behind the last norm or, where it has none,
    what the model itself pools."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.has_class_token = any(name.endswith("cls_token") for name, _ in model.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        given = self.model(pixel_values=x)
        return given.last_hidden_state[:, 0] if self.has_class_token else given.pooler_output.flatten(1)


def hugging_face_pixels(folder: Path) -> Pixels:
    """What preprocessor_config.json says."""
    path = folder / "preprocessor_config.json"
    try:
        told = json.loads(path.read_bytes())
        if not told.get("do_rescale", True) or abs(255 * told.get("rescale_factor", 1 / 255) - 1) > 1e-3:
            raise ValueError("pixels are not rescaled by 1/255")
        resize = _side(told["size"])
        crop = _side(told["crop_size"]) if told.get("do_center_crop") else resize
        interpolation = INTERPOLATIONS.get(told.get("resample", 2), "neither bilinear nor bicubic")
        return Pixels(tuple(told["image_mean"]), tuple(told["image_std"]), resize, crop, interpolation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForeignError(
            f"{path} does not say size, image_mean and image_std of pixels in [0, 1] ({error!r}); put the one there "
            "that is published with config.json and model.safetensors"
        ) from error


def _side(size: Any) -> int:
    return size if isinstance(size, int) else int(size.get("shortest_edge") or size["height"])


def require_known(name: str, known: Iterable[str], of: str) -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names) or names[:3]
        raise ForeignError(f"{of} has no model {name!r}; close to it are {', '.join(near)}")


def build(model: Callable[[], nn.Module], source: str, published: bool) -> nn.Module:
    """What `model` makes or, where its library cannot, an error with a way out."""
    try:
        return model()
    except ForeignError:
        raise
    except Exception as error:  # downloads and constructors of other libraries have no common base
        reason = str(error).partition("\n")[0] or type(error).__name__
        way_out = "give its weights with --weights FILE, or --random to try it out" if published else "change --size"
        what = " with the weights that are published for it" if published else ""
        raise ForeignError(f"{source} cannot be built{what} ({reason}); {way_out}") from error
