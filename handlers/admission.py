"""The bounded queue between the event loop and the worker threads: bounded in jobs, and in time.

A `SimpleQueue` there and `call_soon_threadsafe` back cost 58 µs a round trip, `run_in_executor` 77 to 94 µs
(p50 on two busy cores under uvloop, AMD EPYC with AVX-512, November 2026).
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic, perf_counter
from typing import Any, NamedTuple

LATEST = 0.9  # of the time that a job may wait has gone: what remains is for its own run and the way back
SHARERS = 8  # jobs that one worker does at once, where they share their work: more gain nothing
SHARED = (1 - LATEST) / 2  # of the time that a job may wait: what those are expected to take at most
SMOOTHING = 0.1  # weight of the newest job in what its kind is expected to take


class QueueFull(Exception):
    """Every worker is busy, and as much work waits as may wait."""

    def __init__(self, waiting: int, wait_s: float) -> None:
        super().__init__()
        self.waiting = waiting  # jobs
        self.wait_s = wait_s  # until what is there now will be done


class Abandoned(Exception):
    """The client has gone while its job waited; it was not run."""


# Does some jobs' work at once: the result or the error of each.
Sharing = Callable[[Sequence[Callable[[], Any]]], Sequence[Any]]


class _Job(NamedTuple):
    work: Callable[[], Any]
    sharing: Sharing | None  # None: it is called by itself
    future: "asyncio.Future[Any]"
    gone: Callable[[], bool]
    kind: str
    size: int
    cost_s: float
    until: float  # monotonic: when its wait has been too long; never for one that found a worker idle


class Costs:
    """What a job is expected to take, by its kind and the size of what was sent.

    A photo of 12 megapixels is ten small ones, and sixteen small ones in one job are not that photo.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, dict[int, float]] = {}  # moving averages in seconds, by the size's power of two

    def expected_s(self, size: int, kind: str = "") -> float:
        """Seconds; those of the nearest size that is known of the kind, and 0 before anything is."""
        seconds = self._kinds.get(kind)
        if seconds is None:
            return 0.0
        power = size.bit_length()
        if power in seconds:
            return seconds[power]
        return seconds[min(seconds, key=lambda known: abs(known - power))]

    def learn(self, size: int, seconds: float, kind: str = "") -> None:
        """Remember what a job has taken."""
        known, power = self._kinds.setdefault(kind, {}), size.bit_length()
        before = known.get(power, seconds)
        known[power] = before + SMOOTHING * (seconds - before)


class Admission:
    """`threads` workers behind a queue of at most `capacity` waiting jobs and about `max_wait_s` of waiting.

    `submit` is for the thread of the event loop alone. A job that finds a worker idle is never refused.
    """

    def __init__(self, threads: int, capacity: int, max_wait_s: float = math.inf) -> None:
        self.threads = threads
        self.capacity = capacity
        self.max_wait_s = max_wait_s
        self._jobs: deque[_Job] = deque()  # that wait for a worker
        # What idle workers wait at. The one that has worked last comes first: its core and caches are still warm.
        self._idle: list[SimpleQueue[list[_Job]]] = []
        self._turn = threading.Lock()  # to look at those two, and to close
        self._closing = False
        self._costs = Costs()
        self._under_way = 0  # jobs that wait or run
        self._pending_s = 0.0  # what they are expected to take
        self._began: dict[int, float] = {}  # monotonic, of each worker that is busy
        # Daemons: a second Ctrl-C must end the process even while a worker is deep in native code.
        self._workers = [
            threading.Thread(target=self._work, args=(i,), name=f"worker-{i}", daemon=True) for i in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def depth(self) -> int:
        """Jobs that wait for a worker right now."""
        return len(self._jobs)

    @property
    def under_way(self) -> int:
        """Jobs that wait or run."""
        return self._under_way

    @property
    def wait_s(self) -> float:
        """How long a job that enters now is expected to wait."""
        return max(0.0, self._pending_s) / max(1, self.threads) if self._under_way >= self.threads else 0.0

    @property
    def stuck_s(self) -> float:
        """How long the job that has run longest has been running; 0 where none runs."""
        began = list(self._began.values())
        return monotonic() - min(began) if began else 0.0

    def alone(self) -> bool:
        """Whether nothing waits or runs beside the job that asks."""
        return self._under_way <= 1

    def submit(
        self,
        work: Callable[[], Any],
        size: int = 0,
        gone: Callable[[], bool] = lambda: False,
        kind: str = "",
        sharing: Sharing | None = None,
    ) -> "asyncio.Future[Any]":
        """Queue `work`; raise `QueueFull` rather than let it wait too long.

        kind, size: what is done and to how many bytes, by which its duration is guessed. gone: asked when a worker
        is free for it; where it says so the work is not done, and the future raises `Abandoned`. sharing: does the
        work of several jobs, in place of calling each; it is given those that wait one behind the other.
        """
        idle = self._under_way < self.threads
        if not idle and (
            # Only the event loop's thread adds, so nothing can slip in between this test and that.
            self.depth >= self.capacity or self._pending_s > self.max_wait_s * LATEST * self.threads
        ):
            raise QueueFull(self.depth, self.wait_s)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        until = math.inf if idle else monotonic() + self.max_wait_s * LATEST
        job = _Job(work, sharing, future, gone, kind, size, self._costs.expected_s(size, kind), until)
        self._under_way += 1
        self._pending_s += job.cost_s
        with self._turn:
            if self._idle:
                self._idle.pop().put([job])
            else:
                self._jobs.append(job)
        return future

    def close(self, patience_s: float = 5.0) -> None:
        """Finish what is queued and end the workers; one that is stuck is left behind after `patience_s`."""
        with self._turn:
            self._closing = True
            while self._idle:
                self._idle.pop().put([])
        deadline = monotonic() + patience_s
        for worker in self._workers:
            worker.join(max(0.0, deadline - monotonic()))

    def _work(self, worker: int) -> None:
        given: SimpleQueue[list[_Job]] = SimpleQueue()
        while jobs := self._next(given):
            self._began[worker] = monotonic()
            self._run(jobs, worker)
            del jobs  # and with them the requests' bodies, which would stay until the next ones

    def _next(self, given: "SimpleQueue[list[_Job]]") -> list[_Job]:
        """The jobs that have waited longest, or one that comes for this worker; none when the queue closes."""
        with self._turn:
            if self._jobs:
                return self._sharers()
            if self._closing:
                return []
            self._idle.append(given)
        return given.get()

    def _sharers(self) -> list[_Job]:
        """The job that has waited longest, and those behind it that share its work: this worker's part of them."""
        jobs, waiting = [self._jobs.popleft()], len(self._jobs) + 1
        sharing, expected_s = jobs[0].sharing, jobs[0].cost_s
        most = 1 if sharing is None else min(SHARERS, math.ceil(waiting / self.threads))
        while len(jobs) < most and self._jobs[0].sharing == sharing:
            expected_s += self._jobs[0].cost_s
            if expected_s > self.max_wait_s * SHARED:
                break
            jobs.append(self._jobs.popleft())
        return jobs

    def _run(self, jobs: list[_Job], worker: int) -> None:
        lapses = [self._lapse(job) for job in jobs]
        ready = [job for job, lapse in zip(jobs, lapses, strict=True) if lapse is None]
        started = perf_counter()
        done = iter(_outcomes([job.work for job in ready], jobs[0].sharing))
        seconds = perf_counter() - started
        outcomes = [next(done) if lapse is None else lapse for lapse in lapses]
        del self._began[worker]  # first, so that whoever gets a result finds the worker free
        with suppress(RuntimeError):  # the loop is closed: shutdown gave up waiting for these jobs
            jobs[0].future.get_loop().call_soon_threadsafe(self._settle, jobs, outcomes, seconds)
        # An error's traceback holds this frame: a cycle, and the body would wait for the garbage collector.
        del jobs, ready, done, outcomes

    def _lapse(self, job: _Job) -> Exception | None:
        """Why a job whose turn has come is not done, if so."""
        if job.future.cancelled() or job.gone():
            return Abandoned()
        if monotonic() > job.until:  # what stood before it took longer than expected
            return QueueFull(self.depth, self.wait_s)
        return None

    def _settle(self, jobs: list[_Job], outcomes: list[Any], seconds: float) -> None:
        """On the event loop's thread. seconds: what those that were done took together."""
        # What fails has taken less, and would make the sound look cheap.
        sound = [job for job, outcome in zip(jobs, outcomes, strict=True) if not isinstance(outcome, BaseException)]
        expected_s = sum(job.cost_s for job in sound)
        for job in sound:
            part = job.cost_s / expected_s if expected_s else 1 / len(sound)
            self._costs.learn(job.size, seconds * part, job.kind)
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._under_way -= 1
            self._pending_s = self._pending_s - job.cost_s if self._under_way else 0.0
            if job.future.done():  # cancelled while the worker was busy with it
                continue
            if isinstance(outcome, BaseException):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)


def _outcomes(works: Sequence[Callable[[], Any]], sharing: Sharing | None) -> Sequence[Any]:
    """The result or the error of each."""
    try:
        return sharing(works) if sharing is not None and works else [work() for work in works]
    except BaseException as error:  # whatever it is, someone awaits these futures
        return [error] * len(works)
