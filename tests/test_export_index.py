"""Rows of one index into another, or into a file: all of them, once, compared; and on where it was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.errors import GalleryError, RowRefused, WrongModel
from index.export import export_file, export_index
from index.gallery import Gallery
from tests.brute_index import BruteIndex
from tests.index_behaviour import DIGEST, DIMENSION, fill, ids, rows


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "source", DIGEST, DIMENSION) as gallery:
        yield gallery


def test_every_row_arrives_as_it_was(source: Gallery) -> None:
    vectors = fill(source, 120)
    source.add(["image"], rows(1, seed=5), ["x"], [{"a": [1, "ü"]}], [b"d" * 16])
    target = BruteIndex(DIGEST, DIMENSION)
    summary = export_index(source, target, batch=50)
    assert (summary.copied, summary.already_there) == (121, 0) and "121 rows copied" in str(summary)
    assert ids(target.search(vectors[:1], 5)[0]) == ids(source.search(vectors[:1], 5)[0])
    one, other = source.get(["image"])[0], target.get(["image"])[0]
    assert one is not None and other is not None
    assert (one.label, one.metadata, one.content) == (other.label, other.metadata, other.content)


def test_a_second_run_copies_only_what_is_missing_or_differs(source: Gallery) -> None:
    fill(source, 100)
    target = BruteIndex(DIGEST, DIMENSION)
    export_index(source, target)
    target.remove(["003"])
    target.add(["004"], rows(1, seed=9), ["changed"])
    target.add(["of its own"], rows(1, seed=8), [None])
    summary = export_index(source, target, batch=10)
    assert (summary.copied, summary.already_there) == (2, 98)
    assert target.count == 101


def test_a_run_that_was_stopped_goes_on(source: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, 100)
    target = BruteIndex(DIGEST, DIMENSION)
    calls = 0

    def stops_at_the_third(*given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        BruteIndex.add(target, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(target, "add", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            export_index(source, target, batch=20)
    assert target.count == 40
    assert export_index(source, target, batch=20).copied == 60


def test_a_target_that_loses_rows_is_noticed(source: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, 30)
    target = BruteIndex(DIGEST, DIMENSION)
    monkeypatch.setattr(target, "add", lambda *given: None)
    with pytest.raises(GalleryError, match="the target has 0 rows, the source 30"):
        export_index(source, target)


def test_a_target_of_another_model_is_refused(source: Gallery) -> None:
    with pytest.raises(WrongModel, match="eeeeeeeeeeee"):
        export_index(source, BruteIndex("e" * 64, DIMENSION))


def test_a_file_of_lines_is_what_bulk_takes(source: Gallery, tmp_path: Path) -> None:
    vectors = fill(source, 12)
    assert export_file(source, tmp_path / "rows.ndjson") == 12
    lines = [json.loads(line) for line in (tmp_path / "rows.ndjson").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{number:03d}" for number in range(12)]
    np.testing.assert_array_equal(np.float32([line["vector"] for line in lines]), vectors)
    assert lines[1]["label"] == "dog" and lines[2]["label"] is None and lines[4]["metadata"]["n"] == 4
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_a_file_of_arrays_is_what_the_seed_is(source: Gallery, tmp_path: Path) -> None:
    vectors = fill(source, 12)
    assert export_file(source, tmp_path / "rows.npz") == 12
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist()[:2] == ["000", "001"] and arrays["labels"].tolist()[:3] == ["cat", "dog", ""]
        np.testing.assert_array_equal(arrays["vectors"], vectors)


def test_another_kind_of_file_is_refused_with_those_there_are(source: Gallery, tmp_path: Path) -> None:
    with pytest.raises(RowRefused, match=r"\.csv.*\.ndjson or \.npz.*milvus://"):
        export_file(source, tmp_path / "rows.csv")


def test_a_file_that_cannot_be_written_leaves_nothing(source: Gallery, tmp_path: Path) -> None:
    fill(source, 3)
    with pytest.raises(GalleryError, match="name another folder"):
        export_file(source, tmp_path / "not there" / "rows.ndjson")
