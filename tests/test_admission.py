"""The bounded queue: what enters, what is refused, and how it ends."""

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import sleep

import pytest

from handlers.admission import Abandoned, Admission, Costs, Outcome, QueueFull, outcome_of

Scenario = Callable[[Admission, threading.Event], Awaitable[None]]


def play(scenario: Scenario, threads: int, capacity: int) -> None:
    """Run `scenario` against a queue, with a gate at which work can be made to wait."""
    gate = threading.Event()
    admission = Admission(threads, capacity)
    try:
        asyncio.run(asyncio.wait_for(scenario(admission, gate), timeout=20))
    finally:
        gate.set()
        admission.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_work_runs_in_a_worker_thread_and_its_result_comes_back() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        worker = await admission.submit(threading.current_thread)
        assert worker is not threading.current_thread()
        assert await admission.submit(lambda: 6 * 7) == 42

    play(scenario, threads=1, capacity=1)


def test_an_exception_comes_back_and_the_worker_goes_on() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await admission.submit(fail)
        assert await admission.submit(lambda: "alive") == "alive"

    play(scenario, threads=1, capacity=1)


class Upload:
    """Work that holds what a client has sent."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __call__(self) -> str:
        if self.error:
            raise type(self.error)(*self.error.args)
        return "done"


@pytest.mark.parametrize("error", [None, ValueError("refused")])
def test_what_a_client_has_sent_is_let_go_at_once_and_not_by_the_garbage_collector(error: Exception | None) -> None:
    async def answer(admission: Admission, upload: Upload) -> None:
        with suppress(ValueError):
            await admission.submit(upload)

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        upload = Upload(error)
        held = weakref.ref(upload)
        await answer(admission, upload)
        del upload
        await until(lambda: held() is None)

    gc.disable()
    try:
        play(scenario, threads=1, capacity=1)
    finally:
        gc.enable()


def test_a_full_queue_refuses_and_takes_work_again_once_it_has_room() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        under_way = admission.submit(gate.wait)
        await until(lambda: admission.depth == 0)  # a worker has taken it
        waiting = [admission.submit(lambda: "waited") for _ in range(3)]
        assert admission.depth == 3
        with pytest.raises(QueueFull):
            admission.submit(lambda: "refused")
        gate.set()
        assert await asyncio.gather(*waiting) == ["waited"] * 3
        assert await under_way is True
        assert await admission.submit(lambda: "taken again") == "taken again"

    play(scenario, threads=1, capacity=3)


def test_as_many_jobs_run_side_by_side_as_there_are_threads() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        meeting = threading.Barrier(3)  # passes only when three are in it at once
        arrivals = await asyncio.gather(*(admission.submit(lambda: meeting.wait(10)) for _ in range(3)))
        assert sorted(arrivals) == [0, 1, 2]

    play(scenario, threads=3, capacity=3)


def test_of_idle_workers_the_one_that_has_worked_last_gets_the_next_job() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        workers = set()
        for _ in range(9):
            await until(lambda: len(admission._idle) == 3)
            workers.add(await admission.submit(threading.current_thread))
        assert len(workers) == 1
        await until(lambda: len(admission._idle) == 3)
        others = [admission.submit(gate.wait) for _ in range(2)]
        workers.add(await admission.submit(threading.current_thread))
        assert len(workers) == 2
        gate.set()
        await asyncio.gather(*others)

    play(scenario, threads=3, capacity=3)


def test_a_job_nobody_waits_for_any_more_is_not_run() -> None:
    ran: list[str] = []

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        under_way = admission.submit(gate.wait)
        await until(lambda: admission.depth == 0)
        abandoned = admission.submit(lambda: ran.append("abandoned"))
        kept = admission.submit(lambda: ran.append("kept"))
        abandoned.cancel()
        gate.set()
        await asyncio.gather(under_way, kept)

    play(scenario, threads=1, capacity=2)
    assert ran == ["kept"]


def test_a_job_cancelled_while_it_runs_harms_nobody() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        under_way = admission.submit(gate.wait)
        await until(lambda: admission.depth == 0)
        under_way.cancel()
        gate.set()
        assert await admission.submit(lambda: "next") == "next"

    play(scenario, threads=1, capacity=1)


def test_closing_finishes_what_is_queued_and_ends_the_threads() -> None:
    before = set(threading.enumerate())
    done: list[int] = []

    async def scenario() -> None:
        admission = Admission(threads=2, capacity=8)
        for number in range(8):
            admission.submit(lambda number=number: done.append(number))
        admission.close()

    asyncio.run(scenario())
    assert sorted(done) == list(range(8))
    assert set(threading.enumerate()) == before


def test_closing_gives_up_on_a_worker_that_is_stuck() -> None:
    gate = threading.Event()

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1)
        admission.submit(gate.wait)
        admission.close(patience_s=0.05)

    asyncio.run(scenario())  # returns, and what the worker brings later goes nowhere
    gate.set()


def test_a_queue_of_too_much_work_refuses_and_says_how_long_it_is() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        admission.max_wait_s = 0.25
        for _ in range(50):  # until it knows that such a job takes a tenth of a second
            admission._costs.learn(1000, 0.1, "photo")
        under_way = [admission.submit(gate.wait, size=1000, kind="photo")]
        while admission.wait_s <= 0.25:
            under_way.append(admission.submit(gate.wait, size=1000, kind="photo"))
        assert len(under_way) == 3
        assert admission.wait_s == pytest.approx(0.3)
        with pytest.raises(QueueFull) as full:
            admission.submit(gate.wait)
        assert full.value.wait_s == pytest.approx(0.3)
        gate.set()
        await asyncio.gather(*under_way)
        assert admission.wait_s == admission.under_way == 0

    play(scenario, threads=1, capacity=100)


def test_a_job_that_finds_a_worker_idle_is_taken_whatever_it_may_cost() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        admission.max_wait_s = 0.01
        admission._costs.learn(5_000_000, 60.0)
        first = admission.submit(gate.wait, size=5_000_000)
        second = admission.submit(lambda: "beside it", size=5_000_000)
        with pytest.raises(QueueFull):
            admission.submit(lambda: "refused")
        gate.set()
        assert await asyncio.gather(first, second) == [True, "beside it"]

    play(scenario, threads=2, capacity=100)


def test_what_a_job_costs_is_learned_from_those_of_its_size() -> None:
    costs = Costs()
    assert costs.expected_s(3000) == 0
    for _ in range(100):
        costs.learn(3000, 0.002)
        costs.learn(4_000_000, 0.05)
    assert costs.expected_s(2500) == pytest.approx(0.002)
    assert costs.expected_s(5_000_000) == costs.expected_s(60_000_000) == pytest.approx(0.05)
    assert costs.expected_s(0) == pytest.approx(0.002)


def test_what_a_kind_of_job_costs_says_nothing_about_another_kind() -> None:
    costs = Costs()
    for _ in range(100):
        costs.learn(80_000, 0.003, "photo")
        costs.learn(80_000, 16 * 0.002, "bulk")  # sixteen photos of 5 KB
        costs.learn(80_000, 0.0001, "search")
    assert costs.expected_s(80_000, "photo") == pytest.approx(0.003)
    assert costs.expected_s(80_000, "bulk") == pytest.approx(0.032)
    assert costs.expected_s(80_000, "search") == pytest.approx(0.0001)
    assert costs.expected_s(80_000, "row") == 0


def test_a_job_teaches_its_own_kind_and_one_that_fails_teaches_nothing() -> None:
    def fail() -> None:
        raise ValueError("unsupported")

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        await admission.submit(lambda: sleep(0.02), size=80_000, kind="bulk")
        with pytest.raises(ValueError, match="unsupported"):
            await admission.submit(fail, size=80_000, kind="photo")
        assert admission._costs.expected_s(80_000, "bulk") >= 0.02
        assert admission._costs.expected_s(80_000, "photo") == 0
        for _ in range(50):
            admission._costs.learn(80_000, 0.1, "photo")
        with suppress(ValueError):
            await admission.submit(fail, size=80_000, kind="photo")
        assert admission._costs.expected_s(80_000, "photo") == pytest.approx(0.1)

    play(scenario, threads=1, capacity=1)


def test_a_job_whose_client_has_gone_is_not_run_and_costs_nobody_anything() -> None:
    ran: list[str] = []

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        under_way = admission.submit(gate.wait)
        left = admission.submit(lambda: ran.append("left"), gone=lambda: True)
        stayed = admission.submit(lambda: ran.append("stayed"), gone=lambda: False)
        gate.set()
        with pytest.raises(Abandoned):
            await left
        await asyncio.gather(under_way, stayed)

    play(scenario, threads=1, capacity=3)
    assert ran == ["stayed"]


def test_a_worker_that_is_stuck_shows() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        assert admission.stuck_s == 0
        under_way = admission.submit(gate.wait)
        await until(lambda: admission.stuck_s > 0.05)
        gate.set()
        await under_way
        await until(lambda: admission.stuck_s == 0)

    play(scenario, threads=1, capacity=1)


def test_alone_is_whoever_has_nobody_beside_or_behind() -> None:
    async def scenario(admission: Admission, gate: threading.Event) -> None:
        assert await admission.submit(admission.alone)
        under_way = admission.submit(gate.wait)
        assert not await admission.submit(admission.alone)
        gate.set()
        await under_way

    play(scenario, threads=2, capacity=1)


def test_a_job_that_waited_longer_than_was_expected_is_refused_in_place_of_being_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]  # the only clock there is
    monkeypatch.setattr("handlers.admission.monotonic", lambda: now[0])

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        admission.max_wait_s = 0.05
        began, ran = threading.Event(), threading.Event()
        # Nothing is known of the first yet, so nobody behind it is refused.
        first = admission.submit(lambda: began.set() or gate.wait())
        await until(began.is_set)
        late = admission.submit(ran.set)
        now[0] += 0.04
        in_time = admission.submit(lambda: "in time")
        now[0] += 0.02
        gate.set()
        assert await first
        with pytest.raises(QueueFull):
            await late
        assert not ran.is_set()
        assert await in_time == "in time"

    play(scenario, threads=1, capacity=10)


class Sharing:
    """Does several jobs' work at once, and keeps how many they were each time."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    def __call__(self, works: Sequence[Callable[[], object]]) -> list[Outcome]:
        self.groups.append(len(works))
        return [outcome_of(work) for work in works]


def behind_others(
    scenario: Callable[[Admission, Callable[[], None]], Awaitable[None]],
    threads: int = 1,
    max_wait_s: float = math.inf,
) -> None:
    """Run `scenario` while every worker is busy; it is given what lets them go."""

    async def held(admission: Admission, gate: threading.Event) -> None:
        admission.max_wait_s = max_wait_s
        admission._costs.learn(0, 1e-6)
        began = [threading.Event() for _ in range(threads)]
        busy = [admission.submit(lambda event=event: event.set() or gate.wait()) for event in began]
        await until(lambda: all(event.is_set() for event in began))
        await scenario(admission, gate.set)
        await asyncio.gather(*busy)

    play(held, threads, capacity=100)


def test_jobs_that_share_their_work_and_wait_are_done_at_once_eight_at_most() -> None:
    sharing = Sharing()

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        jobs = [admission.submit(lambda number=number: number, sharing=sharing) for number in range(11)]
        let_go()
        assert await asyncio.gather(*jobs) == list(range(11))

    behind_others(scenario)
    assert sharing.groups == [8, 3]


def test_each_worker_takes_its_part_of_what_waits() -> None:
    sharing = Sharing()

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        jobs = [admission.submit(lambda: None, sharing=sharing) for _ in range(4)]
        let_go()
        await asyncio.gather(*jobs)

    behind_others(scenario, threads=2)
    assert max(sharing.groups) == 2


def test_who_finds_a_worker_idle_waits_for_nobody() -> None:
    sharing = Sharing()

    async def scenario(admission: Admission, gate: threading.Event) -> None:
        for _ in range(3):
            await admission.submit(lambda: None, sharing=sharing)

    play(scenario, threads=1, capacity=3)
    assert sharing.groups == [1, 1, 1]


def test_jobs_are_done_in_their_order_and_share_only_with_those_beside_them() -> None:
    sharing, other, order = Sharing(), Sharing(), []

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        kinds = [sharing, sharing, None, sharing, other, other, sharing]
        jobs = [
            admission.submit(lambda number=number: order.append(number), sharing=kind)
            for number, kind in enumerate(kinds)
        ]
        let_go()
        await asyncio.gather(*jobs)

    behind_others(scenario)
    assert order == list(range(7))
    assert (sharing.groups, other.groups) == ([2, 1, 1], [2])


def test_no_more_is_done_at_once_than_takes_a_twentieth_of_what_a_job_may_wait() -> None:
    sharing = Sharing()

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        admission._costs.learn(1000, 0.2, "photo")
        admission._costs.learn(9000, 0.9, "photo")
        sizes = [1000, 1000, 1000, 9000, 1000, 1000]
        jobs = [admission.submit(lambda: None, size, kind="photo", sharing=sharing) for size in sizes]
        let_go()
        await asyncio.gather(*jobs)

    behind_others(scenario, max_wait_s=10)  # so half a second
    assert sharing.groups == [2, 1, 1, 2]


def test_in_a_group_everyone_ends_by_himself() -> None:
    def fail() -> None:
        raise AssertionError("it is not called")

    ran: list[int] = []

    def outcomes(works: Sequence[Callable[[], object]]) -> list[Outcome]:
        ran.append(len(works))
        return [Outcome("first"), Outcome(None, ValueError("second"))]

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        first, second = (admission.submit(fail, sharing=outcomes) for _ in range(2))
        left = admission.submit(fail, gone=lambda: True, sharing=outcomes)
        cancelled = admission.submit(fail, sharing=outcomes)
        cancelled.cancel()
        let_go()
        assert await first == "first"
        with pytest.raises(ValueError, match="second"):
            await second
        with pytest.raises(Abandoned):
            await left
        await until(lambda: admission.under_way == 0)

    behind_others(scenario)
    assert ran == [2]


def memory_error(works: Sequence[Callable[[], object]]) -> list[Outcome]:
    raise MemoryError("no room")


def one_outcome(works: Sequence[Callable[[], object]]) -> list[Outcome]:
    return [Outcome("of whom?")]


@pytest.mark.parametrize("broken", [memory_error, one_outcome])
def test_a_group_that_fails_as_a_whole_fails_each_of_its_jobs_and_the_worker_goes_on(
    broken: Callable[[Sequence[Callable[[], object]]], list[Outcome]],
) -> None:
    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        jobs = [admission.submit(lambda: None, sharing=broken) for _ in range(2)]
        let_go()
        errors = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(error) for error in errors] == [RuntimeError, RuntimeError] and errors[0] is not errors[1]
        assert await admission.submit(lambda: "alive") == "alive"

    behind_others(scenario)


def test_jobs_of_a_kind_or_size_that_nothing_is_known_of_are_done_by_themselves() -> None:
    sharing = Sharing()

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        admission._costs.learn(1000, 0.001, "photo")
        sent = [("photo", 1000), ("photo", 1000), ("form", 1000), ("form", 1000), ("photo", 100_000), ("photo", 1000)]
        jobs = [admission.submit(lambda: None, size, kind=kind, sharing=sharing) for kind, size in sent]
        let_go()
        await asyncio.gather(*jobs)

    behind_others(scenario)
    assert sharing.groups == [2, 1, 1, 1, 1]


def test_in_a_group_each_job_teaches_what_it_took_itself_and_one_that_fails_nothing() -> None:
    def sharing(works: Sequence[Callable[[], object]]) -> list[Outcome]:
        return [Outcome(None, seconds=0.5), Outcome(None, seconds=2.5), Outcome(None, ValueError(), 30.0)]

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        admission._costs.learn(1000, 1.0, "photo")
        admission._costs.learn(9000, 3.0, "photo")
        jobs = [admission.submit(lambda: None, size, kind="photo", sharing=sharing) for size in (1000, 9000, 9000)]
        let_go()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert admission._costs.expected_s(1000, "photo") == pytest.approx(0.9 * 1 + 0.1 * 0.5)
        assert admission._costs.expected_s(9000, "photo") == pytest.approx(0.9 * 3 + 0.1 * 2.5)

    behind_others(scenario)


def test_while_one_worker_shares_jobs_another_is_idle_and_takes_what_comes() -> None:
    gate = threading.Event()

    def sharing(works: Sequence[Callable[[], object]]) -> list[Outcome]:
        assert len(works) == 1 or gate.wait(20)
        return [outcome_of(work) for work in works]

    async def scenario(admission: Admission, let_go: Callable[[], None]) -> None:
        jobs = [admission.submit(lambda: None, sharing=sharing) for _ in range(3)]
        let_go()
        await until(lambda: admission.under_way == 2 and bool(admission._idle))
        admission.capacity = 0  # nobody may wait
        assert admission.wait_s == 0
        assert await admission.submit(lambda: "taken") == "taken"
        gate.set()
        await asyncio.gather(*jobs)

    behind_others(scenario, threads=2)
