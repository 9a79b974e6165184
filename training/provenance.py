"""How weights came to be: the story that a run leaves in its checkpoint, a manifest repeats, and a later run begins
with."""

import json
from pathlib import Path
from typing import Any

import torch

from encoder.manifest import Manifest, ManifestError, model_digest

PAPERS = {
    "simclr": "SimCLR (NT-Xent)",
    "moco": "MoCo v2",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlow": "Barlow Twins",
    "vicreg": "VICReg",
    "distill": "self-distillation across image sizes",
}
# Knobs that say nothing about the weights.
NO_RECIPE = {
    *("data", "resume", "check", "out", "limit", "device", "init", "damaged", "memory"),
    *("watch", "watch_minutes", "tensorboard", "stop_on_collapse", "log_every", "checkpoint_minutes"),
}


def story(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's weights were trained on and how; what they began with, where that was not random."""
    recipe = json.loads(checkpoint["knobs"])
    method = recipe.get("method", "simclr")
    knobs = {key: recipe[key] for key in sorted(recipe.keys() - NO_RECIPE) if key not in PAPERS or key == method}
    return {
        "objective": "SimCLR, decoupled (DCL)" if method == "simclr" and recipe["decoupled"] else PAPERS[method],
        "data": ", ".join(recipe["data"]),
        "initialisation": "an earlier encoder" if checkpoint.get("begun_with") else "random",
        "labels": "none; the probe alone saw labels",
        **checkpoint["progress"],
        **checkpoint["made"],
        "recipe": knobs,
    } | ({"begun_with": checkpoint["begun_with"]} if checkpoint.get("begun_with") else {})


def story_of(weights: Path) -> dict[str, Any]:
    """The story of a run's checkpoint, or of exported weights as the manifest beside them tells it."""
    if weights.suffix != ".safetensors":
        return story(torch.load(weights, map_location="cpu", weights_only=True))
    manifest = described(weights)
    return manifest.provenance if manifest else {"weights": weights.name}


def described(weights: Path) -> Manifest | None:
    """The manifest beside exported weights, if they are the ones it describes."""
    try:
        manifest = Manifest.read(weights.parent, weights.stem)
    except ManifestError:  # perhaps what an export is to mend
        return None
    return manifest if manifest.model_digest == model_digest(weights, manifest.preprocess) else None
