"""A model store with the torch-native int8 artifact in it, made from the shipped one beside it."""

import json
import shutil
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from torch import nn

from encoder.golden import check_golden, golden_batch
from encoder.manifest import Artifact, Manifest
from encoder.session import TORCH_PROVIDER, Embedded, Session, read_checked, run
from encoder.torch_runtime import open_torch_session
from export.fidelity import Budget, Fidelity, compare
from export.graph import Served
from export.to_torch_int8 import DESCRIPTION, RangeError, read_ranges, to_torch_int8
from training.checkpoint import load_backbone
from training.labelled import Split
from training.probe import fit_probe

BATCH = 100
# The golden vectors are those of the ONNX artifact, so that they can fail. Their pictures are unlike any photo, and
# torch rounds sums and biases elsewhere: 0.9953 at worst, where fp32 itself comes out with 0.985.
GOLDEN_MIN_COSINE = 0.99


class HeldOut(NamedTuple):
    """Labelled images to hold int8 against fp32 on."""

    split: Split
    rows: np.ndarray  # (N,) bool, which of them calibration has not seen


def write_torch_store(
    weights: Path, shipped: Manifest, out: Path, evidence: HeldOut | None, budget: Budget
) -> Manifest:
    """Writes NAME.torch-int8.pt, NAME.json and the gallery seed, NAME being that of `weights`, the .safetensors that
    `shipped` describes. Without `evidence` its fidelity is not measured; the golden vectors are compared always."""
    ranges = read_ranges(onnx.load_from_string(onnx_artifact(weights.parent, shipped)))
    served = exported(weights)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        path = Path(folder) / f"{weights.stem}.torch-int8.pt"
        to_torch_int8(served, ranges, shipped.preprocess.size, path)
        model = path.read_bytes()
        session = open_torch_session(model, torch.get_num_threads())
        golden = run(session, golden_batch(shipped.golden, shipped.preprocess.size))
        check_golden(shipped.golden, golden.vectors, GOLDEN_MIN_COSINE, TORCH_PROVIDER)
        metrics: dict[str, Any] = {}  # the shipped ones are of another artifact
        if evidence:
            fidelity = measure(served, session, evidence)
            print(json.dumps(fidelity.to_json()), flush=True)
            fidelity.check(budget)
            metrics["fidelity"] = fidelity.to_json()
        if (seed := shipped.gallery_seed) is not None and out.resolve() != weights.parent.resolve():
            shutil.copyfile(weights.parent / seed["file"], out / seed["file"])
        path.replace(out / path.name)
    artifact = Artifact(
        path.name, sha256(model).hexdigest(), "int8", DESCRIPTION, (TORCH_PROVIDER,), runtime="torch"
    )
    manifest = replace(shipped, artifacts=(artifact,), golden_min_cosine=GOLDEN_MIN_COSINE, metrics=metrics)
    manifest.write(out, weights.stem)
    return manifest


def onnx_artifact(model_store: Path, manifest: Manifest) -> bytes:
    """The int8 ONNX graph that the manifest names."""
    for artifact in manifest.artifacts:
        if artifact.runtime == "onnx" and artifact.precision == "int8":
            return read_checked(model_store / artifact.file, artifact.sha256)
    raise RangeError(f"{model_store} has no int8 ONNX artifact to take activation ranges from; run `akin export`")


def exported(weights: Path) -> Served:
    """Backbone and probe of an exported .safetensors, in fp32, BatchNorm not folded."""
    state = load_file(weights)
    classes, dimension = state["probe.weight"].shape
    probe = nn.Linear(dimension, classes)
    probe.load_state_dict({"weight": state["probe.weight"], "bias": state["probe.bias"]})
    return Served(load_backbone(str(weights)), probe).eval()


def measure(served: Served, session: Session, evidence: HeldOut) -> Fidelity:
    images, labels = evidence.split
    batches = [images[row : row + BATCH] for row in range(0, len(images), BATCH)]
    with torch.no_grad():
        fp32 = joined([Embedded(*(x.numpy() for x in served(torch.from_numpy(batch)))) for batch in batches])
    int8 = joined([run(session, batch) for batch in batches])
    return compare(fp32, int8, labels, evidence.rows, fit_probe(fp32.vectors, labels).strength, cross_validated=True)


def joined(parts: list[Embedded]) -> Embedded:
    return Embedded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
