"""Near-duplicates over a whole index: groups of rows that are connected by high similarity."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from index.contents import content_digest
from index.errors import RowRefused
from index.face import Index, Neighbor

BATCH = 256  # rows a search
WIDER = 8  # times as many neighbours, where all that were asked for are near
MOST_NEIGHBORS = 16_384  # what Milvus answers with; a group of more holds together by its other rows


def near_duplicates(
    index: Index, min_score: float, k: int = 10, on_batch: Callable[[int], None] = lambda rows: None
) -> list[list[str]]:
    """Groups of ids that are connected by a cosine similarity of at least `min_score`, the largest group first.

    Each row asks for its k nearest, and for more where all of them are that near. What an approximate index overlooks
    from both sides of a pair is missing here too. `on_batch` is told how many rows have been asked.
    """
    if not -1 <= min_score <= 1:
        raise RowRefused(f"min_score is {min_score}; cosine similarities lie between -1 and 1")
    if k < 1:
        raise RowRefused(f"k is {k}; each row must ask for 1 neighbour at least")
    groups = _Groups()
    asked: set[bytes] = set()  # digests of vectors with many neighbours: copies would get the same, long answer
    for rows in index.records(BATCH):
        found = index.search(np.stack([row.vector for row in rows]), k + 1, min_score=min_score)  # itself among them
        for row, neighbors in zip(rows, found, strict=True):
            if len(neighbors) == k + 1 and (digest := content_digest(row.vector.tobytes())) not in asked:
                asked.add(digest)
                neighbors = _all_near(index, row.vector, k + 1, min_score)
            for neighbor in neighbors:
                groups.join(row.id, neighbor.id)
        on_batch(len(rows))
    return groups.all()


def _all_near(index: Index, vector: np.ndarray, k: int, min_score: float) -> list[Neighbor]:
    while True:
        k = min(WIDER * k, MOST_NEIGHBORS)
        (neighbors,) = index.search(vector[None], k, min_score=min_score)
        if len(neighbors) < k or k == MOST_NEIGHBORS:
            return neighbors


class _Groups:
    """Union-find with path halving (Tarjan and van Leeuwen 1984), over ids that have met another one."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            first, second = sorted((one, other))
            self._parents[first] = self._parents[second] = first

    def all(self) -> list[list[str]]:
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self._parents):
            groups[self._root(name)].append(name)
        return sorted(groups.values(), key=lambda group: (-len(group), group))

    def _root(self, name: str) -> str:
        parents = self._parents
        while (parent := parents.get(name, name)) != name:
            parents[name] = name = parents.get(parent, parent)
        return name
