"""Dynamic batching: everybody gets the answer to their own images, and waits for others only while they come."""

import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from encoder.batching import BatchFailed, Batching
from encoder.session import Embedded, Encoder
from tests.server import wait_until
from tests.tiny_encoder import write_tiny_encoder

SIZE = 8
LONG_MS = 60_000  # a deadline that no test waits for
PATIENCE_S = 20


class FakeDevice:
    """Gives, for an image of value v, the vector (v, 0, ...) and the logits (v + 0.5, 0). A run waits to be let go.

    `runs`: the values in each run that has begun.
    """

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.begun: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.may_end = threading.Semaphore(0)
        self.open = True  # runs end at once

    def get_outputs(self) -> Sequence[SimpleNamespace]:
        return [SimpleNamespace(name="embedding"), SimpleNamespace(name="logits")]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        values = inputs["image"][:, 0, 0, 0].tolist()
        self.runs.append(values)
        self.begun.put(values)
        if not self.open:
            assert self.may_end.acquire(timeout=PATIENCE_S)
        if 13 in values:
            raise RuntimeError("CUDA error 700")
        vectors, logits = np.zeros((len(values), 16), np.float32), np.zeros((len(values), 2), np.float32)
        vectors[:, 0], logits[:, 0] = values, np.array(values) + 0.5
        return vectors, logits


class Bench:
    """A batching over a fake device, and callers on threads of their own."""

    def __init__(self, store: Path, max_batch: int = 8, deadline_ms: float = LONG_MS) -> None:
        self.device = FakeDevice()
        manifest = write_tiny_encoder(store, size=SIZE)
        encoder = Encoder(manifest, manifest.artifacts[0], "CUDAExecutionProvider", self.device)
        self.batching = Batching(encoder, max_batch, deadline_ms)
        self.warm_up = [len(run) for run in self.device.runs]
        self.device.runs.clear()
        while not self.device.begun.empty():
            self.device.begun.get()
        self.device.open = False
        self.callers = ThreadPoolExecutor(32)

    def call(self, *values: int) -> "Future[Embedded]":
        """Embed images of these values, without saying before that they come."""
        before = len(self.batching._waiting)
        future = self.callers.submit(self.batching.embed, images(*values))
        wait_until(lambda: len(self.batching._waiting) > before or future.done() or not self.device.begun.empty())
        return future

    def busy(self) -> "Future[Embedded]":
        """A call for an image of value 1, with which the device is busy from now on."""
        future = self.call(1)
        assert self.begun() == [1]
        return future

    def begun(self) -> list[int]:
        """The values of the run that begins next, without what fills it up."""
        return self.device.begun.get(timeout=PATIENCE_S)

    def end_run(self) -> None:
        self.device.may_end.release()

    def close(self) -> None:
        self.device.open = True
        self.device.may_end.release(100)
        self.batching.close(PATIENCE_S)
        self.callers.shutdown()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def open_bench(**options: float) -> Bench:
        benches.append(Bench(tmp_path, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield open_bench
    for bench in benches:
        bench.close()


def images(*values: int) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), SIZE, SIZE, 3))


def values_of(future: "Future[Embedded]") -> list[float]:
    vectors, logits = future.result(timeout=PATIENCE_S)
    assert np.array_equal(logits[:, 0], vectors[:, 0] + 0.5)
    return vectors[:, 0].tolist()


def test_it_has_the_face_of_the_encoder_it_wraps(opened: Callable[..., Bench], tmp_path: Path) -> None:
    batching = opened().batching
    assert batching.manifest.model == "tiny" and batching.artifact.file == "encoder.int8.onnx"
    assert batching.provider == "CUDAExecutionProvider"


def test_every_size_that_will_run_has_run_before_the_first_request(opened: Callable[..., Bench]) -> None:
    assert opened(max_batch=8).warm_up == [1, 2, 4, 8]
    assert opened(max_batch=12).warm_up == [1, 2, 4, 8, 12]
    assert opened(max_batch=1).warm_up == [1]


def test_a_lone_request_runs_at_once_whatever_the_deadline(opened: Callable[..., Bench]) -> None:
    bench = opened()
    call = bench.call(5)
    assert bench.begun() == [5]
    bench.end_run()
    assert values_of(call) == [5]


def test_what_comes_while_the_device_is_busy_runs_together_in_its_order(opened: Callable[..., Bench]) -> None:
    bench = opened()
    first = bench.busy()
    others = [bench.call(2), bench.call(3, 4), bench.call(5)]
    bench.end_run()
    assert bench.begun() == [2, 3, 4, 5]
    bench.end_run()
    assert [values_of(call) for call in (first, *others)] == [[1], [2], [3, 4], [5]]


def test_a_run_of_an_odd_number_is_filled_up_and_nobody_gets_the_filling(opened: Callable[..., Bench]) -> None:
    bench = opened()
    first = bench.busy()
    others = [bench.call(value) for value in (2, 3, 4)]
    bench.end_run()
    assert [len(bench.begun()), bench.device.runs[-1][:3]] == [4, [2, 3, 4]]
    bench.end_run()
    assert [values_of(call) for call in (first, *others)] == [[1], [2], [3], [4]]


def test_no_run_takes_more_than_it_may_and_large_batches_come_back_whole(opened: Callable[..., Bench]) -> None:
    bench = opened(max_batch=4)
    first = bench.busy()
    large, small = bench.call(*range(20, 26)), bench.call(40)
    bench.end_run()
    assert bench.begun() == [20, 21, 22, 23]
    bench.end_run()
    assert bench.begun()[:3] == [24, 25, 40]
    bench.end_run()
    assert [values_of(call) for call in (first, large, small)] == [[1], list(range(20, 26)), [40]]


def test_a_run_is_held_for_one_who_is_coming_and_begins_when_he_has_come(opened: Callable[..., Bench]) -> None:
    bench = opened()
    decoded, announced = threading.Event(), threading.Event()

    def decode_and_embed() -> Embedded:
        with bench.batching.coming():
            announced.set()
            assert decoded.wait(PATIENCE_S)
        return bench.batching.embed(images(2))

    late = bench.callers.submit(decode_and_embed)
    assert announced.wait(PATIENCE_S)
    early = bench.callers.submit(in_coming, bench.batching, images(1))
    wait_until(lambda: len(bench.batching._waiting) == 1)
    assert bench.device.begun.empty()
    decoded.set()
    assert sorted(bench.begun()) == [1, 2]
    bench.end_run()
    assert (values_of(early), values_of(late)) == ([1], [2])


def test_a_run_that_is_full_waits_for_nobody(opened: Callable[..., Bench]) -> None:
    bench = opened(max_batch=2)
    with bench.batching.coming(), bench.batching.coming(), bench.batching.coming():
        call = bench.callers.submit(bench.batching.embed, images(1, 2))
        assert bench.begun() == [1, 2]
        bench.end_run()
        assert values_of(call) == [1, 2]


def test_one_who_was_coming_and_gives_up_holds_nobody_any_more(opened: Callable[..., Bench]) -> None:
    bench = opened()
    with pytest.raises(KeyError), bench.batching.coming(), bench.batching.coming():
        call = bench.callers.submit(bench.batching.embed, images(1))
        wait_until(lambda: len(bench.batching._waiting) == 1)
        assert bench.device.begun.empty()
        raise KeyError("an image that cannot be read")
    assert bench.begun() == [1]
    bench.end_run()
    assert values_of(call) == [1]


def test_beyond_the_deadline_a_run_begins_without_those_who_are_coming(opened: Callable[..., Bench]) -> None:
    bench = opened(deadline_ms=20)
    with bench.batching.coming(), bench.batching.coming():
        call = bench.callers.submit(bench.batching.embed, images(1))
        assert bench.begun() == [1]
        bench.end_run()
        assert values_of(call) == [1]


def test_time_spent_behind_a_busy_device_counts_for_the_deadline(opened: Callable[..., Bench]) -> None:
    bench = opened()
    first = bench.busy()
    with bench.batching.coming(), bench.batching.coming(), bench.batching.coming():
        second = bench.call(2)
        bench.batching._waiting[0].came -= LONG_MS / 1e3
        bench.end_run()
        assert bench.begun() == [2]
        bench.end_run()
        assert (values_of(first), values_of(second)) == ([1], [2])


def test_a_failure_reaches_its_own_run_alone(opened: Callable[..., Bench]) -> None:
    bench = opened(max_batch=2)
    before = bench.busy()
    beside, failing, after = bench.call(2), bench.call(13, 14, 15), bench.call(3)
    for _ in range(3):
        bench.end_run()
    assert (values_of(before), values_of(after)) == ([1], [3])
    for call in (beside, failing):
        with pytest.raises(BatchFailed, match=r"CUDAExecutionProvider failed on a batch of 2 images: .*700"):
            call.result(PATIENCE_S)
    assert beside.exception() is not failing.exception()
    assert bench.device.runs == [[1], [2, 13], [3]]  # what was left of the failed request is not run


def test_a_failed_request_is_freed_without_the_garbage_collector(opened: Callable[..., Bench]) -> None:
    bench = opened()
    bench.device.open = True
    pixels = images(13).copy()
    gone = weakref.ref(pixels)
    gc.disable()
    try:
        with pytest.raises(BatchFailed):
            bench.batching.embed(pixels)
        del pixels
        wait_until(lambda: gone() is None)
    finally:
        gc.enable()


def test_a_wrong_batch_is_refused_before_it_meets_others(opened: Callable[..., Bench]) -> None:
    bench = opened()
    with pytest.raises(ValueError, match=r"takes uint8 of shape \('N', 8, 8, 3\)"):
        bench.batching.embed(np.zeros((1, 9, 9, 3), np.uint8))
    assert bench.device.runs == []


def test_closing_runs_what_was_handed_in_and_takes_no_more(opened: Callable[..., Bench]) -> None:
    bench = opened(max_batch=2)
    calls = [bench.busy()]
    with bench.batching.coming():  # for whom it does not wait
        calls += [bench.call(2), bench.call(3), bench.call(4)]
        closing = bench.callers.submit(bench.batching.close, PATIENCE_S)
        wait_until(lambda: bench.batching._closed)
        with pytest.raises(RuntimeError, match="the encoder is closed"):
            bench.batching.embed(images(9))
        bench.device.may_end.release(3)
        assert [values_of(call) for call in calls] == [[1], [2], [3], [4]]
        closing.result(PATIENCE_S)
    assert not bench.batching._thread.is_alive()
    assert bench.device.runs == [[1], [2, 3], [4]]


def test_closing_leaves_a_device_that_is_stuck_behind(opened: Callable[..., Bench]) -> None:
    bench = opened()
    bench.busy()
    bench.batching.close(patience_s=0.01)
    assert bench.batching._thread.is_alive()


@pytest.mark.parametrize(("max_batch", "deadline_ms"), [(0, 1), (8, -1)])
def test_limits_that_make_no_sense_are_refused(
    opened: Callable[..., Bench], max_batch: int, deadline_ms: int
) -> None:
    with pytest.raises(ValueError, match=f"max_batch {max_batch} and deadline_ms {deadline_ms}"):
        opened(max_batch=max_batch, deadline_ms=deadline_ms)


def test_many_threads_get_what_the_encoder_alone_gives_them(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    encoder = Encoder.load(tmp_path)
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (1 + row % 5, 32, 32, 3), np.uint8) for row in range(200)]
    batching = Batching(encoder, max_batch=6, deadline_ms=1)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda batch: in_coming(batching, batch), batches))
    batching.close()
    for batch, (vectors, logits) in zip(batches, together, strict=True):
        expected = encoder.embed(batch)
        assert vectors == pytest.approx(expected.vectors, abs=1e-5)
        assert logits == pytest.approx(expected.logits, abs=1e-4)


def in_coming(batching: Batching, batch: np.ndarray) -> Embedded:
    with batching.coming():
        pixels = batch.copy()
    return batching.embed(pixels)
