"""How good frozen embeddings are: a linear probe and nearest neighbours (SimCLR, section 4 and appendix B.6)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # candidates for C, the inverse of the L2 penalty
FOLDS = 5
NEIGHBORS = 20
VOTE_TEMPERATURE = 0.07  # weights of the neighbours' votes (Wu and others 2018, arXiv 1805.01978, section 3.4)


class Probe(NamedTuple):
    """A linear classifier of raw embeddings; the standardisation it was fitted behind is folded in."""

    weight: np.ndarray  # (C, D) float32
    bias: np.ndarray  # (C,) float32
    strength: float  # the C that cross-validation chose
    cross_validated: float  # accuracy in percent, inside the labels it was fitted on

    def accuracy(self, vectors: np.ndarray, labels: np.ndarray) -> float:
        """Percent of `vectors` (N, D) whose largest logit is at `labels` (N,)."""
        return percent(vectors @ self.weight.T + self.bias, labels)


def percent(scores: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((scores.argmax(axis=1) == labels).mean())


def fit_probe(vectors: np.ndarray, labels: np.ndarray) -> Probe:
    """L2 logistic regression on standardised features, its strength chosen by stratified 5-fold cross-validation
    inside the given labels and nothing else. vectors: (N, D) float; labels: (N,) integers, every class there."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(vectors, labels))

    def score(strength: float) -> float:
        hits = 0.0
        for known, asked in folds:
            weight, bias = regression(vectors[known], labels[known], strength)
            hits += percent(vectors[asked] @ weight.T + bias, labels[asked]) * len(asked)
        return hits / len(vectors)

    strength, best = first_peak(STRENGTHS, score)
    weight, bias = regression(vectors, labels, strength)
    return Probe(weight.astype(np.float32), bias.astype(np.float32), strength, best)


def regression(vectors: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, D) and bias (C,) in terms of the raw vectors."""
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0) + 1e-8
    with threadpool_limits(1):  # beside other work, BLAS threads that wait for each other made this 35 times slower
        model = LogisticRegression(C=strength, max_iter=2000).fit((vectors - mean) / spread, labels)
    weight = model.coef_ / spread
    return weight, model.intercept_ - weight @ mean


def first_peak(candidates: tuple[float, ...], score: Callable[[float], float]) -> tuple[float, float]:
    """Walk the candidates in order and stop once two in a row were worse than the best: weaker penalties only
    get slower to fit."""
    best, best_score, worse = candidates[0], float("-inf"), 0
    for candidate in candidates:
        reached = score(candidate)
        if reached > best_score:
            best, best_score, worse = candidate, reached, 0
        elif (worse := worse + 1) == 2:
            break
    return best, best_score


def neighbor_accuracy(
    gallery: np.ndarray, gallery_labels: np.ndarray, queries: np.ndarray | None, labels: np.ndarray
) -> float:
    """Percent of queries that a weighted vote of their 20 nearest gallery vectors gets right. All unit vectors;
    queries None: every gallery vector asks the others (leave-one-out), and `labels` are the gallery's."""
    classes = int(gallery_labels.max()) + 1
    scores = []
    asked = gallery if queries is None else queries
    for start in range(0, len(asked), 1000):
        similarity = asked[start : start + 1000] @ gallery.T
        if queries is None:
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = -np.inf
        k = min(NEIGHBORS, len(gallery) - (queries is None))
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / VOTE_TEMPERATURE)
        votes = np.zeros((len(similarity), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], gallery_labels[nearest]), weights)
        scores.append(votes)
    return percent(np.concatenate(scores), labels)


class Draws(NamedTuple):
    """Mean and standard deviation over draws, in percent."""

    mean: float
    deviation: float


def few_label_accuracy(
    vectors: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    share: float = 0.05,
    draws: int = 10,
) -> tuple[Draws, Draws]:
    """Linear probe and 20-NN when only `share` of the labels is known: stratified draws, seeds 0 to draws - 1."""
    linear, nearest = [], []
    for seed in range(draws):
        split = StratifiedShuffleSplit(1, train_size=share, random_state=seed)
        known, _ = next(split.split(vectors, labels))
        linear.append(fit_probe(vectors[known], labels[known]).accuracy(queries, query_labels))
        nearest.append(neighbor_accuracy(vectors[known], labels[known], queries, query_labels))
    return summary(linear), summary(nearest)


def summary(values: list[float]) -> Draws:
    return Draws(float(np.mean(values)), float(np.std(values, ddof=1)))
