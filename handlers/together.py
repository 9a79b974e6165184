"""Several requests' work as one job: each stops where it needs the encoder, and one run serves them all.

That is cheaper on a CPU too: an encoder's weights are larger than a core's caches, and one run reads them once.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from handlers.admission import Outcome, outcome_of

MAX_IMAGES = 32  # of a run that is shared: an engine keeps the memory that its largest run took

Result = TypeVar("Result")

log = logging.getLogger("akin")


class Rows(NamedTuple):
    """What the encoder says about a request's images."""

    vectors: np.ndarray  # (N, D) float32, unit norm
    logits: np.ndarray  # (N, C) float32; C is 0 where the model has no probe
    ms: float  # the whole run took, of all who shared it


Run = Callable[[np.ndarray], Rows]


class Pixels(NamedTuple):
    """What a request wants of an encoder."""

    images: np.ndarray  # (N, size, size, 3) uint8
    run: Run  # requests whose `run` is equal may share one call of it


Steps = Generator[Pixels, Rows, Result]  # work that stops for an encoder, once at most


class _Stopped(NamedTuple):
    steps: Steps[Any]
    pixels: Pixels


class _Share(NamedTuple):
    """One request's part of a run."""

    rows: Rows
    seconds: float


def by_itself(steps: Steps[Result]) -> Result:
    """Do work that is shared with nobody."""
    begun = _begin(lambda: steps)
    return _end(begun) if isinstance(begun, _Stopped) else begun


def together(works: Sequence[Callable[[], Steps[Any]]]) -> list[Outcome]:
    """Do the work of several requests: how each ends, in its own result or its own error, which harms no other."""
    begun: list[Outcome] = []
    shares: Mapping[int, _Share] = {}
    try:
        begun = [outcome_of(partial(_begin, work)) for work in works]
        shares = _share(begun)
        return [_finished(one, shares.get(place)) for place, one in enumerate(begun)]
    finally:
        # An error's traceback holds this frame, and must not keep what is another request's.
        del works, begun, shares


def _begin(work: Callable[[], Steps[Result]]) -> Result | _Stopped:
    """Work until it is done, or stops for the encoder."""
    steps = work()
    try:
        return _Stopped(steps, next(steps))
    except StopIteration as done:
        result: Result = done.value
        return result


def _share(begun: Sequence[Outcome]) -> Mapping[int, _Share]:
    """Run the encoders for those that have stopped; by place, for those that shared a run which went well."""
    shares: dict[int, _Share] = {}
    for run, places in _runs(begun):
        images = [begun[place].result.pixels.images for place in places]
        if len(places) > 1:
            shares |= zip(places, _shared_run(run, images), strict=False)
    return shares


def _runs(begun: Sequence[Outcome]) -> list[tuple[Run, list[int]]]:
    """Which places share a run: those that want the same of the same encoder, MAX_IMAGES at most."""
    runs: list[tuple[Run, list[int]]] = []
    open_ones: dict[Run, tuple[list[int], int]] = {}  # the places, and how many images they have
    for place, one in enumerate(begun):
        if not isinstance(one.result, _Stopped):
            continue
        images, run = one.result.pixels
        places, count = open_ones.get(run, ([], MAX_IMAGES))  # as if there were a full one
        if count + len(images) > MAX_IMAGES:
            places, count = [], 0
            runs.append((run, places))
        places.append(place)
        open_ones[run] = places, count + len(images)
    return runs


def _shared_run(run: Run, images: Sequence[np.ndarray]) -> list[_Share]:
    """Each one's part of one run; nothing where it fails: then each has one of its own, and its own error."""
    try:
        vectors, logits, ms = run(np.concatenate(images))
    except Exception as error:
        log.warning("%d requests share no run: %s: %s", len(images), type(error).__name__, error)
        return []
    ends = np.cumsum([len(own) for own in images])
    parts = zip(np.split(vectors, ends[:-1]), np.split(logits, ends[:-1]), strict=True)
    return [_Share(Rows(*own, ms=ms), ms / 1e3 * len(own[0]) / len(vectors)) for own in parts]


def _finished(begun: Outcome, share: _Share | None) -> Outcome:
    if not isinstance(begun.result, _Stopped):
        return begun
    rows, shared_s = share or (None, 0.0)
    return outcome_of(partial(_end, begun.result, rows)).after(begun.seconds + shared_s)


def _end(stopped: _Stopped, rows: Rows | None = None) -> Any:
    """Go on with `rows`, or with those of a run of its own."""
    steps, (images, run) = stopped
    own = run(images) if rows is None else rows
    try:
        steps.send(own)
    except StopIteration as done:
        return done.value
    raise RuntimeError("work stops for an encoder once")
