"""What the rounds say: a median with its spread beside its target, as text, as Markdown, and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

DECIMALS = {"ms": 2, "s": 2, "×": 2, "images/s": 0, "1/s": 0, "cosine": 4, "MB": 0, "": 0}
HEADINGS = ("", "median", "lowest to highest", "target", "")


@dataclass(frozen=True)
class Target:
    """What a row has to reach."""

    bound: Literal["≤", "≥"]
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.bound == "≤" else value >= self.limit


@dataclass(frozen=True)
class Row:
    """One quantity, taken once a round."""

    name: str
    unit: str  # a key of DECIMALS; "×" is a ratio, taken within the round
    rounds: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.target.met(self.median) else "missed"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "lowest": min(self.rounds),
            "highest": max(self.rounds),
            "rounds": list(self.rounds),
            "target": f"{self.target.bound} {self.target.limit:g}" if self.target else None,
            "met": self.target.met(self.median) if self.target else None,
        }


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, for a terminal."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}}  {spread:>{widths[2]}}  {target:>{widths[3]}}  {verdict}".rstrip()
        for name, value, spread, target, verdict in lines
    )


def markdown(rows: Sequence[Row], caption: str) -> str:
    """A table as GitHub shows it, and the caption below."""
    lines = [HEADINGS, ("---", "---:", "---:", "---:", "---"), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption}\n"


def caption(about: dict[str, Any]) -> str:
    """One line: what was measured, where, when."""
    sets = ", ".join(about["instruction_sets"]) or "no int8 instructions known"
    rounds = f"{about['rounds']} round{'s' if about['rounds'] > 1 else ''}"
    return (
        f"{about['model']} at commit {about['commit']}, {about['date'][:10]}: "
        f"{about['cores']} cores of {about['cpu']} ({sets}), load average {about['load_average']:g} before, "
        f"load generator on the same cores; medians of {rounds}, {about['seconds']} s of load each "
        f"after at most {about['warm_up']} s of warm-up. "
        f"{about['photo']}; {about['camera_photo']}."
    )


def _cells(row: Row) -> tuple[str, ...]:
    decimals = DECIMALS[row.unit]
    return (
        row.name,
        f"{row.median:,.{decimals}f} {row.unit}".rstrip(),
        f"{min(row.rounds):,.{decimals}f} to {max(row.rounds):,.{decimals}f}",
        f"{row.target.bound} {row.target.limit:g} {row.unit}".rstrip() if row.target else "",
        row.verdict,
    )
