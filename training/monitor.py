"""The record of a run: metrics.jsonl, TensorBoard's files, a line on the terminal, and one picture, report.png."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from training.backbone import FEATURES


class Panel(NamedTuple):
    """One curve of the report."""

    title: str
    level: float | None = None  # a horizontal line to compare with…
    level_name: str = ""  # …and what it says


# By key of the rows. A line of the picture each: training; what stays of the network; what its loss is taken of.
PANELS = {
    "loss": Panel("loss"),
    "knn20": Panel("20-NN inside the train labels, %"),
    "lr": Panel("learning rate"),
    "gradient_norm": Panel("gradient norm"),
    "feature_spread": Panel("feature spread (0: collapsed)", 1 / math.sqrt(FEATURES), "1/√d: even"),
    "effective_rank": Panel("effective rank of the features"),
    "alignment": Panel("alignment: distance² of two views"),
    "uniformity": Panel("uniformity (0: collapsed)", -4.0, "evenly spread"),
    "projection_spread": Panel("projection spread × √d (0: collapsed)", 1.0, "even"),
    "projection_rank": Panel("effective rank of the projections"),
    "projection_norm": Panel("mean norm of the projections"),
    "images_per_second": Panel("images a second"),
}
COLUMNS = 4
POINTS = 2000  # of a curve; a long run's rows are averaged down to fewer than twice as many


class Monitor:
    """Appends to metrics.jsonl in `out`; `draw` makes report.png from all of it, earlier sittings too."""

    def __init__(self, out: Path, step: int = 0, tensorboard: bool = False) -> None:
        """step: where the run stands. Rows that a killed sitting logged after its last checkpoint are dropped.
        tensorboard: also write event files to out/tensorboard, where the package is installed."""
        self.out = out
        kept = [row for row in self.rows() if row["step"] <= step]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.events = event_writer(out / "tensorboard", step) if tensorboard else None

    def rows(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one

    def log(self, row: dict[str, Any], remark: str) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.events is not None:
            for key, value in row.items():
                if key != "step":
                    self.events.add_scalar(key, value, row["step"])
            self.events.flush()
        if remark:
            accuracy = f"20-NN {row['knn20']:.1f}%  " if "knn20" in row else ""
            print(
                f"step {row['step']:6d}  loss {row['loss']:.4f}  {row['images_per_second']:6.0f} images/s  "
                f"rank {row['effective_rank']:5.1f}  spread {row['feature_spread']:.4f}  {accuracy}{remark}",
                flush=True,
            )

    def draw(self) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter

        rows = self.rows()
        lines = -(-len(PANELS) // COLUMNS)
        figure = Figure(figsize=(4 * COLUMNS, 3 * lines), layout="constrained")
        axes = figure.subplots(lines, COLUMNS, sharex=True)
        for axis, (key, panel) in zip(axes.flat, PANELS.items(), strict=True):
            images, values = curve(rows, key)
            axis.plot(images, values, linewidth=1, marker="." if len(values) < 30 else "", color="#0072B2")
            if not values:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color="gray")
            if panel.level is not None:
                axis.axhline(0, linewidth=1, color="gray")
                axis.axhline(panel.level, linestyle="--", linewidth=1, color="#D55E00", label=panel.level_name)
                axis.legend(loc="best", fontsize="small", frameon=False)
            axis.set_title(panel.title, fontsize="medium")
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axis in axes[-1]:
            axis.set_xlabel("images seen")
        figure.savefig(self.out / "report.png", dpi=110)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Images seen and values of the rows that have `key`. Where they are many, runs of neighbours become their
    mean, the last of them shorter, so that the curve always reaches the newest row's stretch."""
    points = [(row["images"], row[key]) for row in rows if key in row]
    together = max(1, len(points) // POINTS)
    groups = [points[start : start + together] for start in range(0, len(points), together)]
    return [sum(x for x, _ in group) / len(group) for group in groups], [
        sum(y for _, y in group) / len(group) for group in groups
    ]


def event_writer(folder: Path, step: int) -> Any:
    """A SummaryWriter that hides what was written after `step`; without tensorboard None, and a word."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed, so only metrics.jsonl and report.png are written", flush=True)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
