"""Ten times the load that a server can take: how much good work it still does, and how long the accepted wait.

    .venv-full/bin/python -m load_tests.overload --seconds 5        # or: make bench, which has these rows too

Starts `akin serve` in an empty folder, and sends as clients of three manners do, each for as long. The generator
takes its share of the same cores: a goodput below the maximum is in part what it costs to be asked so often.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from load_tests import report, server
from load_tests.arguments import at_least_one
from load_tests.crowd import Answer, Crowd, Request, post
from load_tests.fronts import ROOT, Model, NativeOptions, native
from load_tests.photos import small_photo
from load_tests.report import Row, Target

SATURATING = (8, 32)  # connections; the better of them is the most that the server can do
TIMES = 10
CROWD = 640  # connections: twenty times what saturates the server; it takes 1000
WARM_UP_SECONDS = 3.0  # the queue fills, and everyone has been refused once
LEAST_GOODPUT = 0.8  # of the maximum


@dataclass(frozen=True)
class Borne:
    """What a server did under one load."""

    goodput: float  # answers with 200 a second
    refused: float  # answers with 503 a second
    p50_ms: float  # of the 200s, as their clients waited
    p99_ms: float
    failed: int  # neither 200 nor 503, or no answer at all


@dataclass(frozen=True)
class Overload:
    """The maximum, and what is left of it under each manner of asking for ten times as much."""

    maximum: Borne
    borne: dict[str, Borne]  # by manner
    limit_ms: float | None  # of the queue, as the server was started; None where it has none


class Tally:
    """Latencies and refusals from a moment on."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.accepted_s: list[float] = []
        self.refused = self.failed = 0

    def add(self, answer: Answer) -> None:
        """An answer that came just now."""
        if perf_counter() < self.since:
            return
        if answer.status == 200:
            self.accepted_s.append(answer.seconds)
        elif answer.status == 503:
            self.refused += 1
        else:
            self.failed += 1

    def result(self, seconds: float) -> Borne:
        """Of all that came within `seconds`."""
        if not self.accepted_s:
            raise server.ServerError(
                f"not one good answer in {seconds:g} s; {self.refused} refused, {self.failed} failed"
            )
        p50, p99 = np.percentile(self.accepted_s, (50, 99)) * 1e3
        return Borne(len(self.accepted_s) / seconds, self.refused / seconds, float(p50), float(p99), self.failed)


Pause = Callable[[Answer], float]  # seconds until the connection that got it asks again


def at_once(_: Answer) -> float:
    """Rude: whatever the answer is."""
    return 0.0


def as_told(answer: Answer) -> float:
    """Polite: where the server says Retry-After, after that time."""
    return answer.retry_after_s


def at_rate(per_second: float) -> Pause:
    """Indifferent: all connections together send `per_second`, or as much of it as answers leave them free for."""
    due = perf_counter()

    def pause(_: Answer) -> float:
        nonlocal due
        now = perf_counter()
        due = max(due + 1 / per_second, now)  # what could not be sent in time is not made up for
        return due - now

    return pause


def bear(
    port: int, request: Request, connections: int, seconds: float, warm_up: float = 0.5, pause: Pause = at_once
) -> Borne:
    """What `connections` that all send `request` get for `seconds`, after `warm_up` seconds that are not counted."""
    started = perf_counter() + warm_up
    tally = Tally(started)

    def hear(answer: Answer) -> float:
        tally.add(answer)
        return pause(answer)

    Crowd(port, connections, lambda: request, hear).run(started + seconds)
    return tally.result(perf_counter() - started)


def measure(port: int, path: str, image: bytes, seconds: float, limit_ms: float | None) -> Overload:
    """The server's maximum, then ten times the load in each manner."""
    request = post(path, image)
    maximum = max((bear(port, request, n, seconds) for n in SATURATING), key=lambda borne: borne.goodput)
    manners = {
        f"{TIMES} × the rate": at_rate(TIMES * maximum.goodput),
        "retrying at once": at_once,
        "honouring Retry-After": as_told,
    }
    borne = {name: bear(port, request, CROWD, seconds, WARM_UP_SECONDS, pause) for name, pause in manners.items()}
    return Overload(maximum, borne, limit_ms)


def rows_of(front: str, rounds: list[Overload]) -> list[Row]:
    """The report's rows."""
    if not rounds:
        return []
    rows = [Row(f"{front}, at most: throughput", "images/s", tuple(each.maximum.goodput for each in rounds))]
    for manner in rounds[0].borne:
        name = f"{front}, {CROWD} connections {manner}"
        borne = [each.borne[manner] for each in rounds]
        kept = tuple(each.borne[manner].goodput / each.maximum.goodput for each in rounds)
        limit = Target("≤", rounds[0].limit_ms) if rounds[0].limit_ms else None
        rows += [
            Row(f"{name}: goodput to the most", "×", kept, Target("≥", LEAST_GOODPUT)),
            Row(f"{name}: p50 of the accepted", "ms", tuple(each.p50_ms for each in borne)),
            Row(f"{name}: p99 of the accepted", "ms", tuple(each.p99_ms for each in borne), limit),
            Row(f"{name}: refused", "1/s", tuple(each.refused for each in borne)),
            Row(f"{name}: failed", "", tuple(float(each.failed) for each in borne), Target("≤", 0)),
        ]
    return rows


def run(seconds: int, model: Model, images: Path | None) -> int:
    """Start, measure, print. Returns the exit code: 0 also where a target is missed."""
    options = NativeOptions.of(model.python)
    image = small_photo(images)
    with tempfile.TemporaryDirectory(prefix="overload-") as folder, native(model, Path(folder)) as served:
        path = f"/predictions/{model.name}"
        served.post(path, image.data)
        overload = measure(served.port, path, image.data, seconds, options.max_wait_ms)
    print(report.table(rows_of("native", [overload])))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=at_least_one, default=5)
    parser.add_argument("--model-store", type=Path, default=Path("model_store"))
    parser.add_argument("--name", default="encoder")
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv")
    parser.add_argument("--images", type=Path, help="whose first image is sent")
    chosen = parser.parse_args()
    return run(chosen.seconds, Model(chosen.model_store, chosen.name, chosen.environment), chosen.images)


if __name__ == "__main__":
    sys.exit(main())
