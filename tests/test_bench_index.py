"""The benchmark of the index: what it computes is right, and a small run of it goes through."""

import json
from pathlib import Path

import numpy as np
import pytest

from encoder.machine import cores
from encoder.manifest import Manifest
from index.vectors import unit_rows
from load_tests import bench_index
from load_tests.bench_index import Settings, at_equal_recall, markdown, recall_of
from load_tests.engines import ENGINES
from tests.tiny_encoder import write_tiny_encoder

DIMENSION = 16


def point(recall: float, qps: float) -> dict[str, float]:
    return {"recall": recall, "qps": qps, "p50_ms": 1.0, "p99_ms": 2.0}


def test_speed_at_equal_recall_lies_between_two_efforts_or_at_the_first() -> None:
    curve = [point(0.90, 4000), point(1.00, 1000)]
    assert at_equal_recall(curve, 0.95) == pytest.approx(2000)  # halfway, by ratio
    assert at_equal_recall(curve, 0.90) == at_equal_recall(curve, 0.5) == 4000
    assert at_equal_recall(curve[:1], 0.95) is None


def test_recall_counts_the_true_neighbours_that_were_found() -> None:
    true = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall_of([[4, 3, 2, 1], [5, 6, 0, 9]], true) == 0.75
    assert recall_of([[], [8]], true) == 0.125


def test_a_table_has_a_line_an_engine_and_a_dash_where_the_recall_is_not_reached() -> None:
    found = {"usual": point(0.9, 100), "curve": [point(0.9, 100)], "build_s": 2.0, "bytes_a_vector": 784.3}
    table = markdown({"one": found | {"start_s": 0.5, "memory_mb": 40.0}})
    assert table.splitlines()[-1] == "| one | 0.900 | 100 | 1.00 | – | 2 | 784 | 0.5 | 40 |"


@pytest.mark.parametrize("name", ["Flat", "HNSW32,SQ8", "IVF,RaBitQfs4"])
def test_an_engine_finds_what_brute_force_finds(tmp_path: Path, name: str) -> None:
    rows = unit_rows(np.random.default_rng(0).standard_normal((2000, DIMENSION)), DIMENSION)
    ENGINES[name].build(rows, tmp_path / "index", 1)
    search = ENGINES[name].load(tmp_path / "index", rows, 10)
    queries = rows[:50]
    true = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    assert recall_of([search(query, ENGINES[name].efforts[-1]) for query in queries], true) > 0.85


def test_a_small_gallery_is_filled_built_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: Manifest = write_tiny_encoder(tmp_path / "model_store")
    dimension = manifest.dimension
    work = tmp_path / "work"
    work.mkdir()
    rows = unit_rows(np.random.default_rng(0).standard_normal((600, dimension)), dimension)
    np.save(work / "real-rows.npy", rows[100:])
    np.save(work / "real-queries.npy", rows[:100])
    np.save(work / "real-truth.npy", np.argsort(-(rows[:100] @ rows[100:].T), axis=1)[:, :10])
    monkeypatch.setattr(
        bench_index, "_alone", lambda threads, function, *given: getattr(bench_index, function)(*given)
    )
    settings = ["--work", str(work), "--model-store", str(tmp_path / "model_store")]
    assert bench_index.main([*settings, "--child", "gallery@real"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["factory"] == "Flat" and found["layer_ratio"] is None  # so small a gallery has no base
    assert found["usual"]["recall"] == 1.0 and found["recall_on_the_spot"]["value"] == 1.0
    assert found["durable_adds_a_second"] > 0 and found["threads"] == cores()
    assert Settings().rows == 1_000_000


def test_a_gallery_is_filled_and_built_on_the_cores_that_it_is_given_and_no_more(tmp_path: Path) -> None:
    manifest: Manifest = write_tiny_encoder(tmp_path / "model_store")
    rows = unit_rows(np.random.default_rng(0).standard_normal((20, manifest.dimension)), manifest.dimension)
    np.save(tmp_path / "real-rows.npy", rows)
    before = cores()
    bench_index._alone(1, "fill_gallery", "real", str(tmp_path), str(tmp_path / "model_store"))
    assert json.loads((tmp_path / "real-gallery" / "bench.json").read_text())["threads"] == 1
    assert cores() == before


def test_an_engine_is_built_alone_and_its_file_says_how(tmp_path: Path) -> None:
    np.save(tmp_path / "real-rows.npy", unit_rows(np.random.default_rng(0).standard_normal((20, 16)), 16))
    bench_index._alone(1, "build_one", "Flat", "real", str(tmp_path), 1)
    built = json.loads((tmp_path / "real-Flat.json").read_text())
    assert built.keys() == {"build_s", "threads"} and built["threads"] == 1
    assert (tmp_path / "real-Flat.index").stat().st_size > 20 * 16 * 4
