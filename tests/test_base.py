"""The accelerated part: as many rows as were asked for or as there are, and only those that are admitted."""

import threading

import faiss
import numpy as np
import pytest

from index.base import SCAN_BELOW, Base, index_bytes
from index.documents import Documents
from index.flat import Entry
from index.plan import empty_index
from tests.acceleration import DIMENSION, FACTORIES, random_rows

ROWS = 2000
VECTORS = random_rows(ROWS, 0)
KEYS = np.random.default_rng(0).permutation(np.arange(1, 3 * ROWS, 3))[:ROWS]  # in no order, with gaps
RECALL = {"SQ8": 0.9, "HNSW16,SQ8": 0.9, "HNSW16,Flat": 0.95, "IVF16,Flat": 0.75, "IVF16,RaBitQfs4": 0.5}


def base_of(factory: str, rows: int = ROWS, seqs: np.ndarray | None = None) -> Base:
    faiss.omp_set_num_threads(1)
    index = empty_index(factory, DIMENSION)
    index.train(VECTORS)
    index.add(VECTORS[:rows])
    documents = Documents.pack(Entry(f"{row}", "", "") for row in range(rows))
    seqs = np.arange(1, rows + 1) if seqs is None else seqs
    return Base(index, factory, KEYS[:rows], seqs, documents, rows)


def bits(admitted: np.ndarray) -> np.ndarray:
    return np.packbits(admitted, bitorder="little")


@pytest.mark.parametrize("share", [None, 1 / ROWS, 0.01, SCAN_BELOW, 0.5, 0.999])
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_search_finds_as_many_as_there_are_of_those_admitted_each_once_best_first(
    factory: str, share: float | None
) -> None:
    base, queries = base_of(factory), random_rows(6, 1)
    admitted = np.ones(ROWS, bool)
    if share is not None:
        admitted[:] = False
        admitted[np.random.default_rng(1).choice(ROWS, max(1, round(share * ROWS)), replace=False)] = True
    there = np.flatnonzero(admitted)
    for k in (1, 10, len(there), ROWS):
        scores, positions = base.search(
            queries, k, None if share is None else bits(admitted), len(there) / ROWS if share is not None else 1.0
        )
        assert scores.shape == positions.shape == (6, k)
        count = min(k, len(there))
        assert (positions[:, count:] == -1).all()
        for query, near, given in zip(queries, positions[:, :count], scores[:, :count], strict=True):
            assert len(set(near.tolist())) == count and np.isin(near, there).all()
            assert (np.diff(given) <= 0).all()
            cosines = VECTORS @ query
            assert np.abs(given - cosines[near]).max() < (0.15 if "RaBitQ" in factory else 0.02)
        if k == 10:
            true = np.argsort(-(VECTORS[there] @ queries.T), axis=0)[:count].T
            hits = [np.isin(there[best], near).sum() for best, near in zip(true, positions, strict=True)]
            scanned = 1.0 if share is not None and share < SCAN_BELOW and factory.endswith("Flat") else 0.0
            assert np.mean(hits) / count >= max(RECALL[factory], scanned)


@pytest.mark.parametrize("factory", ["HNSW16,SQ8", "HNSW16,Flat"])
def test_rows_that_the_graph_does_not_reach_are_found_by_a_scan(factory: str) -> None:
    base = base_of(factory)
    graph = base.index.hnsw
    neighbors = faiss.vector_to_array(graph.neighbors)
    entry = graph.entry_point
    faiss.copy_array_to_vector(np.full_like(neighbors, -1), graph.neighbors)  # from its entry no way leads on
    queries = random_rows(4, 2)
    scores, positions = base.search(queries, 25, None)
    exact = np.sort(VECTORS @ queries.T, axis=0)[::-1][:25].T
    np.testing.assert_allclose(scores, exact, atol=0.02)
    assert all(len(set(row)) == 25 for row in positions.tolist())
    admitted = np.arange(ROWS) != entry
    _, positions = base.search(queries, 25, bits(admitted), 0.999)
    assert (positions >= 0).all() and entry not in positions


def test_cells_that_hold_too_few_lead_to_a_scan_of_all() -> None:
    base = base_of("IVF16,Flat", rows=100)
    _, positions = base.search(random_rows(5, 3), 100, None)
    assert np.sort(positions, axis=1).tolist() == [list(range(100))] * 5


def test_rows_are_known_by_their_keys_but_for_those_replaced_before_the_last_extension() -> None:
    seqs = np.arange(1, ROWS + 1)
    seqs[[5, 7]] = 0
    base = base_of("SQ8", seqs=seqs)
    assert len(base) == ROWS
    assert base.position_of(int(KEYS[0])) == 0
    assert base.position_of(int(KEYS[5])) == base.position_of(2) == base.position_of(10**12) == -1
    assert base.position_of(int(KEYS.max())) == int(KEYS.argmax())
    assert base.positions_of(np.array([KEYS[9], 2, KEYS[5], KEYS[3], 10**12])).tolist() == [9, 3]
    assert base.positions_of(np.array([], np.int64)).tolist() == []


def test_a_key_that_is_there_twice_is_known_by_its_valid_place() -> None:
    for stale, valid in ((0, 1), (1, 0)):
        seqs = np.array([3, 3, 4])
        seqs[stale] = 0
        index = empty_index("SQ8", DIMENSION)
        index.train(VECTORS)
        index.add(VECTORS[:3])
        entries = Documents.pack([Entry("a", "", "")] * 3)
        assert Base(index, "SQ8", np.array([8, 8, 9]), seqs, entries, 4).position_of(8) == valid


def test_a_base_without_rows_knows_none() -> None:
    base = base_of("SQ8", rows=0)
    assert (len(base), base.position_of(1), base.positions_of(np.array([1, 2])).tolist()) == (0, -1, [])


@pytest.mark.parametrize("factory", [*FACTORIES, "HNSW16,SQfp16", "IVF16,RaBitQ"])
def test_the_memory_told_is_about_what_its_parts_take(factory: str) -> None:
    base = base_of(factory)
    written = faiss.serialize_index(base.index).nbytes  # the same arrays, with an id of 8 bytes a row in cells too
    assert index_bytes(base.index) == pytest.approx(written, rel=0.12)
    beside = base.memory_bytes - index_bytes(base.index)
    assert beside == 8 * ROWS + 8 * ROWS + 4 * (KEYS.max() + 1) + 8 * (ROWS + 1) + len(base.documents.text)


def test_a_search_in_a_new_thread_uses_one_core() -> None:
    base, seen = base_of("HNSW16,SQ8"), []

    def search() -> None:
        base.search(random_rows(1, 1), 1, None)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]
