"""How good frozen embeddings are: a linear probe, nearest neighbours (SimCLR, section 4 and appendix B.6), and class
means (prototypical networks, arXiv 1703.05175). Classes are numbered from 0, and each has a labelled vector."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from threadpoolctl import ThreadpoolController

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # candidates for C, the inverse of the L2 penalty
FOLDS = 5
# Where a class has fewer labels than there are folds, nothing can be chosen among them. With one to four a class all
# strengths from 1e-5 to 10 lie within a point of each other, for trained weights as for random ones.
FEW_LABELS_STRENGTH = 1e-2
NEIGHBORS = 20
MOST_STEPS = 2000  # of the solver
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
    inside the given labels and nothing else. vectors: (N, D) float; labels: (N,) integers, at least five of each
    class."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(vectors, labels))
    models = [LogisticRegression(max_iter=MOST_STEPS, warm_start=True) for _ in folds]

    def score(strength: float) -> float:
        hits = 0.0
        for (known, asked), model in zip(folds, models, strict=True):
            weight, bias = regression(vectors[known], labels[known], strength, model)
            hits += percent(vectors[asked] @ weight.T + bias, labels[asked]) * len(asked)
        return hits / len(vectors)

    with one_thread():
        strength, best = first_peak(STRENGTHS, score)
        weight, bias = regression(vectors, labels, strength)
    return Probe(weight.astype(np.float32), bias.astype(np.float32), strength, best)


def fit_few(vectors: np.ndarray, labels: np.ndarray) -> Probe:
    """As `fit_probe`; where a class has fewer than five labels, at a fixed strength, and cross_validated is NaN."""
    if np.bincount(labels).min() >= FOLDS:
        return fit_probe(vectors, labels)
    weight, bias = regression(vectors, labels, FEW_LABELS_STRENGTH)
    return Probe(weight.astype(np.float32), bias.astype(np.float32), FEW_LABELS_STRENGTH, float("nan"))


def regression(
    vectors: np.ndarray, labels: np.ndarray, strength: float, model: LogisticRegression | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, D) and bias (C,) in terms of the raw vectors. `model`: where to start from, which is left fitted;
    from the solution of a neighbouring strength it takes half as many steps."""
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0) + 1e-8
    model = (model or LogisticRegression(max_iter=MOST_STEPS)).set_params(C=strength)
    with one_thread():
        model.fit((vectors - mean) / spread, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes sklearn keeps the second one's log-odds alone
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    weight = weight / spread
    return weight, bias - weight @ mean


def one_thread() -> AbstractContextManager[object]:
    """Beside other work, BLAS threads that wait for each other made a fit 35 times slower."""
    return thread_pools().limit(limits=1)


@cache
def thread_pools() -> ThreadpoolController:
    """Finding the pools takes milliseconds, as long as a fit of few labels."""
    return ThreadpoolController()


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


def prototype_accuracy(
    vectors: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """Percent of queries whose nearest class mean, by Euclidean distance, is their class's (arXiv 1703.05175,
    section 2.2). vectors: (N, D), queries: (Q, D), all of unit length."""
    means = np.stack([vectors[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])
    return percent(queries @ means.T - (means**2).sum(axis=1) / 2, query_labels)  # ‖q - m‖² without ‖q‖², halved


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
        known = drawn_share(labels, share, seed)
        linear.append(fit_few(vectors[known], labels[known]).accuracy(queries, query_labels))
        nearest.append(neighbor_accuracy(vectors[known], labels[known], queries, query_labels))
    return summary(linear), summary(nearest)


def drawn_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of a stratified draw of `share` of the labels (N,), shuffled."""
    split = StratifiedShuffleSplit(1, train_size=share, random_state=seed)
    known, _ = next(split.split(labels, labels))
    return known


def summary(values: Sequence[float]) -> Draws:
    """Of a single value the deviation is 0."""
    return Draws(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
