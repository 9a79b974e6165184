"""What a sweep's runs come to: one table and one plot, with a mean and a standard deviation over seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped]

from training.ablations import Sweep

RANDOM = "random"  # the line every claim starts from: the same network before its first step
# What is compared: the number's name, its heading, and how it is written.
COLUMNS = {
    "linear": ("linear %", ".1f"),
    "knn20": ("20-NN %", ".1f"),
    "tightness": ("cluster tightness", ".3f"),
    "silhouette": ("silhouette", ".3f"),
    "effective_rank": ("effective rank", ".1f"),
    "gradient_norm": ("gradient norm, mean", ".3g"),
    "gradient_norm_median": ("median", ".3g"),
    "images": ("images seen", ",.0f"),
    "epochs": ("epochs", ".2f"),
}


@dataclass(frozen=True)
class Outcome:
    """What one run came to; kept as result.json in its folder."""

    value: str
    seed: int
    numbers: dict[str, float]  # by the names in COLUMNS; none where the run diverged
    diverged: str  # why, or nothing
    knobs: dict[str, Any]  # of pretraining
    judged: dict[str, Any]  # with which labels, and at which size
    made: dict[str, str]  # machine, torch, commit
    date: str

    @classmethod
    def read(cls, file: Path) -> "Outcome":
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        """Whole or not at all."""
        fresh = file.with_suffix(".part")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        fresh.replace(file)


class Spread(NamedTuple):
    mean: float
    deviation: float | None  # of a sample; None for a single run


class Row(NamedTuple):
    """All runs of one value."""

    value: str
    runs: int
    numbers: dict[str, Spread]  # over the runs that did not diverge
    diverged: tuple[str, ...]


class Correlation(NamedTuple):
    """Of log mean gradient norm with linear accuracy, over runs."""

    pearson: float
    spearman: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def rows_of(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Row]:
    """One row for each value: random weights first, then numbers as they grow, names as they first come."""
    values = list(dict.fromkeys(outcome.value for outcome in outcomes if outcome.value != RANDOM))
    if sweep.numeric:
        values.sort(key=float)
    rows = []
    for value in (RANDOM, *values):
        runs = [outcome for outcome in outcomes if outcome.value == value]
        numbers = {
            name: spread(found)
            for name in COLUMNS
            if (found := [run.numbers[name] for run in runs if name in run.numbers])
        }
        rows.append(Row(value, len(runs), numbers, tuple(run.diverged for run in runs if run.diverged)))
    return [row for row in rows if row.runs]


def correlation(outcomes: Sequence[Outcome]) -> Correlation | None:
    """None where fewer than three runs, or runs without any difference, have nothing to correlate."""
    norms, accuracies = points(outcomes)
    if len(norms) < 3 or len(set(norms)) == 1 or len(set(accuracies)) == 1:
        return None
    logs = np.log(norms)
    return Correlation(
        float(pearsonr(logs, accuracies).statistic), float(spearmanr(logs, accuracies).statistic), len(norms)
    )


def points(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """Mean gradient norm and linear accuracy of every run that has both."""
    known = [o.numbers for o in outcomes if o.numbers.get("gradient_norm", 0) > 0 and "linear" in o.numbers]
    return [numbers["gradient_norm"] for numbers in known], [numbers["linear"] for numbers in known]


def cell(row: Row, name: str) -> str:
    """`mean ± deviation`; a dash for what random weights do not have."""
    if name not in row.numbers:
        return "–"
    mean, deviation = row.numbers[name]
    style = COLUMNS[name][1]
    return f"{mean:{style}}" if deviation is None else f"{mean:{style}} ± {deviation:{style}}"


def table(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """Markdown: how short the runs were, what they came to, where they ran."""
    rows = rows_of(sweep, outcomes)
    remarks = any(row.diverged for row in rows)
    headings = [sweep.axis, "runs", *(heading for heading, _ in COLUMNS.values()), *(["remarks"] if remarks else [])]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for row in rows:
        cells = [row.value, str(row.runs), *(cell(row, name) for name in COLUMNS)]
        if remarks:
            cells.append("; ".join(f"diverged: {reason}" for reason in row.diverged) or "–")
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
    parts = [f"# {sweep.axis}: {sweep.about}", length(outcomes), "\n".join(lines), notes(outcomes)]
    found = correlation(outcomes) if sweep.gradients else None
    if found:
        parts.append(
            f"Log mean gradient norm against linear accuracy, over {found.runs} runs: Pearson {found.pearson:.2f}, "
            f"Spearman {found.spearman:.2f}. Runs of one value are no independent points, so the {found.runs} weigh "
            "less than as many values would."
        )
    return "\n\n".join(parts) + "\n"


def length(outcomes: Sequence[Outcome]) -> str:
    """How short the runs were, in words."""
    trained = [outcome for outcome in outcomes if outcome.value != RANDOM]
    if not any(outcome.numbers for outcome in trained):
        return "No run has come to its end yet."
    images = [outcome.numbers["images"] for outcome in trained if outcome.numbers]
    epochs = [outcome.numbers["epochs"] for outcome in trained if outcome.numbers]
    minutes = trained[0].knobs["minutes"]
    seen = [f"{min(images):,.0f}", f"{max(images):,.0f}"]
    passed = [f"{min(epochs):.2g}", f"{max(epochs):.2g}"]
    clock = f"{minutes:g} minutes of training" if minutes else f"{trained[0].knobs['epochs']} epochs"
    return (
        f"Short runs: {clock} each, {' to '.join(dict.fromkeys(seen))} images seen "
        f"({' to '.join(dict.fromkeys(passed))} epochs). What does best in so short a time need not do best in a "
        "long one."
    )


def notes(outcomes: Sequence[Outcome]) -> str:
    judged = outcomes[0].judged
    places = sorted({f"{o.made['machine']}, torch {o.made['torch']}, commit {o.made['commit']}" for o in outcomes})
    days = sorted({outcome.date for outcome in outcomes})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        "Mean ± standard deviation over seeds. Judged by frozen features inside the train labels of "
        f"{judged['labels']}, at {judged['size']} px: a linear probe of fixed strength by 5-fold cross-validation, "
        "20-NN leave-one-out. Tightness is the mean cosine within classes less that between them, seen from the mean "
        f"of all images. Gradient norms are of logged steps. {'; '.join(places)}; {when}."
    )


def summary(name: str, sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Every number, for ablation.json."""
    rows = [
        {"value": row.value, "runs": row.runs, "diverged": row.diverged}
        | {key: {"mean": number.mean, "sd": number.deviation} for key, number in row.numbers.items()}
        for row in rows_of(sweep, outcomes)
    ]
    found = correlation(outcomes) if sweep.gradients else None
    extra: Mapping[str, Any] = {"log_gradient_norm_with_linear": found._asdict()} if found else {}
    return {"ablation": name, "about": sweep.about, "rows": rows, **extra, "runs": [asdict(o) for o in outcomes]}


def draw(sweep: Sweep, outcomes: Sequence[Outcome], file: Path) -> None:
    """One plot: accuracy of each value with error bars, what else the sweep asks for, and random weights' line."""
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(sweep, outcomes) if row.numbers]
    swept = [row for row in rows if row.value != RANDOM]
    panels = [("linear", "knn20"), *((name,) for name in sweep.panels)]
    figure = Figure(figsize=(5.5 * (len(panels) + sweep.gradients), 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels) + sweep.gradients, squeeze=False)[0]
    for axis, names in zip(axes, panels, strict=False):
        for name, colour in zip(names, ("C0", "C1"), strict=False):
            spreads = [row.numbers[name] for row in swept]
            places = [float(row.value) for row in swept] if sweep.numeric else range(len(swept))
            axis.errorbar(
                places,
                [number.mean for number in spreads],
                [number.deviation or 0 for number in spreads],
                label=COLUMNS[name][0],
                fmt="o-" if sweep.numeric else "o",
                capsize=4,
                color=colour,
            )
            for row in rows:
                if row.value == RANDOM:
                    label = f"{COLUMNS[name][0]}, random weights"
                    axis.axhline(row.numbers[name].mean, linestyle="--", linewidth=1, color=colour, label=label)
        if sweep.numeric:
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks([float(row.value) for row in swept], [row.value for row in swept])
        else:
            axis.set_xticks(range(len(swept)), [row.value for row in swept], rotation=20, ha="right")
        title = "inside the train labels" if len(names) > 1 else COLUMNS[names[0]][0]
        axis.set(xlabel=sweep.axis, title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    if sweep.gradients:
        scatter(axes[-1], outcomes)
    figure.savefig(file, dpi=110)


def scatter(axis: Any, outcomes: Sequence[Outcome]) -> None:
    """Every run by its mean gradient norm and its accuracy."""
    for value in dict.fromkeys(outcome.value for outcome in outcomes):
        norms, accuracies = points([outcome for outcome in outcomes if outcome.value == value])
        if norms:
            axis.plot(norms, accuracies, "o", label=value)
    found = correlation(outcomes)
    verdict = f": r {found.pearson:.2f}, ρ {found.spearman:.2f}, n {found.runs}" if found else ""
    axis.set(xscale="log", xlabel="mean gradient norm", ylabel=COLUMNS["linear"][0], title=f"every run{verdict}")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize="small")
