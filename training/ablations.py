"""What `akin ablate` sweeps: for every question the values to try, and what a value does to a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.augment import POLICIES
from training.recipes import Pretrain

# Projection heads by hidden width and output width; the first is the presets'.
HEADS: dict[str, dict[str, Any]] = {
    "1024-128": {"hidden": 1024, "output": 128, "head_norm": True},
    "1024-128-plain": {"hidden": 1024, "output": 128, "head_norm": False},
    "256-64": {"hidden": 256, "output": 64, "head_norm": True},
    "2048-256": {"hidden": 2048, "output": 256, "head_norm": True},
}
# Each with a rate that does well with it; SGD's is of a batch of 256 and grows with the batch.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "muon-0.05": {"optimizer": "muon", "lr": 0.05, "momentum": 0.95, "weight_decay": 0.01},
    "sgd-0.06": {"optimizer": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 1e-4},
    "sgd-0.2": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
    "adamw-0.001": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},
}


@dataclass(frozen=True)
class Sweep:
    about: str
    axis: str  # what the values are
    values: tuple[str, ...]
    recipe: Callable[[Pretrain, str], Pretrain]  # a recipe with a value; KeyError or ValueError for what is none
    numeric: bool = False  # any number may be asked for, and values have places on an axis
    panels: tuple[str, ...] = ()  # what the plot draws beside accuracy
    gradients: bool = False  # whether gradient norms are compared with accuracy


def temperature(base: Pretrain, value: str) -> Pretrain:
    return replace(base, temperature=float(value), temperature_end=0.0)


def augmentation(base: Pretrain, value: str) -> Pretrain:
    return replace(base, view=replace(POLICIES[value], size=base.view.size))


def batch(base: Pretrain, value: str) -> Pretrain:
    return replace(base, batch=int(value))


def head(base: Pretrain, value: str) -> Pretrain:
    return replace(base, **HEADS[value])


def optimizer(base: Pretrain, value: str) -> Pretrain:
    changed = replace(base, **OPTIMIZERS[value])
    return replace(changed, lr=changed.lr * base.batch / 256) if changed.optimizer == "sgd" else changed


SWEEPS: Mapping[str, Sweep] = {
    "temperature": Sweep(
        "whether a lower temperature tightens clusters, and whether it collapses them in the end",
        "temperature τ",
        ("0.05", "0.07", "0.1", "0.2", "0.5"),
        temperature,
        numeric=True,
        panels=("tightness", "effective_rank"),
    ),
    "augmentation": Sweep(
        "which changes a view needs, and whether gradient norms tell how good the features become",
        "augmentation policy",
        tuple(POLICIES),
        augmentation,
        gradients=True,
    ),
    "batch": Sweep(
        "what a batch of more negatives is worth in the same time, at the same learning rate",
        "images in a batch",
        ("64", "128", "256", "512"),
        batch,
        numeric=True,
    ),
    "head": Sweep("which projection head to train behind", "projection head", tuple(HEADS), head),
    "optimizer": Sweep(
        "which optimizer learns most in the same time", "optimizer and learning rate", tuple(OPTIMIZERS), optimizer
    ),
}


def recipes(name: str, base: Pretrain, values: Sequence[str] = ()) -> dict[str, Pretrain]:
    """The recipe of each value: of those asked for, else of the sweep's own."""
    sweep, found = SWEEPS[name], {}
    for value in values or sweep.values:
        try:
            found[value] = sweep.recipe(base, value)
        except (KeyError, ValueError) as error:
            way_out = "a number" if sweep.numeric else f"some of {', '.join(sweep.values)}"
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise SystemExit(f"{value!r} is no {sweep.axis} to try{why}; give --values {way_out}") from error
    return found
