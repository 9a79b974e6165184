"""More load than a server can take: how much good work it still does, and how long the accepted wait.

    .venv-full/bin/python -m load_tests.bench --fronts native --parts overload --seconds 5

Clients of three manners. Two crowds keep their connections and ask again when they have been answered; as the server
makes the refused wait, they ask little more than it can take. The third is larger than the number of connections that
the server keeps, opens new ones as often as it is turned away, and so asks for ten times as much. The generator takes
its share of the same cores: a goodput below the maximum is in part what it costs to be asked so often.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from load_tests import server
from load_tests.crowd import Answer, Crowd, Request, post
from load_tests.report import Row, Target

SATURATING = (8, 32)  # connections; the better of them is the most that the server can do
CROWD = 640  # connections: twenty times what saturates the server; it takes 1000
BEYOND = 1200
TIMES = 10
WARM_UP_SECONDS = 3.0  # the queue fills, and everyone has been refused once
LEAST_GOODPUT = 0.8  # of the maximum


@dataclass(frozen=True)
class Borne:
    """What a server did under one load."""

    goodput: float  # answers with 200 a second
    refused: float  # answers with 503 a second
    p50_ms: float  # of the 200s, as their clients waited
    p99_ms: float
    failed: float  # neither 200 nor 503, or no answer at all, a second


@dataclass(frozen=True)
class Under:
    """What a server did under more load than it can take."""

    borne: Borne
    most: float  # good answers a second under loads that just saturate it: mean of one right before and one after


@dataclass(frozen=True)
class Overload:
    """What is left of the maximum under each crowd."""

    under: dict[str, Under]  # by crowd
    limit_ms: float  # of the queue, as the server was started


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
        refused, failed = self.refused / seconds, self.failed / seconds
        return Borne(len(self.accepted_s) / seconds, refused, float(p50), float(p99), failed)


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


def measure(port: int, path: str, image: bytes, seconds: float, limit_ms: float) -> Overload:
    """Each manner between two loads that just saturate the server: noise hits what is compared alike."""
    request = post(path, image)
    saturating = [(bear(port, request, n, seconds), n) for n in SATURATING]
    before, connections = max(saturating, key=lambda each: each[0].goodput)
    crowds = {
        f"{CROWD} connections retrying at once": (CROWD, lambda: at_once),
        f"{CROWD} connections honouring Retry-After": (CROWD, lambda: as_told),
        f"{BEYOND} connections at {TIMES} × the rate": (BEYOND, lambda: at_rate(TIMES * before.goodput)),
    }
    under = {}
    for name, (size, manner) in crowds.items():
        borne = bear(port, request, size, seconds, WARM_UP_SECONDS, manner())
        after = bear(port, request, connections, seconds)
        under[name] = Under(borne, most=(before.goodput + after.goodput) / 2)
        before = after
    return Overload(under, limit_ms)


def rows_of(front: str, rounds: list[Overload]) -> list[Row]:
    """The report's rows."""
    rows = []
    for crowd in rounds[0].under if rounds else ():
        name, taken = f"{front}, {crowd}", [each.under[crowd] for each in rounds]
        asked = tuple(sum((each.borne.goodput, each.borne.refused, each.borne.failed)) / each.most for each in taken)
        kept = tuple(each.borne.goodput / each.most for each in taken)
        limit = Target("≤", rounds[0].limit_ms)
        rows += [
            Row(f"{name}: the most that it can answer", "1/s", tuple(each.most for each in taken)),
            Row(f"{name}: asked, to the most", "×", asked),
            Row(f"{name}: goodput to the most", "×", kept, Target("≥", LEAST_GOODPUT)),
            Row(f"{name}: p50 of the accepted", "ms", tuple(each.borne.p50_ms for each in taken)),
            Row(f"{name}: p99 of the accepted", "ms", tuple(each.borne.p99_ms for each in taken), limit),
            Row(f"{name}: refused", "1/s", tuple(each.borne.refused for each in taken)),
            Row(f"{name}: failed", "1/s", tuple(each.borne.failed for each in taken), Target("≤", 0)),
        ]
    return rows
