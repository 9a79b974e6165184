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
AT_ONCE = (1 - LATEST) / 2  # of the time that a job may wait: what those are expected to take at most
SMOOTHING = 0.1  # weight of the newest job in what its kind is expected to take


class QueueFull(Exception):
    """Every worker is busy, and as much work waits as may wait."""

    def __init__(self, waiting: int, wait_s: float) -> None:
        super().__init__()
        self.waiting = waiting  # jobs
        self.wait_s = wait_s  # until what is there now will be done


class Abandoned(Exception):
    """The client has gone while its job waited; it was not run."""


class Outcome(NamedTuple):
    """How a job ended."""

    result: Any
    error: BaseException | None = None
    seconds: float = 0.0  # it took; of what it shared with others its part

    def after(self, seconds: float) -> "Outcome":
        """With what it took before."""
        return self._replace(seconds=self.seconds + seconds)


Work = Callable[[], Any]
Sharing = Callable[[Sequence[Work]], Sequence[Outcome]]  # does the work of several jobs


def outcome_of(work: Work) -> Outcome:
    """Do it."""
    started = perf_counter()
    try:
        return Outcome(work(), seconds=perf_counter() - started)
    except BaseException as error:  # whatever it is, someone awaits it
        return Outcome(None, error, perf_counter() - started)


class _Job(NamedTuple):
    work: Work
    sharing: Sharing | None  # None: it is called by itself
    future: "asyncio.Future[Any]"
    gone: Callable[[], bool]
    kind: str
    size: int
    cost_s: float
    known: bool  # whether jobs of its kind and size have told what they cost
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

    def knows(self, size: int, kind: str = "") -> bool:
        """Whether jobs of that kind and size have been done."""
        return size.bit_length() in self._kinds.get(kind, ())

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
        return 0.0 if self._has_idle() else max(0.0, self._pending_s) / max(1, self.threads)

    def _has_idle(self) -> bool:
        """Whether a worker has nothing to do; one that shares jobs leaves fewer to the others than there are jobs."""
        return self._under_way < self.threads or bool(self._idle)

    @property
    def stuck_s(self) -> float:
        """How long the worker that has been busy longest has been so; 0 where none is."""
        began = list(self._began.values())
        return monotonic() - min(began) if began else 0.0

    def alone(self) -> bool:
        """Whether nothing waits or runs beside the job that asks."""
        return self._under_way <= 1

    def submit(
        self,
        work: Work,
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
        idle = self._has_idle()
        if not idle and (
            # Only the event loop's thread adds, so nothing can slip in between this test and that.
            self.depth >= self.capacity or self._pending_s > self.max_wait_s * LATEST * self.threads
        ):
            raise QueueFull(self.depth, self.wait_s)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        until = math.inf if idle else monotonic() + self.max_wait_s * LATEST
        cost_s, known = self._costs.expected_s(size, kind), self._costs.knows(size, kind)
        job = _Job(work, sharing, future, gone, kind, size, cost_s, known, until)
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
        most = min(SHARERS, math.ceil(waiting / self.threads)) if sharing is not None and jobs[0].known else 1
        while len(jobs) < most:
            following = self._jobs[0]
            expected_s += following.cost_s
            if following.sharing != sharing or not following.known or expected_s > self.max_wait_s * AT_ONCE:
                break
            jobs.append(self._jobs.popleft())
        return jobs

    def _run(self, jobs: list[_Job], worker: int) -> None:
        lapses = [self._lapse(job) for job in jobs]
        ready = [job.work for job, lapse in zip(jobs, lapses, strict=True) if lapse is None]
        done = iter(_done(ready, jobs[0].sharing))
        outcomes = [next(done) if lapse is None else Outcome(None, lapse) for lapse in lapses]
        del self._began[worker]  # first, so that whoever gets a result finds the worker free
        with suppress(RuntimeError):  # the loop is closed: shutdown gave up waiting for these jobs
            jobs[0].future.get_loop().call_soon_threadsafe(self._settle, jobs, outcomes)
        # An error's traceback holds this frame: a cycle, and the body would wait for the garbage collector.
        del jobs, ready, done, outcomes

    def _lapse(self, job: _Job) -> Exception | None:
        """Why a job whose turn has come is not done, if so."""
        if job.future.cancelled() or job.gone():
            return Abandoned()
        if monotonic() > job.until:  # what stood before it took longer than expected
            return QueueFull(self.depth, self.wait_s)
        return None

    def _settle(self, jobs: list[_Job], outcomes: list[Outcome]) -> None:
        """On the event loop's thread."""
        for job, (result, error, seconds) in zip(jobs, outcomes, strict=True):
            self._under_way -= 1
            self._pending_s = self._pending_s - job.cost_s if self._under_way else 0.0
            if error is None:  # what fails has taken less, and would make the sound look cheap
                self._costs.learn(job.size, seconds, job.kind)
            if job.future.done():  # cancelled while the worker was busy with it
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)


def _done(works: Sequence[Work], sharing: Sharing | None) -> Sequence[Outcome]:
    """The outcome of each."""
    if sharing is None or not works:
        return [outcome_of(work) for work in works]
    try:
        return _one_each(sharing(works), works)  # kept in no local: an error's traceback holds this frame
    except BaseException as error:
        reason = f"what jobs shared failed: {type(error).__name__}: {error}"
    return [Outcome(None, RuntimeError(reason)) for _ in works]


def _one_each(outcomes: Sequence[Outcome], works: Sequence[Work]) -> Sequence[Outcome]:
    if len(outcomes) != len(works):
        raise ValueError(f"{len(outcomes)} outcomes of {len(works)} jobs")
    return outcomes
