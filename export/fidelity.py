"""How much of the fp32 model a smaller artifact keeps, and the budget beyond which it is another model."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from encoder.session import Embedded
from training.probe import FOLDS, percent, regression

HELD_OUT = 1000  # train images that calibration does not see
OVERLAP = 10  # neighbours compared


class OverBudget(Exception):
    """An artifact too far from its fp32 model to carry its name."""


@dataclass(frozen=True)
class Budget:
    cosine_mean: float = 0.998  # at least
    probe_loss: float = 0.3  # at most, in points
    overlap: float = 0.9  # at least, share of common neighbours


@dataclass(frozen=True)
class Fidelity:
    """int8 against fp32."""

    images: int  # that the next four lines are measured on
    cosine_mean: float
    cosine_p1: float  # first percentile
    top1_agreement: float  # percent of images whose largest logit is the same
    overlap: float  # share of the 10 nearest neighbours, found by either model in its own gallery, in common
    probe_fp32: float  # accuracy in percent, on images it has not seen, of a probe fitted on others' fp32 vectors
    probe_int8: float  # the same probe on int8 vectors

    def check(self, budget: Budget, precision: str = "int8") -> None:
        broken = beyond(
            ("mean cosine", self.cosine_mean, ">=", budget.cosine_mean),
            ("probe loss in points", self.probe_fp32 - self.probe_int8, "<=", budget.probe_loss),
            ("10-NN overlap", self.overlap, ">=", budget.overlap),
        )
        if broken:
            raise OverBudget(
                f"{precision} is too far from fp32 ({self.images} held-out images): {'; '.join(broken)}. Nothing "
                "was written. A well trained encoder stays inside: look for a mistake in its calibration images, "
                "give more of them with --calibration, or try another --calibrator."
            )

    def to_json(self, precision: str = "int8") -> dict[str, Any]:
        return {key.replace("int8", precision): round(value, 5) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Closeness:
    """What can be said of a smaller artifact against fp32 where the images have no labels."""

    images: int
    cosine_mean: float
    cosine_p1: float  # first percentile
    cosine_min: float
    overlap: float  # share of an image's 10 nearest neighbours among the others, found by either model, in common

    def beyond(self, budget: Budget) -> list[str]:
        """What is outside the budget; its part about a probe does not count."""
        return beyond(
            ("mean cosine", self.cosine_mean, ">=", budget.cosine_mean),
            ("10-NN overlap", self.overlap, ">=", budget.overlap),
        )

    def to_json(self) -> dict[str, Any]:
        return {key: round(value, 5) for key, value in asdict(self).items()}


def closeness(fp32: np.ndarray, small: np.ndarray) -> Closeness:
    """fp32, small: (N, D) unit vectors of the same images, N more than 10."""
    cosine = (fp32 * small).sum(axis=1)
    return Closeness(
        images=len(cosine),
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(np.percentile(cosine, 1)),
        cosine_min=float(cosine.min()),
        overlap=overlap_within(fp32, small),
    )


def beyond(*found: tuple[str, float, str, float]) -> list[str]:
    """A sentence for each (what, value, >= or <=, limit) that does not hold; NaN never does."""
    return [
        f"{what} is {value:.4f}, the budget is {sign} {limit}"
        for what, value, sign, limit in found
        if not (value >= limit if sign == ">=" else value <= limit)
    ]


def compare(
    fp32: Embedded,
    int8: Embedded,
    labels: np.ndarray,
    held_out: np.ndarray,
    strength: float,
    cross_validated: bool = False,
) -> Fidelity:
    """fp32, int8: outputs for all N images; labels: (N,); held_out: (N,) bool; strength: the probe's C.

    The probe is fitted on all but the held-out images and asked about those; cross-validated, it is asked about
    all N, in five parts, each by a probe fitted on the other four: on a thousand images one point is ten of them.
    """
    cosine = (fp32.vectors[held_out] * int8.vectors[held_out]).sum(axis=1)
    asked = folds(labels) if cross_validated else [held_out]
    probes = [regression(fp32.vectors[~part], labels[~part], strength) for part in asked]

    def accuracy(vectors: np.ndarray) -> float:
        hits = [
            percent(vectors[part] @ weight.T + bias, labels[part]) * part.sum()
            for part, (weight, bias) in zip(asked, probes, strict=True)
        ]
        return sum(hits) / sum(part.sum() for part in asked)

    same_top = fp32.logits[held_out].argmax(axis=1) == int8.logits[held_out].argmax(axis=1)
    return Fidelity(
        images=int(held_out.sum()),
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(np.percentile(cosine, 1)),
        top1_agreement=100 * float(same_top.mean()),
        overlap=neighbor_overlap(fp32.vectors, int8.vectors, held_out),
        probe_fp32=accuracy(fp32.vectors),
        probe_int8=accuracy(int8.vectors),
    )


def folds(labels: np.ndarray) -> list[np.ndarray]:
    """(N,) bool a fold: stratified fifths, in each the images that are asked about."""
    parts = []
    for _, asked in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels):
        parts.append(np.zeros(len(labels), bool))
        parts[-1][asked] = True
    return parts


def neighbor_overlap(one: np.ndarray, other: np.ndarray, held_out: np.ndarray) -> float:
    """Mean share of common ids among the nearest neighbours of the held-out rows in the rest, in each space."""
    return in_common(*(v[held_out] @ v[~held_out].T for v in (one, other)))


def overlap_within(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of common ids among the nearest neighbours of each row in all others, in each space."""
    similar = [v @ v.T for v in (one, other)]
    for matrix in similar:
        np.fill_diagonal(matrix, -np.inf)
    return in_common(*similar)


def in_common(one: np.ndarray, other: np.ndarray) -> float:
    """one, other: (N, M) similarities; the share of the columns of the greatest in each row that both name."""
    nearest = [np.argsort(-similar, axis=1)[:, :OVERLAP] for similar in (one, other)]
    return float(np.mean([len(set(a) & set(b)) / OVERLAP for a, b in zip(*nearest, strict=True)]))
