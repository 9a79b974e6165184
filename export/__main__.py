"""Make the encoder servable:  akin export --weights runs/NAME/checkpoint.pt --data data [--test]

Reads   a run's checkpoint (or model_store/encoder.safetensors, to make everything again from it) and STL-10's
        train split: for the probe, for calibration, and for holding int8 against fp32
Writes  model_store/: encoder.safetensors, encoder.int8.onnx, encoder.json, gallery.npz, MODEL_CARD.md, and with
        --test the numbers of the test split in them. Nothing is written when int8 is outside the fidelity budget.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
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
from export.fidelity import HELD_OUT, Budget, compare
from export.graph import Served, fold_batch_norm, linear_of
from export.quantize import DESCRIPTION, quantize
from export.to_onnx import to_onnx
from export.weights import half_precision, write_weights
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from training import knobs
from training.backbone import Backbone
from training.evaluate import Embed, Split, embed_images, load_backbone, on_test, read_split, torch_embedder
from training.probe import fit_probe, percent

BATCH = 100
GOLDEN_SEEDS = range(8)
DEFAULT_SIZE = 64
NO_RECIPE = ("data", "out", "resume", "check", "limit", "device")  # knobs that say nothing about the weights


@dataclass(frozen=True)
class Export:
    weights: str = "model_store/encoder.safetensors"  # a run's checkpoint.pt, or the .safetensors of an export
    data: str = "data"  # a folder with STL-10
    out: str = "model_store"
    name: str = "encoder"  # of the files
    model: str = "simclr-resnet18"  # name that answers carry
    size: int = 0  # side of the served image in pixels; 0: as exported before, else 64
    calibration: int = 300  # train images that set the int8 ranges
    test: bool = False  # measure on the test split, once, for the card
    trained_on: str = ""  # what the pretraining images were and their licence, for the card


class Measured(NamedTuple):
    """A split of STL-10 and what both graphs give for it."""

    images: np.ndarray  # (N, size, size, 3) uint8
    labels: np.ndarray  # (N,) int64
    fp32: Embedded
    int8: Embedded


def measure(split: Split, fp32: Path, int8: Path) -> Measured:
    return Measured(split.images, split.labels, outputs(fp32, split.images), outputs(int8, split.images))


def outputs(model: Path, images: np.ndarray) -> Embedded:
    """Both outputs of an ONNX graph for all images."""
    session = open_session(model, threads=torch.get_num_threads())
    return joined(run(session, images[row : row + BATCH]) for row in range(0, len(images), BATCH))


def joined(parts: Iterable[Embedded]) -> Embedded:
    return Embedded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def fitted_probe(weights: Path, backbone: Backbone, train: Split) -> tuple[nn.Linear, float, float]:
    """The probe, its strength and its cross-validated accuracy in percent."""
    vectors = embed_images(torch_embedder(backbone, torch.device("cpu")), train.images)
    probe = fit_probe(vectors, train.labels)
    layer = linear_of(probe)
    if weights.suffix == ".safetensors":  # the weights' own probe: the digest stays what it was
        state = load_file(weights)
        layer.load_state_dict({"weight": state["probe.weight"], "bias": state["probe.bias"]})
    return layer, probe.strength, probe.cross_validated


def described(weights: Path) -> Manifest | None:
    """The manifest beside exported weights, if they are the ones it describes."""
    try:
        manifest = Manifest.read(weights.parent, weights.stem)
    except ManifestError:  # perhaps what this export is to mend
        return None
    return manifest if manifest.model_digest == model_digest(weights, manifest.preprocess) else None


def provenance(weights: Path, before: Manifest | None, trained_on: str) -> dict[str, Any]:
    """How the weights came to be: from the checkpoint, or from the manifest `before` of exported weights."""
    if weights.suffix == ".safetensors":
        story = before.provenance if before else {"weights": weights.name}
        return story | ({"data": trained_on} if trained_on else {})
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


def digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_metrics(train: Measured, test: Measured, strength: float, blank: Embed) -> dict[str, Any]:
    """The test split's numbers: what is served, held against fp32, and random weights of the same shape."""
    return {
        "served_logits": round(percent(test.int8.logits, test.labels), 2),
        "fp32_logits": round(percent(test.fp32.logits, test.labels), 2),
        "fidelity": compare(
            joined([train.fp32, test.fp32]),
            joined([train.int8, test.int8]),
            np.concatenate([train.labels, test.labels]),
            np.repeat([False, True], [len(train.labels), len(test.labels)]),
            strength,
        ).to_json(),
        "int8": on_test((train.int8.vectors, train.labels), (test.int8.vectors, test.labels)),
        "random": on_test(
            (embed_images(blank, train.images), train.labels), (embed_images(blank, test.images), test.labels)
        ),
    }


def export(config: Export) -> Manifest:
    weights, data, out = Path(config.weights), Path(config.data), Path(config.out)
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
        source, fp32, int8 = (work / f"{config.name}.{kind}" for kind in ("safetensors", "fp32.onnx", "int8.onnx"))
        write_weights(source, backbone, probe)
        to_onnx(Served(fold_batch_norm(backbone), probe), spec.size, fp32)
        quantize(fp32, int8, split.images[calibration])
        print("graphs written; embedding the train split with both", flush=True)
        train = measure(split, fp32, int8)
        fidelity = compare(train.fp32, train.int8, train.labels, held_out, strength)
        print(json.dumps(fidelity.to_json()), flush=True)
        fidelity.check(Budget())
        metrics: dict[str, Any] = {"train_cross_validated": round(cross_validated, 2), "fidelity": fidelity.to_json()}
        if config.test:
            test = measure(read_split(data, "test", spec.size), fp32, int8)
            blank = torch_embedder(load_backbone("random", backbone.stem), torch.device("cpu"))
            metrics["test"] = test_metrics(train, test, strength, blank)
        golden = run(open_session(int8), golden_batch([Golden(s, ()) for s in GOLDEN_SEEDS], spec.size)).vectors
        manifest = Manifest(
            model=config.model,
            model_digest=model_digest(source, spec),
            dimension=train.int8.vectors.shape[1],
            class_names=CLASS_NAMES,
            preprocess=spec,
            artifacts=(Artifact(int8.name, digest_of(int8), "int8", DESCRIPTION, ("CPUExecutionProvider",)),),
            golden=tuple(
                Golden(seed, tuple(round(float(value), 6) for value in vector))
                for seed, vector in zip(GOLDEN_SEEDS, golden, strict=True)
            ),
            gallery_seed=write_gallery_seed(work / "gallery.npz", train.int8.vectors, train.labels),
            provenance=story,
            metrics=metrics,
        )
        for path in (source, int8, work / "gallery.npz"):
            path.chmod(0o644)  # safetensors writes for its owner alone
            path.replace(out / path.name)
        manifest.write(out, config.name)
    (out / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Export(), argv, "akin export", (__doc__ or "").splitlines()[0])
    manifest = export(config)
    print(f"{config.out}: {manifest.model_id}, {DESCRIPTION}; see {config.out}/MODEL_CARD.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
