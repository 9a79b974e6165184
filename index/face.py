"""The face of every index: what a search answers, what a row is, and what can be asked.

Two classes wear it: `index.gallery.Gallery` (this machine: SQLite and FAISS) and `index.milvus.MilvusGallery` (a
cluster). One test class holds both to the same behaviour (tests/index_behaviour.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from index.filters import Filter


class Neighbor(NamedTuple):
    """One search result."""

    id: str
    score: float  # cosine similarity, -1 to 1
    label: str | None
    metadata: dict[str, Any]


class Record(NamedTuple):
    """One row, as it was added."""

    id: str
    vector: np.ndarray  # (dimension,) float32 of unit length
    label: str | None
    metadata: dict[str, Any]
    content: bytes | None = None  # digest of the image's bytes, where it came from an image


class Recall(TypedDict):
    """How many of the true nearest neighbours the acceleration finds."""

    at: int  # k
    value: float  # 0 to 1
    queries: int  # rows that were asked, drawn at random
    seconds: float


class Stats(TypedDict):
    """What an index holds and how it is searched."""

    rows: int
    delta: int  # rows that are searched exactly beside the accelerated ones
    tombstones: int  # accelerated rows that were replaced or removed since, and are masked
    factory: str  # how it is searched, in FAISS's words; "Flat" is exact
    memory_bytes: int | None  # of the acceleration; None where another process holds it
    snapshot: dict[str, Any] | None  # seq, time and bytes of the last one on disk
    rebuilding: bool
    recall: Recall | None  # None until measured, or where it cannot be


class Index(Protocol):
    """All methods may be called from any thread. A search sees every write that was acknowledged before it began, by
    whichever process. Any of them raises `index.errors.GalleryError`, whose subclasses say what went wrong."""

    model_digest: str
    dimension: int

    @property
    def count(self) -> int:
        """Number of rows."""

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        contents: Sequence[bytes | None] | None = None,
    ) -> None:
        """Insert rows, or replace those whose id is there: all of them, durable when this returns, or none.

        vectors: (N, dimension), any real dtype; scaled to unit length. Of an id given twice the later row stays. Send
        some hundred rows at a time: one call costs one sync of the disk.
        """

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the rows of `ids`, durable when this returns. Returns how many of them there were."""

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The rows of `ids`, in their order; None where there is none."""

    def known_contents(self, contents: Sequence[bytes]) -> dict[bytes, str]:
        """Of these digests those that a row has, each with the id of one such row."""

    def records(self, batch: int = 1000) -> Iterator[list[Record]]:
        """Every row, in batches, in an order that stays the same; rows that change meanwhile may show either way."""

    def sample(self, most: int) -> list[Record]:
        """At most `most` rows, 1 or more, drawn fairly and each time the same; reads no other vectors."""

    def search(
        self, vectors: np.ndarray, k: int, where: Filter | None = None, min_score: float | None = None
    ) -> list[list[Neighbor]]:
        """The most similar rows for each query, best first, equal scores ordered by id.

        An accelerated search may overlook a row, and does not look for others that score as much as its last one.
        vectors: (Q, dimension); scaled to unit length. Each list has min(k, rows that match `where`) neighbours, less
        those whose score is below `min_score`.
        """

    def stats(self, measure_recall: bool = False) -> Stats:
        """What is held; with `measure_recall` after a comparison with exact search, which reads every row."""

    def close(self) -> None:
        """Let go of files and connections. What was acknowledged is durable already."""
