"""What is fitted on which labels and asked of which images: the numbers of `akin evaluate`, all in percent.

Inside the train labels ("train"), where choices are made: all labels by cross-validation (probe) and leave-one-out
(neighbours); whatever is fitted on a part of them is asked the train images outside that part. On the test split
("test"): the very same fits are asked once more; nothing is chosen there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from training import probe
from training.features import Labelled

COUNTS = (1, 2, 5, 10, 50, 100, 500)  # labels a class, on the curve
CURVE_DRAWS = 5
SHARE = 0.05
SHARE_DRAWS = 10


class Scores(NamedTuple):
    """Percent of the asked that each instrument gets right."""

    linear: float
    knn20: float
    prototypes: float


class Answers(NamedTuple):
    """The scores of one fit after another."""

    train: list[Scores]  # on the train images that were not fitted on; none where there are no others
    test: list[Scores]  # on the test split; none where it is not measured


def inside_train(vectors: np.ndarray, labels: np.ndarray, fitted: probe.Probe | None = None) -> dict[str, Any]:
    """What may be looked at while choosing: cross-validated probe and leave-one-out neighbours. `fitted`: a probe
    that has been fitted on all of these, to save the time."""
    fitted = fitted or probe.fit_probe(vectors, labels)
    nearest = probe.neighbor_accuracy(vectors, labels, None, labels)
    return {"linear": round(fitted.cross_validated, 2), "knn20": round(nearest, 2), "strength": fitted.strength}


def on_test(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The final numbers in short: all train labels, and 5% of them in ten stratified draws (mean, sd)."""
    linear = probe.fit_probe(*train).accuracy(*test)
    nearest = probe.neighbor_accuracy(*train, *test)
    few_linear, few_nearest = probe.few_label_accuracy(*train, *test)
    return {
        "linear": round(linear, 2),
        "knn20": round(nearest, 2),
        "linear_5_percent": rounded(few_linear),
        "knn20_5_percent": rounded(few_nearest),
    }


def measure(train: Labelled, test: Labelled | None, folds: Sequence[np.ndarray]) -> dict[str, dict[str, Any]]:
    """{"train": …, "test": …}, the latter where `test` is given; folds: rows of `train`, none to leave them out.

    Each has linear and knn20; the same with _5_percent and _folds behind, each [mean, sd]; curve, a list of rows.
    A part that the data has too few labels for is left out.
    """
    require_classes(train.labels)
    fitted = probe.fit_probe(*train)
    result: dict[str, dict[str, Any]] = {"train": inside_train(*train, fitted)}
    if test:
        whole = scores(train, test, fitted)
        result["test"] = {"linear": round(whole.linear, 2), "knn20": round(whole.knn20, 2)}
    for draws, suffix in ((share_draws(train.labels, SHARE_DRAWS), "5_percent"), (folds, "folds")):
        for place, found in answers(train, test, draws)._asdict().items():
            if found:
                spread = summaries(found)
                result[place] |= {f"{name}_{suffix}": spread[name] for name in ("linear", "knn20")}
    curve: dict[str, list[dict[str, Any]]] = {place: [] for place in result}
    for count in COUNTS:
        points = answers(train, test, count_draws(train.labels, count))
        if test and {*np.bincount(train.labels)} == {count}:  # all there are: one draw, and it is fitted already
            points = Answers([], [whole])
        for place, found in points._asdict().items():
            if found:
                curve[place].append({"labels_a_class": count, "draws": len(found), **summaries(found)})
    for place, rows in curve.items():
        result[place]["curve"] = rows
    return result


def answers(train: Labelled, test: Labelled | None, draws: Sequence[np.ndarray]) -> Answers:
    """Each draw, rows of `train`, is fitted on once; both places are asked by the same fit."""
    found = Answers([], [])
    for known in draws:
        fitted = probe.fit_few(*train.rows(known))
        others = np.delete(np.arange(len(train.labels)), known)
        if len(others):
            found.train.append(scores(train.rows(known), train.rows(others), fitted))
        if test:
            found.test.append(scores(train.rows(known), test, fitted))
    return found


def scores(known: Labelled, asked: Labelled, fitted: probe.Probe) -> Scores:
    return Scores(
        fitted.accuracy(*asked),
        probe.neighbor_accuracy(*known, *asked),
        probe.prototype_accuracy(*known, *asked),
    )


def count_draws(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of draws of `count` labels of each class; none where that would leave no others of some class to ask."""
    if count >= np.bincount(labels).min():
        return []
    members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    draws = []
    for seed in range(CURVE_DRAWS):
        random = np.random.default_rng((seed, count))  # so that no draw is part of a larger one
        draws.append(np.concatenate([random.choice(own, count, replace=False) for own in members]))
    return draws


def share_draws(labels: np.ndarray, draws: int) -> list[np.ndarray]:
    """Rows of stratified draws of 5% of the labels; none where that is less than one of some class."""
    if np.bincount(labels).min() * SHARE < 1:
        return []
    return [probe.drawn_share(labels, SHARE, seed) for seed in range(draws)]


def summaries(found: Sequence[Scores]) -> dict[str, list[float]]:
    """Instrument -> [mean, sd] over the draws."""
    return {name: rounded(probe.summary([getattr(each, name) for each in found])) for name in Scores._fields}


def rounded(draws: probe.Draws) -> list[float]:
    return [round(draws.mean, 2), round(draws.deviation, 2)]


def require_classes(labels: np.ndarray) -> None:
    """Refuse train labels (N,) among which a class has too few images for cross-validation."""
    counts = np.bincount(labels)
    if len(counts) < 2 or counts.min() < probe.FOLDS:
        raise SystemExit(
            f"the train split has {len(counts)} classes, and {counts.min()} images of class {counts.argmin()}: "
            f"evaluation needs two classes or more, with at least {probe.FOLDS} images each"
        )
