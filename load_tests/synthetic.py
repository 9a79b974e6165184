"""As many vectors as a benchmark wants, made to match the statistics of real embeddings.

    fitted = fit(real)                       # finds its knobs on the spot
    million = fitted.vectors(1_000_000, seed=1)
    print(comparison(real, million))         # both measured at the same number of rows

A vector is a real one moved along Gaussian-weighted differences between real neighbours, the directions in which the
data varies there, each with neighbours and weights of its own. That spreads them wider than the real ones lie; a pull
towards the mean brings all distances back by one factor and leaves their proportions as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import faiss
import numpy as np

NEIGHBORS = 20  # of each row, for the distances and the intrinsic dimension
SAMPLE = 4000  # rows that ask for their neighbours
CHUNK = 16_384  # rows made at a time
PERCENTILES = (10, 50, 90)
DIFFERENCES = 8  # combined for a vector
SCALES = (0.9, 1.0, 1.1, 1.2, 1.3)  # what is tried: how far they move it


@dataclass(frozen=True)
class Statistics:
    """What makes a set of vectors easy or hard to search."""

    first: tuple[float, float, float]  # distance to the nearest neighbour, at the 10th, 50th and 90th percentile
    tenth: tuple[float, float, float]  # to the tenth
    dimension: float  # intrinsic

    def numbers(self) -> tuple[float, ...]:
        """In the order of `NAMES`."""
        return (*self.first, *self.tenth, self.dimension)

    def ratios(self, other: "Statistics") -> list[float]:
        """Other's numbers over these."""
        return [theirs / ours for ours, theirs in zip(self.numbers(), other.numbers(), strict=True)]

    def worst(self, other: "Statistics") -> float:
        """The largest relative difference, 0 for none."""
        return max(abs(ratio - 1) for ratio in self.ratios(other))


NAMES = (*(f"{rank} neighbour, {share} %" for rank in ("1st", "10th") for share in PERCENTILES), "dimension")


def statistics(vectors: np.ndarray, sample: int = SAMPLE, seed: int = 0) -> Statistics:
    """Of (N, D) float32 unit vectors: the neighbours of `sample` rows drawn at random among all.

    The dimension is the estimate of Levina and Bickel (2004, equation 8) from 20 neighbours, averaged over rows by
    its inverse, as MacKay and Ghahramani (2005) advise. Copies of a row are no neighbours.
    """
    drawn = np.random.default_rng(seed).permutation(len(vectors))[:sample]
    cosines, _ = faiss.knn(vectors[drawn], vectors, NEIGHBORS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines[:, 1:].astype(np.float64)))
    distances = distances[distances[:, 0] > 1e-3]
    logs = np.log(distances[:, -1:] / distances[:, :-1]).sum(axis=1) / (NEIGHBORS - 2)
    first, tenth = (tuple(np.percentile(distances[:, rank], PERCENTILES).tolist()) for rank in (0, 9))
    return Statistics(first, tenth, float(1 / logs.mean()))


@dataclass(frozen=True)
class Fitted:
    """Makes vectors like the real ones it was fitted to."""

    real: np.ndarray  # (N, D) float32 of unit length
    neighbors: np.ndarray  # (N, NEIGHBORS) int64: rows of `real`
    scale: float
    pull: float = 0.0  # how much of the mean is added

    def vectors(self, rows: int, seed: int) -> np.ndarray:
        """(rows, D) float32 of unit length; the same for the same seed."""
        made = np.empty((rows, self.real.shape[1]), np.float32)
        start = 0
        for chunk in self._chunks(rows, np.random.default_rng(seed)):
            made[start : start + len(chunk)] = chunk
            start += len(chunk)
        return made

    def _chunks(self, rows: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            origins = random.integers(len(self.real), size=size)
            moved = self.real[origins]
            for step in range(DIFFERENCES):
                # Between a neighbour and the row itself, or between two neighbours.
                one, other = random.integers(NEIGHBORS, size=(2, size))
                ends = self.neighbors[origins, one]
                starts = np.where(step % 2 == 0, origins, self.neighbors[origins, other])
                weights = random.standard_normal((size, 1), np.float32) * np.float32(self.scale / DIFFERENCES**0.5)
                moved = moved + weights * (self.real[ends] - self.real[starts])
            if self.real.min() >= 0:  # the encoder's last layer has no negative outputs
                moved = np.maximum(moved, 0)
            moved = moved / np.linalg.norm(moved, axis=1, keepdims=True) + np.float32(self.pull) * self.real.mean(
                axis=0
            )
            yield moved / np.linalg.norm(moved, axis=1, keepdims=True)


def fit(real: np.ndarray, seed: int = 0, sample: int = SAMPLE) -> Fitted:
    """The knobs whose vectors, as many as the real ones, differ least from them.

    real: (N, D) float32 of unit length, N some thousand at least.
    """
    _, neighbors = faiss.knn(real, real, NEIGHBORS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    target = statistics(real, sample, seed)

    def judged(fitted: Fitted) -> list[float]:
        return target.ratios(statistics(fitted.vectors(len(real), seed), sample, seed))

    tried = []
    for scale in SCALES:
        wide = Fitted(real, neighbors[:, 1:], scale)
        distances = judged(wide)[:-1]
        fitted = replace(wide, pull=_pull(real, (min(distances) * max(distances)) ** 0.5))
        tried.append((max(abs(ratio - 1) for ratio in judged(fitted)), fitted))
    return min(tried, key=lambda one: one[0])[1]


def _pull(real: np.ndarray, factor: float) -> float:
    """How much of the mean makes every vector `factor` times as long, and so, scaled back, all distances shorter."""
    square = float(np.square(real.mean(axis=0)).sum())  # also the mean product of a vector and the mean
    return max(0.0, (square**2 + square * (factor**2 - 1)) ** 0.5 / square - 1)


def comparison(real: np.ndarray, synthetic: np.ndarray, sample: int = SAMPLE) -> tuple[str, float]:
    """A Markdown table of both, measured at as many rows as the smaller has, and the largest relative difference."""
    rows = min(len(real), len(synthetic))
    ours, theirs = (statistics(vectors[:rows], sample) for vectors in (real, synthetic))
    lines = [f"| at {rows:,} rows | real | synthetic | ratio |", "|---|---|---|---|"]
    for name, one, other in zip(NAMES, ours.numbers(), theirs.numbers(), strict=True):
        lines.append(f"| {name} | {one:.3f} | {other:.3f} | {other / one:.2f} |")
    return "\n".join(lines), ours.worst(theirs)
