"""The face of an index in memory, by brute force: what the real ones are compared with, and stand-in for them."""

import json
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from index.draw import drawn_ids
from index.errors import RowRefused
from index.face import Neighbor, Recall, Record, Stats
from index.filters import LABEL, Filter, OneOf, Within
from index.incoming import checked
from index.vectors import unit_rows

COMPARE = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


class BruteIndex:
    """An `index.face.Index` that keeps nothing when it is gone."""

    def __init__(self, model_digest: str, dimension: int) -> None:
        self.model_digest = model_digest
        self.dimension = dimension
        self._rows: dict[str, Record] = {}
        self._changing = threading.Lock()

    @property
    def count(self) -> int:
        return len(self._rows)

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        contents: Sequence[bytes | None] | None = None,
    ) -> None:
        incoming = checked(ids, vectors, labels, metadata, contents, self.dimension)
        fields = [json.loads(document) if document else {} for document in incoming.documents]
        rows = zip(incoming.ids, incoming.vectors, incoming.labels, fields, incoming.contents, strict=True)
        with self._changing:
            self._rows |= {row[0]: Record(*row) for row in rows}

    def remove(self, ids: Iterable[str]) -> int:
        with self._changing:
            return sum(self._rows.pop(name, None) is not None for name in ids)

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        with self._changing:
            return [self._rows.get(name) for name in ids]

    def known_contents(self, contents: Sequence[bytes]) -> dict[bytes, str]:
        there = {row.content: row.id for row in self._all() if row.content is not None}
        return {content: there[content] for content in contents if content in there}

    def records(self, batch: int = 1000) -> Iterator[list[Record]]:
        rows = self._all()
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]

    def sample(self, most: int) -> list[Record]:
        return [self._rows[id] for id in drawn_ids(list(self._rows), most)]

    def search(
        self, vectors: np.ndarray, k: int, where: Filter | None = None, min_score: float | None = None
    ) -> list[list[Neighbor]]:
        queries = unit_rows(vectors, self.dimension)
        if k < 0:
            raise RowRefused(f"k is {k}; send a whole number from 0")
        rows = [row for row in self._all() if where is None or matches(where, row)]
        held = np.stack([row.vector for row in rows]) if rows else np.empty((0, self.dimension))
        return [_best(query, rows, held, k, min_score) for query in queries]

    def stats(self, measure_recall: bool = False) -> Stats:
        rows = self.count
        recall = Recall(at=10, value=1.0, queries=min(rows, 100), seconds=0.0) if measure_recall and rows else None
        return Stats(
            rows=rows,
            delta=0,
            tombstones=0,
            factory="Flat",
            memory_bytes=4 * self.dimension * rows,
            snapshot=None,
            rebuilding=False,
            recall=recall,
        )

    def close(self) -> None:
        pass

    def __enter__(self) -> "BruteIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self) -> list[Record]:
        with self._changing:
            return list(self._rows.values())


def matches(where: Filter, row: Record) -> bool:
    """Whether all conditions hold for the row."""
    return all(_holds(condition, row) for condition in where.conditions)


def _holds(condition: OneOf | Within, row: Record) -> bool:
    value = row.label if condition.field == LABEL else row.metadata.get(condition.field)
    if isinstance(condition, OneOf):
        return any(_kind(value) is _kind(one) is not None and value == one for one in condition.values)
    return all(
        _kind(value) is _kind(bound) is not None and COMPARE[name](value, bound) for name, bound in condition.bounds
    )


def _kind(value: object) -> type | None:
    """What a value may be compared with; None for what no filter matches: null, lists and objects."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return float
    return str if isinstance(value, str) else None


def _best(query: np.ndarray, rows: list[Record], held: np.ndarray, k: int, min_score: float | None) -> list[Neighbor]:
    # einsum, not @: BLAS may round equal rows differently, by where they lie in the matrix.
    scores = np.einsum("nd,d->n", held.astype(np.float64), query.astype(np.float64)).astype(np.float32).tolist()
    found = sorted(zip(scores, rows, strict=True), key=lambda pair: (-pair[0], pair[1].id))[:k]
    return [
        Neighbor(row.id, score, row.label, row.metadata)
        for score, row in found
        if min_score is None or score >= min_score
    ]
