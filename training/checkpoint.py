"""A run on disk: checkpoint.pt, whole at any moment, and read back without pickle's powers (weights_only)."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from training import distributed
from training.backbone import Backbone, Norm, Stem
from training.objectives import Objective
from training.recipes import Pretrain


@dataclass
class Run:
    """All that changes while training; what a checkpoint holds."""

    knobs: Pretrain
    model: Objective
    optimizers: list[torch.optim.Optimizer]
    peaks: list[float]  # each optimizer's learning rate at its peak
    average: Backbone | None = None  # moving, of the backbone, where knobs.ema asks for it
    step: int = 0
    seconds: float = 0.0  # of training, over all sittings
    images: int = 0  # seen, each counted once however many views it gives
    made: dict[str, str] = field(default_factory=dict)  # with what, as of the sitting's start
    begun_with: dict[str, Any] = field(default_factory=dict)  # the story of an earlier encoder that --init named

    @property
    def kept(self) -> Backbone:
        """The backbone that is evaluated and exported: its moving average where there is one."""
        return self.average if self.average is not None else self.model.backbone


def save(run: Run, out: Path) -> None:
    """Write the checkpoint so that a kill at any moment leaves the old one or the new one, whole; and never one
    of weights that are not finite. Of several processes the first writes."""
    if not all(bool(value.isfinite().all()) for value in run.model.state_dict().values()):
        raise SystemExit(diverged(run, out, "weights are no longer finite"))
    if distributed.rank() > 0:
        return
    state: dict[str, Any] = {
        "knobs": json.dumps(asdict(run.knobs)),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "progress": {"step": run.step, "seconds": run.seconds, "images": run.images},
        "made": run.made,
        "begun_with": run.begun_with,
    }
    if run.average is not None:
        state["average"] = run.average.state_dict()
    fresh = out / "checkpoint.pt.part"
    with fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(out / "checkpoint.pt")


def read(out: Path, device: torch.device) -> dict[str, Any]:
    """The checkpoint of the run in `out`."""
    path = out / "checkpoint.pt"
    if not path.exists():
        raise SystemExit(f"there is no run in {out} to go on with; leave out --resume to start a run there")
    return torch.load(path, map_location=device, weights_only=True)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring a run that was started with the checkpoint's knobs to where the checkpoint left it."""
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.step, run.seconds = state["progress"]["step"], state["progress"]["seconds"]
    run.images, run.begun_with = state["progress"]["images"], state["begun_with"]


def diverged(run: Run, out: Path, sign: str) -> str:
    """What to say when training has blown up."""
    kept = "holds the last good state" if (out / "checkpoint.pt").exists() else "was not written yet"
    rate = run.optimizers[0].param_groups[0]["lr"]
    return (
        f"{sign} at step {run.step} (learning rate {rate:.3g}); lower --lr, lengthen --warmup, or raise "
        f"--temperature. {out / 'checkpoint.pt'} {kept}."
    )


def require_finite(run: Run, out: Path, loss: float) -> None:
    if not math.isfinite(loss):
        raise SystemExit(diverged(run, out, f"the loss became {loss}"))


def load_backbone(weights: str, stem: Stem = "standard", norm: Norm = "batch") -> Backbone:
    """The backbone of a run's checkpoint (its moving average where it has one) or of an exported .safetensors;
    `random`: fresh weights with `stem` and `norm`, seed 0."""
    if weights == "random":
        torch.manual_seed(0)
        return Backbone(stem, norm)
    path = Path(weights)
    if not path.is_file():
        raise SystemExit(f"there are no weights at {path}; name a run's checkpoint.pt or an exported .safetensors")
    kind, state = _stored(path)
    backbone = Backbone(**kind)
    prefix = "backbone."
    missing, unexpected = backbone.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, strict=False
    )
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(
            f"{path} does not hold a backbone with stem {backbone.stem}: missing {missing}, extra {unexpected}"
        )
    return backbone


def _stored(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What kind of Backbone a file holds, and its weights under names that begin with `backbone.`."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, it is no dict
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        told = json.loads(checkpoint.get("knobs", "{}"))
        state = checkpoint.get("model", {})
        if "average" in checkpoint:
            state = {f"backbone.{name}": value for name, value in checkpoint["average"].items()}
    if "stem" not in told:
        raise SystemExit(f"{path} is not from akin: it does not say which backbone it holds; name another file")
    return {"stem": told["stem"], "norm": told.get("norm", "batch")}, state
