"""Measure an encoder on STL-10's labels:  akin evaluate --weights runs/NAME/checkpoint.pt --data data [--test]

Reads   STL-10 (its binaries, or stl10-train.zip and stl10-test.zip) and an encoder: a run's checkpoint, a
        .safetensors of export, `random` (fresh weights: the line every claim starts from), or with --onnx the
        int8 artifact that is served
Writes  JSON to standard output or --out; with --vectors the embeddings of the train split as .npy

Without --test everything happens inside the train labels: epochs, sizes and strengths are chosen there.
With it, one fit on all train labels and on 5% of them is measured on the test split, which chooses nothing.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from encoder.session import Encoder
from images.decode import ImageError
from images.sources import decoded, open_source
from images.spec import PreprocessSpec
from training import knobs, probe
from training.backbone import Backbone
from training.pretrain import pick_device

Embed = Callable[[np.ndarray], np.ndarray]  # (N, size, size, 3) uint8 -> (N, D) float32 unit vectors
BATCH = 250


@dataclass(frozen=True)
class Evaluate:
    data: str = "data"  # a folder with STL-10
    weights: str = "model_store/encoder.safetensors"  # checkpoint.pt, encoder.safetensors, or random
    onnx: str = ""  # a model store: measure the artifact that is served from it, at its own size
    sizes: tuple[int, ...] = (64,)  # sides to measure at, in pixels
    test: bool = False  # also measure on the test split
    stem: str = "small"  # of random weights
    vectors: str = ""  # .npy to write the train split's embeddings to (of the last size)
    out: str = ""  # JSON file to write


class Split(NamedTuple):
    """A labelled split of STL-10 as the encoder sees it."""

    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) int64, from 0


def read_split(data: Path, split: str, size: int) -> Split:
    """`train` or `test`. Pixels come from images.decode, as in the server, so both see the same bytes."""
    rows = list(decoded(open_source(data, split), PreprocessSpec(size=size), on_error=refuse))
    labels = [row.label for row in rows if row.label is not None]
    if not rows or len(labels) < len(rows):
        raise SystemExit(
            f"{data}: {len(rows) - len(labels)} of {len(rows)} {split} images have no label; zip files need "
            "class_names.txt beside them and names like 00042.7.webp"
        )
    return Split(np.stack([row.pixels for row in rows]), np.array(labels))


def embed_images(embed: Embed, images: np.ndarray) -> np.ndarray:
    """(N, D) float32 unit vectors of images (N, size, size, 3) uint8, a batch at a time."""
    return np.concatenate([embed(images[row : row + BATCH]) for row in range(0, len(images), BATCH)])


def embed_split(embed: Embed, data: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (N, D) float32 and labels (N,) of an STL-10 split."""
    images, labels = read_split(data, split, size)
    return embed_images(embed, images), labels


def refuse(name: str, error: ImageError) -> None:
    raise SystemExit(f"{name} of the evaluation set cannot be read: {error}; replace the data")


def torch_embedder(backbone: Backbone, device: torch.device) -> Embed:
    backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def embed(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255
        return F.normalize(backbone(x), dim=1).cpu().numpy()

    return embed


def load_backbone(weights: str, stem: str = "standard") -> Backbone:
    """The backbone of a run's checkpoint or of an exported .safetensors; `random`: fresh weights, seed 0."""
    if weights == "random":
        torch.manual_seed(0)
        return Backbone(stem)
    path = Path(weights)
    if not path.exists():
        raise SystemExit(f"there are no weights at {path}; train some with `akin pretrain`, or pass `random`")
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            stem = file.metadata()["stem"]
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, it is no dict
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        stem, state = json.loads(checkpoint["knobs"])["stem"], checkpoint["model"]
    backbone = Backbone(stem)
    prefix = "backbone."
    missing, unexpected = backbone.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, strict=False
    )
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"{path} does not hold a backbone with stem {stem}: missing {missing}, extra {unexpected}")
    return backbone


def inside_train(vectors: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What may be looked at while choosing: cross-validated probe and leave-one-out neighbours, in percent."""
    fitted = probe.fit_probe(vectors, labels)
    nearest = probe.neighbor_accuracy(vectors, labels, None, labels)
    return {"linear": round(fitted.cross_validated, 2), "knn20": round(nearest, 2), "strength": fitted.strength}


def on_test(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The final numbers, in percent: all train labels, and 5% of them in ten stratified draws (mean, sd)."""
    linear = probe.fit_probe(*train).accuracy(*test)
    nearest = probe.neighbor_accuracy(*train, *test)
    few_linear, few_nearest = probe.few_label_accuracy(*train, *test)
    return {
        "linear": round(linear, 2),
        "knn20": round(nearest, 2),
        "linear_5_percent": [round(value, 2) for value in few_linear],
        "knn20_5_percent": [round(value, 2) for value in few_nearest],
    }


def evaluate(embed: Embed, data: Path, size: int, test: bool, vectors_out: str = "") -> dict[str, Any]:
    """All metrics of one embedder at one image size."""
    train = embed_split(embed, data, "train", size)
    if vectors_out:
        np.save(vectors_out, train[0])
    result = {"size": size, "train": inside_train(*train)}
    return result | ({"test": on_test(train, embed_split(embed, data, "test", size))} if test else {})


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Evaluate(), argv, "akin evaluate", (__doc__ or "").splitlines()[0])
    embed: Embed
    if config.onnx:
        served = Encoder.load(Path(config.onnx))
        name, sizes = served.manifest.model_id, [served.manifest.preprocess.size]
        embed = lambda batch: served.embed(batch).vectors  # noqa: E731
    else:
        embed = torch_embedder(load_backbone(config.weights, config.stem), pick_device("auto"))
        name, sizes = config.weights, list(config.sizes)
    results = [evaluate(embed, Path(config.data), size, config.test, config.vectors) for size in sizes]
    text = json.dumps({"encoder": name, "data": "STL-10", "results": results}, indent=1)
    print(text)
    if config.out:
        Path(config.out).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
