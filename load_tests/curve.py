"""Accuracy against latency: points, their Pareto front, and what is written and drawn of them."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

METRICS = {"linear": "linear probe, 5-fold (%)", "knn20": "20-NN, leave-one-out (%)"}
COLUMNS = ("encoder", "stem", "size", "GMAC", "int8 p50 ms", "lowest to highest", "p90 ms", "×", *METRICS, "")
MARKERS = {"standard": "o", "small": "s"}  # of the stems


class Latency(NamedTuple):
    """Of one image in one thread; a number a round."""

    p50_ms: tuple[float, ...]
    p90_ms: tuple[float, ...]


class Candidate(NamedTuple):
    """One encoder at one image size."""

    encoder: str
    stem: str
    size: int  # pixels
    gmac: float
    linear: float | None = None  # percent, inside the train labels; None where weights are random
    knn20: float | None = None
    served: bool = False  # by the manifest beside the weights


class Point(NamedTuple):
    """A candidate and what an image costs."""

    what: Candidate
    latency: Latency

    @property
    def ms(self) -> float:
        return median(self.latency.p50_ms)

    def score(self, metric: str) -> float | None:
        """metric: a key of METRICS."""
        score: float | None = getattr(self.what, metric)
        return score

    def ratio_to(self, other: "Point") -> float:
        """The median of the rounds' ratios of p50: what slowed one round down slowed both."""
        rounds = zip(self.latency.p50_ms, other.latency.p50_ms, strict=True)
        return median(ours / theirs for ours, theirs in rounds)


def reference(points: Sequence[Point]) -> Point:
    """The one that the others' times are divided by: the served one, else the first."""
    return next((point for point in points if point.what.served), points[0])


def front(points: Sequence[Point], metric: str) -> list[Point]:
    """Those than which no other is both as fast and as accurate, the fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -(point.score(metric) or 0))):
        score = point.score(metric)
        if score is not None and (not best or score > (best[-1].score(metric) or 0)):
            best.append(point)
    return best


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row a point."""
    base, fronts = reference(points), {metric: front(points, metric) for metric in METRICS}
    return [
        {
            **point.what._asdict(),
            "int8_p50_ms": point.ms,
            "int8_p90_ms": median(point.latency.p90_ms),
            "ratio_to_reference": point.ratio_to(base),
            "on_front": [metric for metric in METRICS if point in fronts[metric]],
            "rounds": point.latency._asdict(),
        }
        for point in points
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of `to_json`'s rows as GitHub shows it."""
    lines: list[Sequence[str]] = [COLUMNS, ("---", "---", *["---:"] * 8, "---")]
    for row in rows:
        p50 = row["rounds"]["p50_ms"]
        marks = ["served"] * row["served"] + [f"front: {', '.join(row['on_front'])}"] * bool(row["on_front"])
        lines.append(
            (
                *(row["encoder"], row["stem"], str(row["size"]), f"{row['gmac']:.2f}", f"{row['int8_p50_ms']:.2f}"),
                *(f"{min(p50):.2f} to {max(p50):.2f}", f"{row['int8_p90_ms']:.2f}"),
                f"{row['ratio_to_reference']:.2f}",
                *("" if row[metric] is None else f"{row[metric]:.1f}" for metric in METRICS),
                "; ".join(marks),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(points: Sequence[Point], title: str, file: Path) -> None:
    """The curve as PNG: a panel for each accuracy, a colour for each encoder, a marker for each stem. Points without
    accuracy are left out."""
    from matplotlib.figure import Figure

    points = [point for point in points if point.what.linear is not None]
    encoders = dict.fromkeys(point.what.encoder for point in points)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2, sharex=True), METRICS.items(), strict=True):
        best = front(points, metric)
        line = {"color": "0.75", "linewidth": 5, "zorder": 0, "solid_capstyle": "round"}
        axes.plot([p.ms for p in best], [p.score(metric) for p in best], label="Pareto front", **line)
        for number, encoder in enumerate(encoders):
            own = sorted((p for p in points if p.what.encoder == encoder), key=lambda point: point.ms)
            stem, times, scores = own[0].what.stem, [p.ms for p in own], [p.score(metric) for p in own]
            color = f"C{number}"
            style = {"color": color, "marker": MARKERS[stem], "markersize": 7, "linewidth": 1}
            axes.plot(times, scores, label=f"{encoder}, {stem} stem", **style)
            for point in own:
                at = (point.ms, point.score(metric))
                axes.annotate(f"{point.what.size}", at, (5, -11), textcoords="offset points", fontsize=9, color=color)
        served = [point for point in points if point.what.served]
        ring = {"s": 220, "facecolors": "none", "edgecolors": "black", "linewidths": 1.5}
        axes.scatter([p.ms for p in served], [p.score(metric) for p in served], label="served", **ring)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="int8 latency of one image, one thread (ms, p50)", ylabel=label)
        axes.margins(0.08, 0.1)
        axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)
