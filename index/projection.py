"""A map of a gallery: a sample of its vectors laid out in two dimensions, so that neighbours stay neighbours.

t-SNE (van der Maaten and Hinton, 2008), exact, from a PCA as its start: of 2,000 vectors every pair is looked at, in
blocks that stay in the processor's cache. Nothing is random, so a gallery that has not changed looks the same.

    python -m index.projection <vectors.npy >places.npy        # what `project_aside` runs, at low priority
"""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np

from index.errors import GalleryError
from index.face import Index

MAX_POINTS = 2_000
PATIENCE_S = 120.0  # for the layout of so many: 2.5 s on a core of its own
REST = 4  # times as long as a map took it stands, whatever changes
PERPLEXITY = 30.0  # neighbours that count, roughly
STEPS = 250
EARLY_STEPS = 60  # of them with the attraction exaggerated, section 3.4
EXAGGERATION = 12.0
BLOCK = 128  # rows of 2,000 float32: 1 MB


class Point(NamedTuple):
    """A row on the map."""

    id: str
    label: str | None
    x: float  # -1 to 1, as is y
    y: float


class Drawn(NamedTuple):
    """A map."""

    points: list[Point]  # any first ones of them are a fair draw too
    rows: int  # of the gallery, when it was drawn


class GalleryMap:
    """The map of one gallery, drawn when it is asked for and again once its number of rows has changed.

    Drawing takes seconds of a core, so a gallery that changes all the time is not drawn all the time: see REST.
    """

    def __init__(self) -> None:
        self._drawing = threading.Lock()
        self._drawn: Drawn | None = None
        self._rest_until = 0.0  # monotonic

    def get(self, index: Index) -> Drawn:
        """The map of `index`, which is the same one at every call; the first time it takes seconds.

        One thread draws, others wait for it. Raises `GalleryError`.
        """
        with self._drawing:
            started = monotonic()
            last = self._drawn
            if last is not None and (started < self._rest_until or index.count == last.rows):
                return last
            rows = index.count
            records = index.sample(MAX_POINTS)
            places = project_aside(np.stack([record.vector for record in records])) if records else np.empty((0, 2))
            spots = places.astype(float).round(4).tolist()
            points = [Point(record.id, record.label, x, y) for record, (x, y) in zip(records, spots, strict=True)]
            self._drawn = Drawn(points, rows)
            ended = monotonic()
            self._rest_until = ended + REST * (ended - started)
            return self._drawn


def project_aside(vectors: np.ndarray) -> np.ndarray:
    """`project` in a process of its own, on one thread and below the priority of what serves.

    It leaves no memory behind and holds neither the interpreter nor the threads of the searches. Raises
    `GalleryError`.
    """
    sent = io.BytesIO()
    np.save(sent, vectors)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "index.projection"],
            input=sent.getvalue(),
            capture_output=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | one_thread,
            start_new_session=True,  # Ctrl-C is for the server
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        reason = said.rpartition("\n")[2][:200] or type(error).__name__
        raise GalleryError(f"the map could not be drawn ({reason}); search works without it") from error
    return np.load(io.BytesIO(done.stdout))


def project(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 of unit length to (N, 2) float32 within -1 and 1. N: some thousands; time and memory grow with
    its square."""
    start = pca(vectors)
    if len(vectors) < 8:  # too few for neighbourhoods
        return _fitted(start)
    return _fitted(_tsne(_affinities(vectors), start * (1e-4 / max(float(start[:, 0].std()), 1e-12))))


def pca(vectors: np.ndarray) -> np.ndarray:
    """(N, D) to (N, 2) float32, along the two directions in which the vectors differ most."""
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, :-3:-1]
    if axes.shape[1] < 2:
        axes = np.hstack([axes, np.zeros_like(axes)])
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0) < 0, -1, 1)
    return (centred @ axes).astype(np.float32)


def _affinities(vectors: np.ndarray) -> np.ndarray:
    """(N, N) float32, symmetric, of sum 1: how much each pair belongs together, equation 1 and section 3.1.

    Each row's bandwidth is found by bisection, of all rows at once, so that its perplexity is PERPLEXITY.
    """
    count = len(vectors)
    distances = np.maximum(2 - 2 * (vectors @ vectors.T), 0).astype(np.float32)
    np.fill_diagonal(distances, np.inf)
    near = np.sort(np.partition(distances, min(count - 2, int(3 * PERPLEXITY)), axis=1)[:, : int(3 * PERPLEXITY)])
    near -= near[:, :1]
    wanted = np.log(min(PERPLEXITY, (count - 1) / 3))
    low, high = np.zeros(count), np.full(count, np.inf)
    beta = np.full(count, 20.0)
    for _ in range(40):
        weights = np.exp(-near * beta[:, None])
        total = weights.sum(axis=1)
        finite = np.where(weights > 0, near, 0)
        too_wide = np.log(total) + beta * (weights * finite).sum(axis=1) / total > wanted
        low, high = np.where(too_wide, beta, low), np.where(too_wide, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    distances -= distances.min(axis=1, keepdims=True)
    affinities = np.exp(-distances * beta[:, None].astype(np.float32))
    affinities /= affinities.sum(axis=1, keepdims=True)
    affinities = affinities + affinities.T
    return affinities / affinities.sum()


def _tsne(affinities: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N, 2) float32, moved from `places` by gradient descent with momentum and a gain a coordinate (section 3.4)."""
    velocity, gains = np.zeros_like(places), np.ones_like(places)
    rate = max(len(places) / EXAGGERATION, 50.0)  # Belkina et al., 2019
    for step in range(STEPS):
        early = step < EARLY_STEPS
        gradient = _gradient(affinities, places, EXAGGERATION if early else 1.0)
        same = (gradient > 0) == (velocity > 0)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01).astype(np.float32)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
        places -= places.mean(axis=0)
    return places


def _gradient(affinities: np.ndarray, places: np.ndarray, exaggeration: float) -> np.ndarray:
    """(N, 2) float32, equation 5: attraction by affinity, repulsion by closeness on the map."""
    count = len(places)
    ones, squares = np.ones((count, 1), np.float32), (places**2).sum(axis=1, keepdims=True)
    # One product gives 1 + squared distance; another, sums of weights beside weighted sums of places.
    left = np.hstack([-2 * places, squares + 1, ones])
    right = np.ascontiguousarray(np.hstack([places, ones, squares]).T)
    with_ones = np.hstack([places, ones])
    attraction, repulsion = np.empty_like(with_ones), np.empty_like(with_ones)
    total = 0.0
    for start in range(0, count, BLOCK):
        rows = slice(start, start + BLOCK)
        closeness = left[rows] @ right
        np.reciprocal(closeness, out=closeness)
        pulled = affinities[rows] * closeness
        attraction[rows] = pulled @ with_ones
        total += float(closeness.sum())
        np.square(closeness, out=closeness)
        repulsion[rows] = closeness @ with_ones
    total -= count  # each is 1 away from itself, as it were
    forces = exaggeration * attraction - repulsion / np.float32(total)
    return 4 * (forces[:, 2:] * places - forces[:, :2])


def _fitted(places: np.ndarray) -> np.ndarray:
    """Centred, and scaled by one factor into -1 to 1."""
    centred = places - (places.max(axis=0) + places.min(axis=0)) / 2
    return centred / max(float(np.abs(centred).max()), 1e-12)


def main() -> None:
    """Vectors on stdin, places on stdout, both as .npy."""
    os.nice(10)
    np.save(sys.stdout.buffer, project(np.load(io.BytesIO(sys.stdin.buffer.read()))))


if __name__ == "__main__":
    main()
