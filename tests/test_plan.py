"""How a gallery is searched follows from its size and the memory, and what cannot be searched is refused at once."""

import faiss
import numpy as np
import pytest

from index.errors import RowRefused
from index.plan import EF_CONSTRUCTION, FLAT, FLAT_BELOW, GRAPH, QUICK, Plan, cells_for, empty_index, reranked
from tests.acceleration import random_rows

GOOD = [
    *("Flat", "SQ8", "HNSW4,SQ8", "HNSW32,SQ8", "HNSW32,SQfp16", "HNSW128,Flat", "IVF1,Flat", "IVF16,Flat"),
    *("IVF16,RaBitQ", "IVF16,RaBitQ4", "IVF16,RaBitQfs", "IVF16,RaBitQfs4", "IVF16,RaBitQfs9"),
]
BAD = [
    *("", "flat", "PQ16", "HNSW32", "HNSW,SQ8", "HNSW32,PQ8", "HNSW32,SQ4", "IVF16", "IVF16,PQ8", "OPQ16,IVF16,Flat"),
    *("Flat,Flat", " Flat", "Flat\n", "SQ8;", "HNSW-1,SQ8", "IVF16,RaBitQ10", "IDMap,Flat", "L2norm,Flat"),
    # FAISS's names, with numbers that it dies of, or finds nothing with; and codes that cannot tell rows added later
    *("HNSW0,SQ8", "HNSW1,SQ8", "HNSW3,SQ8", "HNSW999,SQ8", "IVF0,Flat", "IVF65537,Flat", "IVF16,RaBitQ0"),
    *("IVF16,RaBitQfs0", "IVF16,SQ8"),
]


@pytest.mark.parametrize(
    ("rows", "factory"),
    [
        (0, FLAT),
        (1, FLAT),
        (FLAT_BELOW - 1, FLAT),
        (FLAT_BELOW, GRAPH),
        (10**6, GRAPH),
        (5 * 10**6, "IVF8192,RaBitQfs4"),
    ],
)
def test_small_ones_are_searched_exactly_larger_ones_by_a_graph_and_what_does_not_fit_by_cells(
    rows: int, factory: str
) -> None:
    assert Plan(ram=2 * 10**9).choose(rows, 512) == factory


def test_a_graph_is_chosen_as_long_as_its_rows_fit_the_memory() -> None:
    plan = Plan(ram=812 * 100_000)  # 512 bytes of code and 300 beside
    assert plan.choose(100_000, 512) == GRAPH
    assert plan.choose(100_001, 512) == "IVF1024,RaBitQfs4"
    assert plan.choose(200_000, 128) == "IVF2048,RaBitQfs4"
    assert Plan().choose(FLAT_BELOW, 512) == GRAPH  # half of any machine's memory


def test_next_to_no_memory_is_taken_at_its_word() -> None:
    for ram in (1, 0):
        assert Plan(ram=ram).choose(10**5, 512) == "IVF1024,RaBitQfs4"


def test_what_was_asked_for_is_used_from_the_size_on_that_counts_as_large() -> None:
    plan = Plan("HNSW16,SQ8", flat_below=100)
    assert [plan.choose(rows, 8) for rows in (0, 99, 100, 10**7)] == [FLAT, FLAT, "HNSW16,SQ8", "HNSW16,SQ8"]
    assert [Plan("SQ8", flat_below=0).choose(rows, 8) for rows in (0, 1)] == [FLAT, "SQ8"]
    assert Plan("Flat", flat_below=0).choose(10**7, 8) == FLAT


def test_cells_are_not_asked_of_fewer_rows_than_cells() -> None:
    plan = Plan("IVF4096,Flat", flat_below=100)
    assert [plan.choose(rows, 8) for rows in (100, 4095, 4096)] == [FLAT, FLAT, "IVF4096,Flat"]


def test_cells_are_about_four_times_the_root_of_the_rows_with_enough_of_them_to_learn_each() -> None:
    found = [cells_for(rows) for rows in (1, 78, 1000, 50_000, 10**6, 10**7, 10**8)]
    assert found == [1, 2, 16, 1024, 4096, 16384, 32768]
    counts = [cells_for(rows) for rows in range(1, 300_000, 997)]
    assert counts == sorted(counts)
    for rows in range(39, 10**6, 9973):
        assert 39 * cells_for(rows) <= rows


@pytest.mark.parametrize("factory", GOOD)
def test_every_factory_that_is_accepted_can_be_built_and_finds_a_row_by_itself(factory: str) -> None:
    Plan(factory)
    faiss.omp_set_num_threads(1)
    vectors = random_rows(1000, 0)
    index = empty_index(factory, vectors.shape[1])
    index.train(vectors)
    index.add(vectors)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    scores, positions = index.search(vectors[:50], 1)
    assert np.mean(positions[:, 0] == np.arange(50)) >= (0.8 if "RaBitQ" in factory else 0.95)
    assert np.median(scores) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("factory", BAD)
def test_another_factory_is_refused_with_those_there_are(factory: str) -> None:
    with pytest.raises(RowRefused, match=r"is none of Flat, SQ8, HNSW32,SQ8.*RaBitQfs4"):
        Plan(factory)


def test_a_graph_is_built_with_care() -> None:
    assert empty_index("HNSW8,SQ8", 8).hnsw.efConstruction == EF_CONSTRUCTION
    assert not empty_index(QUICK, 8).is_trained


def test_scores_are_estimates_only_where_vectors_are_reduced_to_a_few_bits() -> None:
    assert [factory for factory in GOOD if reranked(factory)] == [name for name in GOOD if "RaBitQ" in name]
