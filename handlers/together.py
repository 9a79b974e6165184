"""Several requests' work as one job: each stops where it needs the encoder, and one run serves them all.

That is cheaper on a CPU too: an encoder's weights are larger than a core's caches, and one run reads them once.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")


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


def alone(steps: Steps[Result]) -> Result:
    """Do work that is shared with nobody."""
    begun = _begin(lambda: steps)
    return _end(begun) if isinstance(begun, _Stopped) else begun


def together(works: Sequence[Callable[[], Steps[Result]]]) -> list[Result | Exception]:
    """Do the work of several requests: the result of each, or its own error, which harms none of the others."""
    outcomes = [_outcome(partial(_begin, work)) for work in works]
    try:
        stopped = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, _Stopped)}
        for places in _sharers(stopped):
            rows = _shared_run([stopped[place].pixels for place in places])
            for place, own in zip(places, rows, strict=True):
                outcomes[place] = _outcome(partial(_end, stopped[place], own))
        return outcomes
    finally:
        del outcomes  # an error's traceback holds this frame: a cycle, and what the client sent would stay


def _outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the error it raises."""
    try:
        return call()
    except Exception as error:
        return error


def _begin(work: Callable[[], Steps[Result]]) -> Result | _Stopped:
    """Work until it is done, or stops for the encoder."""
    steps = work()
    try:
        return _Stopped(steps, next(steps))
    except StopIteration as done:
        result: Result = done.value
        return result


def _sharers(stopped: dict[int, _Stopped]) -> Collection[list[int]]:
    """The places of those that want the same of the same encoder."""
    places: dict[Run, list[int]] = {}
    for place, one in stopped.items():
        places.setdefault(one.pixels.run, []).append(place)
    return places.values()


def _shared_run(pixels: Sequence[Pixels]) -> Sequence[Rows | None]:
    """Each request's rows of one run; None for all where it fails, or would be one request's alone."""
    if len(pixels) == 1:
        return [None]
    try:
        vectors, logits, ms = pixels[0].run(np.concatenate([one.images for one in pixels]))
    except Exception:  # whose fault it is shows when each runs by itself
        return [None] * len(pixels)
    ends = np.cumsum([len(one.images) for one in pixels])[:-1]
    return [Rows(*parts, ms) for parts in zip(np.split(vectors, ends), np.split(logits, ends), strict=True)]


def _end(stopped: _Stopped, rows: Rows | None = None) -> Any:
    """Go on with `rows`, or with those of a run of its own."""
    steps, (images, run) = stopped
    own = run(images) if rows is None else rows
    try:
        steps.send(own)
    except StopIteration as done:
        return done.value
    raise RuntimeError("work stops for an encoder once")
