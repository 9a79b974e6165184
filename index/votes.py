"""The class of a query, as its neighbours vote for it."""

from collections import defaultdict
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from index.face import Neighbor

# As the k-NN that training evaluates by (Wu and others 2018, arXiv 1805.01978, section 3.4).
TEMPERATURE = 0.07


class Vote(NamedTuple):
    """What one label got."""

    label: str
    share: float  # of all weight, 0 to 1


def vote(neighbors: Sequence[Neighbor]) -> list[Vote]:
    """Each label's share of exp(score / 0.07), best first, equal shares by label; neighbours without a label abstain.

    The shares sum to one; where no neighbour has a label, there are none.
    """
    voters = [(neighbor.label, neighbor.score) for neighbor in neighbors if neighbor.label is not None]
    best = max((score for _, score in voters), default=0.0)  # against it, so that nothing overflows
    weights: defaultdict[str, float] = defaultdict(float)
    for label, score in voters:
        weights[label] += exp((score - best) / TEMPERATURE)
    total = sum(weights.values())
    votes = [Vote(label, weight / total) for label, weight in weights.items()]
    return sorted(votes, key=lambda one: (-one.share, one.label))
