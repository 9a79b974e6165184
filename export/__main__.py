"""Make the encoder servable:  akin export --weights runs/NAME/checkpoint.pt --data data [--test]

Reads   a run's checkpoint (or model_store/encoder.safetensors, to make everything again from it) and STL-10's
        train split: for the probe, for calibration, and for holding int8 against fp32
Writes  model_store/: encoder.safetensors, encoder.int8.onnx, encoder.json, gallery.npz, MODEL_CARD.md, and with
        --test the numbers of the test split in them. Nothing is written when int8 is outside the fidelity budget.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from encoder.golden import Golden, golden_batch
from encoder.manifest import Artifact, GallerySeed, Manifest, ManifestError, model_digest
from encoder.session import Embedded, open_session, run
from export.card import model_card
from export.fidelity import HELD_OUT, Budget, Fidelity, compare
from export.graph import Served, fold_batch_norm, linear_of
from export.quantize import DESCRIPTION, quantize
from export.to_onnx import to_onnx
from export.weights import half_precision, write_weights
from images.sources import decoded, open_source
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from training import knobs
from training.backbone import Backbone
from training.evaluate import evaluate, load_backbone, on_test, refuse, torch_embedder
from training.probe import fit_probe, percent

BATCH = 100
GOLDEN_SEEDS = range(8)
NO_RECIPE = ("data", "out", "resume", "check", "limit", "device")  # knobs that say nothing about the weights


@dataclass(frozen=True)
class Export:
    weights: str = "model_store/encoder.safetensors"  # a run's checkpoint.pt, or the .safetensors of an export
    data: str = "data"  # a folder with STL-10
    out: str = "model_store"
    name: str = "encoder"  # of the files
    model: str = "simclr-resnet18"  # name that answers carry
    size: int = 64  # side of the served image in pixels
    calibration: int = 300  # train images that set the int8 ranges
    test: bool = False  # measure on the test split, once, for the card
    trained_on: str = ""  # what the pretraining images were and their licence, for the card


class Split(NamedTuple):
    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) integers


def read_split(data: Path, split: str, spec: PreprocessSpec) -> Split:
    rows = list(decoded(open_source(data, split), spec, on_error=refuse))
    return Split(np.stack([row.pixels for row in rows]), np.array([row.label for row in rows]))


def embed_all(model: Path, images: np.ndarray) -> Embedded:
    """Both outputs of an ONNX graph for all images."""
    session = open_session(model, threads=torch.get_num_threads())
    parts = [run(session, images[row : row + BATCH]) for row in range(0, len(images), BATCH)]
    return Embedded(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))


def fitted_probe(weights: Path, backbone: Backbone, train: Split) -> tuple[nn.Linear, float, float]:
    """The probe, its strength and its cross-validated accuracy in percent."""
    embed = torch_embedder(backbone, torch.device("cpu"))
    vectors = np.concatenate([embed(train.images[row : row + BATCH]) for row in range(0, len(train.images), BATCH)])
    probe = fit_probe(vectors, train.labels)
    layer = linear_of(probe)
    if weights.suffix == ".safetensors":  # the weights' own probe: the digest stays what it was
        state = load_file(weights)
        layer.load_state_dict({"weight": state["probe.weight"], "bias": state["probe.bias"]})
    return layer, probe.strength, probe.cross_validated


def provenance(weights: Path, out: Path, name: str, trained_on: str) -> dict[str, Any]:
    """How the weights came to be: from the checkpoint, or from the manifest beside exported weights."""
    if weights.suffix == ".safetensors":
        try:
            return Manifest.read(out, name).provenance
        except ManifestError:
            return {"weights": weights.name}
    checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
    recipe = json.loads(checkpoint["knobs"])
    return {
        "objective": "SimCLR, decoupled (DCL)" if recipe["decoupled"] else "SimCLR (NT-Xent)",
        "data": trained_on or ", ".join(recipe["data"]),
        "initialisation": "random",
        "labels": "none; the probe alone saw labels",
        **checkpoint["progress"],
        **checkpoint["made"],
        "recipe": {
            key: recipe[key] for key in sorted(recipe.keys() - {"data", "resume", "check", "out", "limit", "device"})
        },
    }


def write_gallery_seed(path: Path, vectors: np.ndarray, labels: np.ndarray) -> GallerySeed:
    """ids, class names and int8-model vectors of the train images; no pixels."""
    ids = np.array([f"stl10-train-{row:05d}" for row in range(len(vectors))])
    names = np.array(CLASS_NAMES)[labels]
    np.savez(path, ids=ids, labels=names, vectors=vectors.astype(np.float16))
    return {"file": path.name, "sha256": digest_of(path), "rows": len(vectors)}


def digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_metrics(
    config: Export, fp32: Path, int8: Path, train_int8: Embedded, train: Split, stem: str
) -> dict[str, Any]:
    """The test split's numbers: what is served, its fp32 model, and random weights of the same shape."""
    spec = PreprocessSpec(size=config.size)
    test = read_split(Path(config.data), "test", spec)
    served, exact = embed_all(int8, test.images), embed_all(fp32, test.images)
    blank = torch_embedder(load_backbone("random", stem), torch.device("cpu"))
    return {
        "served_logits": round(percent(served.logits, test.labels), 2),
        "fp32_logits": round(percent(exact.logits, test.labels), 2),
        "cosine_mean": round(float((served.vectors * exact.vectors).sum(axis=1).mean()), 5),
        "int8": on_test((train_int8.vectors, train.labels), (served.vectors, test.labels)),
        "random": evaluate(blank, Path(config.data), config.size, test=True)["test"],
    }


def export(config: Export) -> tuple[Manifest, Fidelity]:
    weights, data, out = Path(config.weights), Path(config.data), Path(config.out)
    spec = PreprocessSpec(size=config.size)
    train = read_split(data, "train", spec)
    shuffled = np.random.default_rng(0).permutation(len(train.images))
    held_out = np.zeros(len(shuffled), bool)
    held_out[shuffled[:HELD_OUT]] = True
    calibration = train.images[shuffled[HELD_OUT : HELD_OUT + config.calibration]]

    backbone = half_precision(load_backbone(config.weights))
    stem = backbone.stem
    probe, strength, cross_validated = fitted_probe(weights, backbone, train)
    story = provenance(weights, out, config.name, config.trained_on)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        work = Path(folder)
        source, fp32, int8 = (work / f"{config.name}.{kind}" for kind in ("safetensors", "fp32.onnx", "int8.onnx"))
        write_weights(source, backbone, probe, stem)
        to_onnx(Served(fold_batch_norm(backbone), probe), config.size, fp32)
        quantize(fp32, int8, calibration)
        print("graphs written; embedding the train split with both", flush=True)
        exact, served = embed_all(fp32, train.images), embed_all(int8, train.images)
        fidelity = compare(exact, served, train.labels, held_out, strength)
        print(json.dumps(fidelity.to_json()), flush=True)
        fidelity.check(Budget())
        metrics: dict[str, Any] = {"train_cross_validated": round(cross_validated, 2), "fidelity": fidelity.to_json()}
        if config.test:
            metrics["test"] = test_metrics(config, fp32, int8, served, train, stem)
        golden = run(open_session(int8), golden_batch([Golden(s, ()) for s in GOLDEN_SEEDS], config.size)).vectors
        manifest = Manifest(
            model=config.model,
            model_digest=model_digest(source, spec),
            dimension=served.vectors.shape[1],
            class_names=CLASS_NAMES,
            preprocess=spec,
            artifacts=(Artifact(int8.name, digest_of(int8), "int8", DESCRIPTION, ("CPUExecutionProvider",)),),
            golden=tuple(
                Golden(seed, tuple(round(float(value), 6) for value in vector))
                for seed, vector in zip(GOLDEN_SEEDS, golden, strict=True)
            ),
            gallery_seed=write_gallery_seed(work / "gallery.npz", served.vectors, train.labels),
            provenance=story,
            metrics=metrics,
        )
        for path in (source, int8, work / "gallery.npz"):
            path.replace(out / path.name)
        manifest.write(out, config.name)
    (out / "MODEL_CARD.md").write_text(model_card(manifest))
    return manifest, fidelity


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Export(), argv, "akin export", (__doc__ or "").splitlines()[0])
    manifest, _ = export(config)
    print(f"{config.out}: {manifest.model_id}, {DESCRIPTION}; see {config.out}/MODEL_CARD.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
