"""How a gallery is searched, from its size and the memory there is."""

import os
import re
from dataclasses import dataclass

import faiss

from index.errors import RowRefused

FLAT = "Flat"
QUICK = "SQ8"  # exact but for 8-bit codes: built in seconds, while the real one is
FLAT_BELOW = 50_000  # rows: 50,000 × 512 are searched exactly in about 2 ms on one thread
GRAPH = "HNSW32,SQ8"
GRAPH_BYTES = 300  # a row beside its code: 64 links of the lowest layer, those above, key, seq, id
# Beyond these bounds FAISS ends the process, or finds nothing.
KNOWN = re.compile(r"Flat|SQ8|HNSW(?P<links>\d+),(SQ8|SQfp16|Flat)|IVF(?P<cells>\d+),(Flat|RaBitQ(fs)?[1-9]?)")
LINKS = range(4, 129)
CELLS = range(1, 65_537)
EF_CONSTRUCTION = 40  # candidates for the links of a new row of HNSW


@dataclass(frozen=True)
class Plan:
    """What was asked for; what was not is chosen."""

    factory: str | None = None  # in FAISS's words; None: by size and memory
    ram: int | None = None  # bytes the acceleration may take; None: half of the machine's
    flat_below: int = FLAT_BELOW

    def __post_init__(self) -> None:
        if self.factory is not None and not _known(self.factory):
            raise RowRefused(
                f"factory {self.factory!r} is none of Flat, SQ8, HNSW32,SQ8, HNSW32,SQfp16, HNSW32,Flat, "
                f"IVF4096,Flat and IVF4096,RaBitQfs4 (HNSW with {LINKS[0]} to {LINKS[-1]} links, IVF with at most "
                f"{CELLS[-1]} cells)"
            )

    def choose(self, rows: int, dimension: int) -> str:
        """The factory for so many rows."""
        if rows < max(self.flat_below, _cells_of(self.factory), 1):
            return FLAT
        if self.factory is not None:
            return self.factory
        if rows * (dimension + GRAPH_BYTES) <= (_half_of_memory() if self.ram is None else self.ram):
            return GRAPH
        return f"IVF{cells_for(rows)},RaBitQfs4"


def _known(factory: str) -> bool:
    found = KNOWN.fullmatch(factory)
    return found is not None and int(found["links"] or LINKS[0]) in LINKS and int(found["cells"] or CELLS[0]) in CELLS


def _cells_of(factory: str | None) -> int:
    """How many cells an IVF has; it cannot learn them from fewer rows."""
    found = re.match(r"IVF(\d+)", factory or "")
    return int(found[1]) if found else 0


def cells_for(rows: int) -> int:
    """About 4 √rows, a power of two, so that a few more rows change nothing; at least 39 rows a cell to train on."""
    cells = 1
    while cells * cells < 8 * rows and cells * 39 * 2 <= rows:
        cells *= 2
    return cells


def empty_index(factory: str, dimension: int) -> faiss.Index:
    """A FAISS index that holds nothing yet, by inner product."""
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = EF_CONSTRUCTION
    return index


def reranked(factory: str) -> bool:
    """Whether its scores are estimates, so that candidates are compared once more with their exact vectors."""
    return "RaBitQ" in factory


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
