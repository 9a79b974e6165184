"""Dynamic batching: many callers' images in one run of the device, and nobody waits for a batch that will not come.

For a GPU, which runs 32 images in little more than the time of one. On a CPU one session a core is faster, and those
who wait for one share its runs (handlers.together).
"""

import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic

import numpy as np

from encoder.manifest import Artifact, Manifest
from encoder.session import Embedded, Encoder


class BatchFailed(Exception):
    """The device failed on the batch that the caller's images were in."""


class _Request:
    """Images of one caller, which may be spread over several runs."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images  # (N, size, size, 3) uint8
        self.came = monotonic()
        self.taken = 0  # images that are in a run, or were
        self.parts: list[Embedded] = []
        self.embedded: Future[Embedded] = Future()


class Batching:
    """An `Encoder` whose calls are joined: any number of threads may call `embed`, one thread runs the device.

    A run begins as soon as the device is free, with what has come until then. Only while other callers are
    within `coming` is it held back for them, by `deadline_ms` after its first images came at most.
    """

    def __init__(self, encoder: Encoder, max_batch: int = 32, deadline_ms: float = 2.0) -> None:
        """Runs every batch size once, so that no request pays for the device's planning; `close` ends the thread."""
        if max_batch < 1 or deadline_ms < 0:
            raise ValueError(f"max_batch {max_batch} and deadline_ms {deadline_ms}: give at least 1 image and 0 ms")
        self.manifest: Manifest = encoder.manifest
        self.artifact: Artifact = encoder.artifact
        self.provider: str = encoder.provider
        self._encoder = encoder
        self._deadline_s = deadline_ms / 1e3
        # CUDA chooses its algorithms, and TensorRT builds an engine, for each batch size anew: few sizes, then.
        self._sizes = [*(1 << power for power in range((max_batch - 1).bit_length())), max_batch]
        self._images = np.zeros((max_batch, *encoder.image_shape), np.uint8)  # of a run
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Request] = deque()
        self._coming = 0  # callers within `coming`
        self._closed = False
        for size in self._sizes:
            encoder.embed(self._images[:size])
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around making pixels for `embed`: a run may wait for a caller who is within.

        Who leaves by an exception holds it no longer. Anyone else is taken to hand the pixels in next, which wakes
        the device; for one who does not, a run that waits waits until its deadline.
        """
        with self._changed:
            self._coming += 1
        try:
            yield
        except BaseException:
            with self._changed:
                self._coming -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._coming -= 1

    def embed(self, batch: np.ndarray, alone: bool = False) -> Embedded:
        """As `Encoder.embed`, in a run with others; raises `BatchFailed` where the device fails on it.

        A batch of more than `max_batch` images takes several runs. RuntimeError after `close`.
        """
        self._encoder.require_images(batch)  # here, so that a wrong batch harms nobody else's
        request = _Request(batch)
        with self._changed:
            if self._closed:
                raise RuntimeError("the encoder is closed: the server is shutting down or has another model by now")
            self._waiting.append(request)
            self._changed.notify()
        try:
            return request.embedded.result()
        finally:
            del request  # the traceback of an exception holds this frame: a cycle, which would keep the images

    def close(self, patience_s: float = 5.0) -> None:
        """Run what has been handed in, take no more, and end the thread; one that is stuck is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s)

    def _work(self) -> None:
        while taken := self._take():
            self._run(taken)
            del taken  # and with it the images, which would stay until the next run

    def _take(self) -> list[tuple[_Request, np.ndarray]]:
        """The images of the next run, by request, in the order in which they came; none when all is done."""
        with self._changed:
            while (held_s := self._held_s()) > 0:
                self._changed.wait(None if held_s == math.inf else held_s)
            taken, room = [], len(self._images)
            while self._waiting and room:
                request = self._waiting[0]
                images = request.images[request.taken : request.taken + room]
                taken.append((request, images))
                room -= len(images)
                request.taken += len(images)
                if request.taken == len(request.images):
                    self._waiting.popleft()
            return taken

    def _held_s(self) -> float:
        """How long the next run may still wait for more images: 0 where it has to begin."""
        if self._closed:
            return 0.0
        if not self._waiting:
            return math.inf
        full = sum(len(request.images) - request.taken for request in self._waiting) >= len(self._images)
        if full or not self._coming:
            return 0.0
        return max(0.0, self._waiting[0].came + self._deadline_s - monotonic())

    def _run(self, taken: list[tuple[_Request, np.ndarray]]) -> None:
        count = 0
        for _, images in taken:
            self._images[count : count + len(images)] = images
            count += len(images)
        size = next(size for size in self._sizes if size >= count)  # what is there from the last run fills it up
        try:
            vectors, logits = self._encoder.embed(self._images[:size])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            self._fail(taken, f"{self.provider} failed on a batch of {count} images: {type(error).__name__}: {error}")
            return
        row = 0
        for request, images in taken:
            rows = slice(row, row + len(images))
            row += len(images)
            request.parts.append(Embedded(vectors[rows], logits[rows]))
            if sum(len(part.vectors) for part in request.parts) == len(request.images):
                request.embedded.set_result(_joined(request.parts))

    def _fail(self, taken: list[tuple[_Request, np.ndarray]], reason: str) -> None:
        """Tell every caller in the run, with an exception of its own: a shared one would gather their tracebacks."""
        for request, _ in taken:
            request.embedded.set_exception(BatchFailed(reason))
        with self._changed:
            if self._waiting and self._waiting[0] is taken[-1][0]:
                self._waiting.popleft()  # its other images


def _joined(parts: list[Embedded]) -> Embedded:
    if len(parts) == 1:
        return parts[0]
    return Embedded(np.concatenate([part.vectors for part in parts]), np.concatenate([part.logits for part in parts]))
