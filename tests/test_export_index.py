"""Rows of one index into another, or into a file: all of them, once, compared; and on where it was stopped."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import GalleryError, RowRefused, WrongModel
from index.export import export_file, export_index
from index.face import Record
from index.gallery import Gallery
from index.seed import _read
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
    assert (summary.copied, summary.already_there, summary.others) == (121, 0, 0)
    assert (summary.compared, summary.found) == (121, 121)
    assert "121 rows copied" in str(summary) and "counts agree" in str(summary) and "\n" not in str(summary)
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
    assert summary.others == 1 and "1 others besides" in str(summary) and "counts agree" not in str(summary)


@pytest.mark.parametrize(
    "change", [{"vector": rows(1, seed=9)[0]}, {"label": None}, {"metadata": {"n": 5}}, {"content": b"other"}]
)
def test_a_row_that_differs_in_one_thing_is_copied_again(source: Gallery, change: dict[str, Any]) -> None:
    source.add(["a", "b"], rows(2), ["x", "y"], [{"n": 1}, {}], [b"one", b"two"])
    target = BruteIndex(DIGEST, DIMENSION)
    export_index(source, target)
    (row,) = target.get(["a"])
    assert row is not None
    changed = row._replace(**change)
    target.add(["a"], changed.vector[None], [changed.label], [changed.metadata], [changed.content])
    assert export_index(source, target).copied == 1
    (record,), (row,) = source.get(["a"]), target.get(["a"])
    assert record is not None and row is not None and record[2:] == row[2:]
    np.testing.assert_array_equal(record.vector, row.vector)


def test_an_empty_index_moves(source: Gallery, tmp_path: Path) -> None:
    summary = export_index(source, BruteIndex(DIGEST, DIMENSION))
    assert (summary.copied, summary.others, summary.compared) == (0, 0, 0)
    assert export_file(source, tmp_path / "none.npz") == export_file(source, tmp_path / "none.ndjson") == 0
    assert (tmp_path / "none.ndjson").read_bytes() == b""
    with np.load(tmp_path / "none.npz", allow_pickle=False) as arrays:
        assert arrays["vectors"].shape == (0, DIMENSION)


@pytest.mark.parametrize("progress", [True, False])
def test_nothing_is_shown_where_there_is_no_terminal_or_none_is_wanted(
    source: Gallery, progress: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(source, 5)
    export_index(source, BruteIndex(DIGEST, DIMENSION), progress=progress)
    assert capfd.readouterr() == ("", "")


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
    with pytest.raises(GalleryError, match="the target has 0 rows where 30 should be"):
        export_index(source, target)


def test_a_loss_is_noticed_though_the_target_has_more_rows_of_its_own(
    source: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, 400)
    target = BruteIndex(DIGEST, DIMENSION)
    target.add([f"own {row}" for row in range(50)], rows(50, seed=8), [None] * 50)

    def loses_one(names: Sequence[str], *given: Any) -> None:
        BruteIndex.add(target, names, *given)
        target.remove(names[:1])

    monkeypatch.setattr(target, "add", loses_one)
    with pytest.raises(GalleryError, match="the target has 449 rows where 450 should be"):
        export_index(source, target)


def test_rows_that_others_wrote_into_the_target_are_noticed(source: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, 30)
    target = BruteIndex(DIGEST, DIMENSION)

    def writes_more(*given: Any) -> None:
        BruteIndex.add(target, *given)
        BruteIndex.add(target, ["more"], rows(1, seed=8), [None])

    monkeypatch.setattr(target, "add", writes_more)
    with pytest.raises(GalleryError, match="the target has 31 rows where 30 should be"):
        export_index(source, target)


def test_a_source_that_gives_fewer_rows_than_it_has_is_noticed(
    source: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, 30)
    first = next(source.records(batch=10))
    monkeypatch.setattr(source, "records", lambda batch: iter([first]))
    with pytest.raises(GalleryError, match="gave 10 rows of 30"):
        export_index(source, BruteIndex(DIGEST, DIMENSION))


def test_rows_that_arrive_changed_are_named(source: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, 30)
    target = BruteIndex(DIGEST, DIMENSION)
    monkeypatch.setattr(
        target, "add", lambda names, vectors, *rest: BruteIndex.add(target, names, vectors[::-1], *rest)
    )
    with pytest.raises(GalleryError, match=r"row '\d+' differs in the target; run the export again"):
        export_index(source, target)


def test_a_target_that_does_not_find_what_it_holds_is_noticed(
    source: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, 30)
    target = BruteIndex(DIGEST, DIMENSION)
    monkeypatch.setattr(target, "search", lambda vectors, k: [[] for _ in vectors])
    with pytest.raises(GalleryError, match="30 of 30 rows do not find themselves"):
        export_index(source, target)


def test_copies_of_one_picture_may_stand_before_a_row(source: Gallery) -> None:
    source.add([f"{row:02d}" for row in range(30)], np.repeat(rows(1), 30, axis=0), [None] * 30)
    summary = export_index(source, BruteIndex(DIGEST, DIMENSION))
    assert summary.compared == summary.found == 30


@pytest.mark.parametrize(("digest", "dimension"), [("e" * 64, DIMENSION), (DIGEST, DIMENSION + 1)])
def test_a_target_of_another_model_is_refused(source: Gallery, digest: str, dimension: int) -> None:
    fill(source, 3)
    target = BruteIndex(digest, dimension)
    with pytest.raises(WrongModel, match=f"{digest[:12]} and dimension {dimension}, .* name a target"):
        export_index(source, target)
    assert target.count == 0


def test_batches_of_no_rows_are_refused(source: Gallery) -> None:
    with pytest.raises(RowRefused, match="batch is 0"):
        export_index(source, BruteIndex(DIGEST, DIMENSION), batch=0)


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
        assert arrays["vectors"].dtype == np.float32


def test_the_reader_of_the_seed_takes_a_file_of_arrays(source: Gallery, tmp_path: Path) -> None:
    vectors = fill(source, 12)
    export_file(source, tmp_path / "gallery.npz")
    digest = sha256((tmp_path / "gallery.npz").read_bytes()).hexdigest()
    names, labels, read = _read(tmp_path, {"file": "gallery.npz", "rows": 12, "sha256": digest})
    assert names == [f"{number:03d}" for number in range(12)] and labels[:3] == ["cat", "dog", None]
    np.testing.assert_array_equal(read, vectors)


def test_a_file_that_is_there_is_replaced_only_by_a_whole_one(
    source: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, 12)
    (tmp_path / "rows.ndjson").write_text("before")
    first = next(source.records(batch=5))

    def breaks() -> Iterator[list[Record]]:
        yield first
        raise GalleryError("away")

    with monkeypatch.context() as patched:
        patched.setattr(source, "records", breaks)
        with pytest.raises(GalleryError, match="away"):
            export_file(source, tmp_path / "rows.ndjson")
    assert (tmp_path / "rows.ndjson").read_text() == "before" and list(tmp_path.glob(".*")) == []
    assert export_file(source, tmp_path / "rows.ndjson") == 12


def test_another_kind_of_file_is_refused_with_those_there_are(source: Gallery, tmp_path: Path) -> None:
    with pytest.raises(RowRefused, match=r"\.csv.*\.ndjson or \.npz.*milvus://"):
        export_file(source, tmp_path / "rows.csv")


def test_a_file_that_cannot_be_written_leaves_nothing(source: Gallery, tmp_path: Path) -> None:
    fill(source, 3)
    with pytest.raises(GalleryError, match="name another folder"):
        export_file(source, tmp_path / "not there" / "rows.ndjson")
