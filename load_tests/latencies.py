"""What Locust measured: run as a process of its own, read back, summed up and drawn.

A process of its own, because gevent rewrites the standard library of the one that it runs in.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
PERCENTILES = (50, 90, 95, 99, 99.9)
PATIENCE_SECONDS = 90  # beyond the run itself: starting, and answers that are late
STOP_SECONDS = 35  # for answers under way at the end; the Locust file gives up on one after 30


class LocustError(Exception):
    """Locust could not run."""


@dataclass(frozen=True)
class Load:
    """Who sends what, where, for how long."""

    url: str  # "http://127.0.0.1:8080"
    path: str
    users: int
    seconds: int  # measured, after `warm_up`
    warm_up: int
    images: Path | None


@dataclass(frozen=True)
class Measured:
    """Every answer that was measured, and every error, also those of the warm-up."""

    sent: str
    latencies_ms: np.ndarray  # (N,) float64; good answers only
    seconds: float  # from the first request to the last answer
    errors: dict[str, int]

    @property
    def requests(self) -> int:
        return len(self.latencies_ms)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """In milliseconds; NaN where nothing was measured."""
        return float(np.percentile(self.latencies_ms, percent)) if self.requests else float("nan")

    def to_json(self) -> dict[str, Any]:
        found = {f"p{percent:g}_ms": round(self.percentile(percent), 3) for percent in PERCENTILES}
        longest = {"longest_ms": round(float(self.latencies_ms.max()), 3)} if self.requests else {}
        return {
            "sent": self.sent,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "requests_per_s": round(self.per_second, 2),
            **(found if self.requests else {}),
            **longest,
            "failed": self.failed,
            "errors": self.errors,
        }


def measure(load: Load, folder: Path) -> Measured:
    """Run Locust in `folder`, where it leaves a file with what it measured."""
    written = folder / "latencies.json"
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE.resolve())),
        *("--headless", "--host", load.url, "--path", load.path),
        *("--users", str(load.users), "--spawn-rate", str(load.users)),
        *("--run-time", f"{load.warm_up + load.seconds}s", "--warm-up", str(load.warm_up)),
        *("--stop-timeout", str(STOP_SECONDS), "--exit-code-on-error", "0"),
        *("--loglevel", "WARNING", "--latencies", str(written)),
        *("--images", str(load.images.resolve()) if load.images is not None else ""),
    ]
    # Locust takes settings from LOCUST_* too, and the Locust file takes IMAGES.
    others = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "IMAGES"))}
    patience = load.warm_up + load.seconds + STOP_SECONDS + PATIENCE_SECONDS
    try:
        done = subprocess.run(
            command, cwd=folder, env=others, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=patience, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LocustError(f"Locust did not end within {patience} s; look at what {load.url} does") from error
    if done.returncode or not written.exists():
        raise LocustError(f"Locust ended with {done.returncode}; it printed: {done.stdout.strip()}")
    return read(written)


def read(written: Path) -> Measured:
    """What the Locust file wrote."""
    values = json.loads(written.read_text(encoding="utf-8"))
    latencies_ms = np.array(values["latencies_ms"], np.float64)
    return Measured(values["sent"], latencies_ms, values["seconds"], values["errors"])


def draw(measured: Measured, target_ms: float, title: Sequence[str], file: Path) -> None:
    """A histogram as PNG, on a logarithmic axis, with percentiles and target."""
    from matplotlib.figure import Figure  # slow to import, and no business of whoever only measures

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    low, high = measured.latencies_ms.min(), max(measured.latencies_ms.max(), target_ms * 1.1)
    axes.hist(measured.latencies_ms, bins=np.geomspace(low * 0.98, high * 1.02, 120), color="#4c78a8")
    axes.set_xscale("log")
    for percent, style in ((50, "-"), (95, "--"), (99, ":")):
        value = measured.percentile(percent)
        axes.axvline(value, color="black", linestyle=style, label=f"p{percent} {value:.2f} ms")
    axes.axvline(target_ms, color="#d62728", label=f"target for p50: {target_ms:g} ms")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel(f"requests of {measured.requests:,}")
    axes.legend()
    axes.set_title("\n".join(title), fontsize=9, loc="left")
    figure.savefig(file, dpi=110)
