"""Engines of nearest-neighbour search side by side: built into a file, loaded from it, asked one query a call.

All compare by inner product of unit vectors and answer with row numbers. The `effort` of a search is what each engine
turns to trade speed for recall: efSearch, nprobe or expansion.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index.plan import cells_for, empty_index

BATCH = 16_384  # rows added at a time
LINKS, CONSTRUCTION = 32, 40  # of every graph alike
CANDIDATES = 40  # that IVF-RaBitQ compares once more with the exact vectors

Search = Callable[[np.ndarray, int], np.ndarray]  # (D,) query and effort to (10,) row numbers


@dataclass(frozen=True)
class Engine:
    """One of them."""

    name: str
    efforts: tuple[int, ...]
    build: Callable[[np.ndarray, Path, int], None]  # vectors, file, threads
    load: Callable[[Path, np.ndarray, int], Search]  # file, exact vectors, k; searches with one thread


def _build_faiss(factory: Callable[[int], str]) -> Callable[[np.ndarray, Path, int], None]:
    def build(vectors: np.ndarray, file: Path, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        index = empty_index(factory(len(vectors)), vectors.shape[1])
        drawn = np.sort(np.random.default_rng(0).permutation(len(vectors))[:65_536])
        index.train(np.ascontiguousarray(vectors[drawn]))
        for start in range(0, len(vectors), BATCH):
            index.add(np.ascontiguousarray(vectors[start : start + BATCH]))
        faiss.write_index(index, str(file))

    return build


def _load_graph(file: Path, vectors: np.ndarray, k: int) -> Search:
    index = faiss.read_index(str(file))
    faiss.omp_set_num_threads(1)

    def search(query: np.ndarray, effort: int) -> np.ndarray:
        return index.search(query[None], k, params=faiss.SearchParametersHNSW(efSearch=effort))[1][0]

    return search


def _load_flat(file: Path, vectors: np.ndarray, k: int) -> Search:
    index = faiss.read_index(str(file))
    faiss.omp_set_num_threads(1)
    return lambda query, effort: index.search(query[None], k)[1][0]


def _load_cells(file: Path, vectors: np.ndarray, k: int) -> Search:
    index = faiss.read_index(str(file))
    faiss.omp_set_num_threads(1)

    def search(query: np.ndarray, effort: int) -> np.ndarray:
        parameters = faiss.SearchParametersIVF(nprobe=effort)
        found = index.search(query[None], CANDIDATES, params=parameters)[1][0]
        found = found[found >= 0]
        return found[np.argsort(-(vectors[found] @ query))[:k]]

    return search


def _build_usearch(vectors: np.ndarray, file: Path, threads: int) -> None:
    from usearch.index import Index

    index = Index(
        ndim=vectors.shape[1], metric="ip", dtype="bf16", connectivity=LINKS, expansion_add=2 * CONSTRUCTION
    )
    for start in range(0, len(vectors), BATCH):
        rows = np.ascontiguousarray(vectors[start : start + BATCH])
        index.add(np.arange(start, start + len(rows)), rows, threads=threads)
    index.save(str(file))


def _load_usearch(file: Path, vectors: np.ndarray, k: int) -> Search:
    from usearch.index import Index

    index = Index.restore(str(file))

    def search(query: np.ndarray, effort: int) -> np.ndarray:
        if index.expansion_search != effort:
            index.expansion_search = effort
        return index.search(query, k, threads=1).keys

    return search


def _build_hnswlib(vectors: np.ndarray, file: Path, threads: int) -> None:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=LINKS, ef_construction=2 * CONSTRUCTION)
    for start in range(0, len(vectors), BATCH):
        index.add_items(np.ascontiguousarray(vectors[start : start + BATCH]), num_threads=threads)
    index.save_index(str(file))


def _load_hnswlib(file: Path, vectors: np.ndarray, k: int) -> Search:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.load_index(str(file))
    index.set_num_threads(1)
    last: list[Any] = [None]

    def search(query: np.ndarray, effort: int) -> np.ndarray:
        if last[0] != effort:
            index.set_ef(effort)
            last[0] = effort
        return index.knn_query(query, k=k, num_threads=1)[0][0]

    return search


GRAPH_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192)
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("Flat", (0,), _build_faiss(lambda rows: "Flat"), _load_flat),
        Engine("HNSW32,SQ8", GRAPH_EFFORTS, _build_faiss(lambda rows: "HNSW32,SQ8"), _load_graph),
        Engine(
            "IVF,RaBitQfs4",
            (16, 32, 64, 96, 128),
            _build_faiss(lambda rows: f"IVF{cells_for(rows)},RaBitQfs4"),
            _load_cells,
        ),
        Engine("usearch bf16", GRAPH_EFFORTS, _build_usearch, _load_usearch),  # its i8 stays below 0.92 on these
        Engine("hnswlib f32", GRAPH_EFFORTS, _build_hnswlib, _load_hnswlib),
    )
}
