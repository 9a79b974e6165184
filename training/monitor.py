"""What a run looks like while it runs: metrics.jsonl, a line on the terminal, and one picture, report.png."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.objectives import Step

PANELS = {
    "loss": "loss",
    "feature_spread": "feature spread (1/√d: even; 0: collapsed)",
    "effective_rank": "effective rank of the features",
    "projection_norm": "mean norm of the projections",
    "gradient_norm": "gradient norm",
    "lr": "learning rate",
}


@torch.no_grad()
def health(model: nn.Module, step: Step) -> dict[str, float]:
    """Numbers that tell a representation from a collapsed one, on one batch."""
    features = step.features.detach().float()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "feature_spread": float(F.normalize(features, dim=1).std(dim=0).mean()),
        "effective_rank": effective_rank(features),
        "projection_norm": float(step.projections.detach().float().norm(dim=1).mean()),
        "gradient_norm": float(torch.stack([g.norm() for g in gradients]).norm()),
    }


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy and Vetterli 2007):
    1 when all lie on a line, d when they fill all d dimensions evenly. features: (N, d) float."""
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp())


class Monitor:
    """Appends to metrics.jsonl in `out`; `draw` makes report.png from all of it, earlier sittings too."""

    def __init__(self, out: Path, step: int = 0) -> None:
        """step: where the run stands. Rows that a killed sitting logged after its last checkpoint are dropped."""
        self.out = out
        kept = [row for row in self.rows() if row["step"] <= step]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one

    def log(self, row: dict[str, Any], remark: str) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if remark:
            print(
                f"step {row['step']:6d}  loss {row['loss']:.4f}  {row['images_per_second']:6.0f} images/s  "
                f"rank {row['effective_rank']:5.1f}  spread {row['feature_spread']:.4f}  {remark}",
                flush=True,
            )

    def draw(self) -> None:
        from matplotlib.figure import Figure

        rows = self.rows()
        figure = Figure(figsize=(13, 6.5), layout="constrained")
        for axis, (key, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
            axis.plot([row["images"] for row in rows], [row[key] for row in rows], linewidth=1)
            axis.set(title=title, xlabel="images seen")
            axis.grid(alpha=0.3)
        figure.savefig(self.out / "report.png", dpi=110)
