"""The accelerated part of a large gallery: a FAISS index over the rows as they were when it was built.

It never changes. What changed since is masked here and searched exactly beside it: see index/overlay.py.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import faiss
import numpy as np

from index.documents import Documents

EF_SEARCH = 64  # of HNSW: how many candidates a search keeps
NPROBE_SHARE = 1 / 64  # of IVF: which part of the cells a search visits
SCAN_BELOW = 0.1  # a mask that admits a smaller part of the rows is searched by scanning all codes


@dataclass(frozen=True)
class Base:
    """Rows by position. A position whose row was replaced before the last extension has seq 0."""

    index: faiss.Index  # inner product
    factory: str
    keys: np.ndarray  # (N,) int64
    seqs: np.ndarray  # (N,) int64
    documents: Documents
    last_seq: int  # every change up to it is in here, or in a row's own seq
    positions: np.ndarray = field(init=False, repr=False)  # (largest key + 1,) int32: position by key, -1 for none

    def __post_init__(self) -> None:
        positions = np.full(int(self.keys.max(initial=0)) + 1, -1, np.int32)
        valid = np.flatnonzero(self.seqs)
        positions[self.keys[valid]] = valid
        object.__setattr__(self, "positions", positions)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def memory_bytes(self) -> int:
        """What it takes, by its parts."""
        arrays = self.keys.nbytes + self.seqs.nbytes + self.positions.nbytes + self.documents.bounds.nbytes
        return int(arrays + len(self.documents.text) + index_bytes(self.index))

    def position_of(self, key: int) -> int:
        """Where the row of this key is, -1 where it is not."""
        return int(self.positions[key]) if key < len(self.positions) else -1

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        """Where the rows of these keys are, those that are here."""
        found = self.positions[keys[keys < len(self.positions)]]
        return found[found >= 0]

    def search(
        self, queries: np.ndarray, k: int, admitted: np.ndarray | None, share: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32, best first, and positions (Q, k) int64; position -1 where there were fewer.

        queries: (Q, dimension) float32 of unit length. admitted: a bit for each position, packed little-endian, those
        that may be found; None for all. share: which part of the rows it admits.
        """
        faiss.omp_set_num_threads(1)  # OpenMP keeps this per thread; requests already run side by side
        selector = None if admitted is None else faiss.IDSelectorBitmap(admitted)
        if share < SCAN_BELOW:
            return self._scan(queries, k, selector)
        scores, positions = self.index.search(queries, k, params=_parameters(self.index, k, selector))
        if positions.min() < 0:  # a graph may not reach every row, and few cells may not hold k
            short = positions[:, -1] < 0
            scores[short], positions[short] = self._scan(queries[short], k, selector)
        return scores, positions

    def _scan(self, queries: np.ndarray, k: int, selector: faiss.IDSelector | None) -> tuple[np.ndarray, np.ndarray]:
        """Compare with the code of every row that is admitted."""
        if isinstance(self.index, faiss.IndexIVF):
            return self.index.search(
                queries, k, params=faiss.SearchParametersIVF(nprobe=self.index.nlist, sel=selector)
            )
        codes = faiss.downcast_index(self.index.storage) if isinstance(self.index, faiss.IndexHNSW) else self.index
        return codes.search(queries, k, params=None if selector is None else faiss.SearchParameters(sel=selector))


def index_bytes(index: faiss.Index) -> int:
    """Bytes of an index's codes and graph."""
    if isinstance(index, faiss.IndexHNSW):
        graph = index.hnsw
        return int(
            index_bytes(faiss.downcast_index(index.storage)) + 4 * graph.neighbors.size() + 8 * graph.offsets.size()
        )
    if isinstance(index, faiss.IndexIVF):
        lists = index.invlists
        return int(sum(lists.list_size(cell) for cell in range(index.nlist)) * (index.code_size + 8))
    return int(index.ntotal * index.sa_code_size())


def _parameters(index: faiss.Index, k: int, selector: faiss.IDSelector | None) -> faiss.SearchParameters | None:
    if isinstance(index, faiss.IndexHNSW):
        ef = max(EF_SEARCH, 2 * k)
        return _plain(ef) if selector is None else faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
    if isinstance(index, faiss.IndexIVF):
        nprobe = max(8, round(NPROBE_SHARE * index.nlist))
        return faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist), sel=selector)
    return None if selector is None else faiss.SearchParameters(sel=selector)


@lru_cache(maxsize=32)
def _plain(ef: int) -> faiss.SearchParameters:
    """Made once: the wrapper takes longer to fill in than it should."""
    return faiss.SearchParametersHNSW(efSearch=ef)
