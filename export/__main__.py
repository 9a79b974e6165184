"""Make the encoder servable:  akin export --weights runs/NAME/checkpoint.pt --data data [--test]

Reads   a run's checkpoint (or model_store/encoder.safetensors, to make everything again from it) and STL-10's
        train split: for the probe, for calibration, and for holding int8 against fp32
Writes  model_store/: encoder.safetensors, encoder.int8.onnx, encoder.json, gallery.npz, MODEL_CARD.md, and with
        --test the numbers of the test split in them. Nothing is written when int8 is outside the fidelity budget.

For other machines, each a model store of its own:
    akin export --target arm|tensorrt|cuda     var/TARGET, from the same weights
    akin export --runtime torch                var/torch, from the shipped encoder; STL-10 only to measure it
For encoders of other libraries (torchvision, timm, Hugging Face, foreign checkpoints):
    akin export --from SOURCE ...              see export/foreign_export.py, or akin export --from --help
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from encoder.manifest import Artifact, GallerySeed, Manifest, model_digest
from encoder.session import Embedded
from export import foreign_export
from export.card import model_card
from export.fidelity import HELD_OUT, Budget, compare
from export.graph import Served, fold_batch_norm, linear_of
from export.quantize import quantize
from export.targets import TARGETS, in_half
from export.to_onnx import to_onnx
from export.torch_store import HeldOut, joined, write_torch_store
from export.weights import half_precision, write_weights
from export.write import digest_of, golden_of, outputs, publish
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from training import knobs
from training.backbone import Backbone
from training.checkpoint import load_backbone
from training.features import Embed, embed_images, torch_embedder
from training.labelled import Split, read_split
from training.probe import fit_probe, percent
from training.protocol import on_test
from training.provenance import described, story_of

DEFAULT_SIZE = 64


@dataclass(frozen=True)
class Export:
    weights: str = "model_store/encoder.safetensors"  # a run's checkpoint.pt, or the .safetensors of an export
    data: str = "data"  # a folder with STL-10
    out: str = ""  # default: model_store, or for another target or runtime var/ with its name
    name: str = "encoder"  # of the files
    target: Literal["x86", "arm", "tensorrt", "cuda"] = "x86"  # the machine it is to be fast on
    runtime: Literal["onnx", "torch"] = "onnx"  # torch: its own int8, for x86, with the shipped artifact's ranges
    model: str = ""  # name that answers carry (default: the method and resnet18)
    size: int = 0  # side of the served image in pixels; 0: as exported before, else 64
    calibration: int = 300  # train images that set the int8 ranges
    calibrator: Literal["minmax", "percentile", "entropy"] = "minmax"  # how they set them
    test: bool = False  # measure on the test split, once, for the card
    trained_on: str = ""  # what the pretraining images were and their licence, for the card

    def __post_init__(self) -> None:
        if self.ships:
            return
        if self.runtime == "torch" and self.target != "x86":
            raise ValueError(f"--runtime torch is for x86; for {self.target} leave it out")
        if self.test:
            raise ValueError("--test is for the artifact that ships; leave it out, or --target and --runtime")

    @property
    def ships(self) -> bool:
        """Whether this is the artifact that everybody gets."""
        return self.target == "x86" and self.runtime == "onnx"

    @property
    def folder(self) -> Path:
        built = Path("var", "torch" if self.runtime == "torch" else self.target)
        return Path(self.out) if self.out else Path("model_store") if self.ships else built


class Measured(NamedTuple):
    """A split of STL-10 and what both graphs, fp32 and the artifact, give for it."""

    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) int64
    fp32: Embedded
    small: Embedded


def measure(split: Split, fp32: Path, small: Path) -> Measured:
    return Measured(split.images, split.labels, outputs(fp32, split.images), outputs(small, split.images))


def fitted_probe(weights: Path, backbone: Backbone, train: Split) -> tuple[nn.Linear, float, float]:
    """The probe, its strength and its cross-validated accuracy in percent."""
    vectors = embed_images(torch_embedder(backbone, torch.device("cpu")), train.images)
    probe = fit_probe(vectors, train.labels)
    layer = linear_of(probe)
    if weights.suffix == ".safetensors":  # the weights' own probe: the digest stays what it was
        state = load_file(weights)
        if (stored := state["probe.weight"].shape) != layer.weight.shape:
            raise SystemExit(
                f"{weights} holds a probe of {stored[0]} classes and {stored[1]} dimensions, the data has "
                f"{len(layer.weight)} classes and the backbone {layer.in_features} dimensions; export the checkpoint"
            )
        layer.load_state_dict({"weight": state["probe.weight"], "bias": state["probe.bias"]})
    return layer, probe.strength, probe.cross_validated


def provenance(weights: Path, before: Manifest | None, trained_on: str) -> dict[str, Any]:
    """How the weights came to be; `before` is the manifest of exported weights."""
    told = before.provenance if before else story_of(weights)
    return told | ({"data": trained_on} if trained_on else {})


def held_out_and_calibration(images: int, calibration: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the train images int8 is measured on, (images,) bool, and the row numbers of others that set its
    ranges; drawn with seed 0."""
    if images < HELD_OUT + calibration:
        raise SystemExit(
            f"{images} train images are too few: {HELD_OUT} are held out and --calibration asks for {calibration} "
            "others; give all of STL-10's train split"
        )
    shuffled = np.random.default_rng(0).permutation(images)
    held_out = np.zeros(images, bool)
    held_out[shuffled[:HELD_OUT]] = True
    return held_out, shuffled[HELD_OUT : HELD_OUT + calibration]


def write_gallery_seed(path: Path, vectors: np.ndarray, labels: np.ndarray) -> GallerySeed:
    """ids, class names and int8-model vectors of the train images; no pixels."""
    ids = np.array([f"stl10-train-{row:05d}" for row in range(len(vectors))])
    names = np.array(CLASS_NAMES)[labels]
    np.savez(path, ids=ids, labels=names, vectors=vectors.astype(np.float16))
    return {"file": path.name, "sha256": digest_of(path), "rows": len(vectors)}


def test_metrics(train: Measured, test: Measured, strength: float, blank: Embed) -> dict[str, Any]:
    """The test split's numbers: what is served, held against fp32, and random weights of the same shape."""
    return {
        "served_logits": round(percent(test.small.logits, test.labels), 2),
        "fp32_logits": round(percent(test.fp32.logits, test.labels), 2),
        "fidelity": compare(
            joined([train.fp32, test.fp32]),
            joined([train.small, test.small]),
            np.concatenate([train.labels, test.labels]),
            np.repeat([False, True], [len(train.labels), len(test.labels)]),
            strength,
        ).to_json(),
        "int8": on_test((train.small.vectors, train.labels), (test.small.vectors, test.labels)),
        "random": on_test(
            (embed_images(blank, train.images), train.labels), (embed_images(blank, test.images), test.labels)
        ),
    }


def export(config: Export) -> Manifest:
    weights, data, out, target = Path(config.weights), Path(config.data), config.folder, TARGETS[config.target]
    before = described(weights) if weights.suffix == ".safetensors" else None
    spec = PreprocessSpec(size=config.size or (before.preprocess.size if before else DEFAULT_SIZE))
    split = read_split(data, "train", spec.size)
    held_out, calibration = held_out_and_calibration(len(split.images), config.calibration)

    backbone = half_precision(load_backbone(config.weights))
    probe, strength, cross_validated = fitted_probe(weights, backbone, split)
    story = provenance(weights, before, config.trained_on)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:  # on the same disk, to be renamed from
        work = Path(folder)
        kinds = ("safetensors", "fp32.onnx", f"{target.precision}.onnx")
        source, fp32, small = (work / f"{config.name}.{kind}" for kind in kinds)
        write_weights(source, backbone, probe)
        served = Served(fold_batch_norm(backbone), probe)
        to_onnx(served, spec.size, fp32)
        if target.scheme is None:
            to_onnx(in_half(served), spec.size, small)
        else:
            quantize(fp32, small, split.images[calibration], target.scheme, config.calibrator)
        print("graphs written; embedding the train split with both", flush=True)
        train = measure(split, fp32, small)
        fidelity = compare(train.fp32, train.small, train.labels, held_out, strength, cross_validated=True)
        if not target.measured_here:
            print(f"on this CPU, which simulates {target.provider}; there it is unmeasured", flush=True)
        print(json.dumps(fidelity.to_json(target.precision)), flush=True)
        fidelity.check(Budget(), target.precision)
        metrics: dict[str, Any] = {
            "train_cross_validated": round(cross_validated, 2),
            "fidelity": fidelity.to_json(target.precision),
        }
        if config.test:
            test = measure(read_split(data, "test", spec.size), fp32, small)
            blank = torch_embedder(load_backbone("random", backbone.stem, backbone.norm), torch.device("cpu"))
            metrics["test"] = test_metrics(train, test, strength, blank)
        manifest = Manifest(
            model=config.model or f"{story.get('recipe', {}).get('method', 'simclr')}-resnet18",
            model_digest=model_digest(source, spec),
            dimension=train.small.vectors.shape[1],
            class_names=CLASS_NAMES,
            preprocess=spec,
            artifacts=(
                Artifact(small.name, digest_of(small), target.precision, target.description, (target.provider,)),
            ),
            golden=golden_of(small, spec.size),
            gallery_seed=write_gallery_seed(work / "gallery.npz", train.small.vectors, train.labels),
            provenance=story,
            metrics=metrics,
        )
        publish((source, small, work / "gallery.npz"), manifest, model_card(manifest), out, config.name)
    return manifest


def export_torch(config: Export) -> Manifest:
    weights, data = Path(config.weights), Path(config.data)
    shipped = described(weights) if weights.suffix == ".safetensors" else None
    if shipped is None:
        raise SystemExit(f"{weights} is no exported encoder with its manifest: first `akin export` without --runtime")
    evidence = None
    if data.exists():
        split = read_split(data, "train", shipped.preprocess.size)
        evidence = HeldOut(split, held_out_and_calibration(len(split.images), 0)[0])
    else:
        print(f"no STL-10 at {data}: fidelity is not measured, the golden vectors alone are compared", flush=True)
    return write_torch_store(weights, shipped, config.folder, evidence, Budget())


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--from" for word in argv):
        return foreign_export.main(argv)
    about = f"{(__doc__ or '').splitlines()[0]} For other libraries' encoders: akin export --from --help"
    config = knobs.parse(Export(), argv, "akin export", about)
    manifest = export_torch(config) if config.runtime == "torch" else export(config)
    print(f"{config.folder}: {manifest.model_id}, {manifest.artifacts[0].quantization}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
