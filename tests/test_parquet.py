"""Parquet files as Hugging Face writes them: the columns are found, the rows are read a few at a time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from images import parquet
from images.decode import ImageError
from images.sources import SourceError, decoded, open_source
from images.spec import PreprocessSpec
from tests.pictures import encode, scene

PICTURES = [encode(scene(40, 40, seed), "PNG") for seed in range(4)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["cat", "dog", "owl"]


def cells(pictures: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": picture, "path": f"{row}.png"} for row, picture in enumerate(pictures)], STRUCT)


def hugging_face(columns: dict[str, Any], features: dict[str, Any]) -> pa.Table:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def labelled(pictures: list[bytes], labels: list[int | None]) -> pa.Table:
    features = {"img": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    return hugging_face({"img": cells(pictures), "label": pa.array(labels, pa.int64())}, features)


def write(table: pa.Table, path: Path, rows_in_a_group: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_in_a_group)
    return path


def test_images_labels_and_names_come_in_order(tmp_path: Path) -> None:
    source = open_source(write(labelled(PICTURES, [2, 0, 1, 2]), tmp_path / "animals.parquet"))
    assert source.count == 4
    assert source.class_names == ("cat", "dog", "owl")
    assert [(item.id, item.data, item.label) for item in source] == [
        ("0", PICTURES[0], 2),
        ("1", PICTURES[1], 0),
        ("2", PICTURES[2], 1),
        ("3", PICTURES[3], 2),
    ]
    assert len(list(source)) == 4, "and once more, from the start"


def test_pixels_are_those_that_were_encoded(tmp_path: Path) -> None:
    source = open_source(write(labelled(PICTURES, [0] * 4), tmp_path / "animals.parquet"))
    spec = PreprocessSpec(size=40)
    for seed, image in enumerate(decoded(source, spec, on_error=lambda id, error: pytest.fail(f"{id}: {error}"))):
        assert np.array_equal(image.pixels, np.asarray(scene(40, 40, seed)))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bare_bytes_serve_and_labels_may_be_missing(kind: pa.DataType, tmp_path: Path) -> None:
    source = open_source(write(pa.table({"image": pa.array(PICTURES, kind)}), tmp_path / "bare.parquet"))
    assert [(item.data, item.label) for item in source] == [(picture, None) for picture in PICTURES]
    assert source.class_names == ()


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    table = pa.table({"image": cells(PICTURES), "labels": pa.array([7, 0, 1, 300], pa.uint16())})
    source = open_source(write(table, tmp_path / "numbers.parquet"))
    assert [item.label for item in source] == [7, 0, 1, 300]
    assert source.class_names == ()


@pytest.mark.parametrize(
    ("columns", "features", "expected"),
    [
        ({"photo": cells(PICTURES), "label": pa.array([1] * 4)}, {}, "photo"),
        ({"thumbnail": pa.array(PICTURES), "scan": cells(PICTURES)}, {}, "scan"),
        ({"mask": cells(PICTURES), "image": cells(PICTURES)}, {}, "image"),
        ({"image": pa.array(PICTURES), "view": cells(PICTURES)}, {"view": {"_type": "Image"}}, "view"),
        ({"caption": pa.array(["a"] * 4), "image_id": pa.array([1] * 4), "x": cells(PICTURES)}, {}, "x"),
    ],
)
def test_the_column_of_images_is_found_by_type_then_by_name(
    columns: dict[str, Any], features: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = write(hugging_face(columns, features), tmp_path / "some.parquet")
    assert parquet.describe(path).image == expected


def test_a_label_that_is_text_or_a_fraction_is_none(tmp_path: Path) -> None:
    table = pa.table({"image": cells(PICTURES), "label": ["a"] * 4, "labels": [0.5] * 4})
    assert parquet.describe(write(table, tmp_path / "text.parquet")).label is None


def test_a_label_that_is_withheld_or_unknown_is_none(tmp_path: Path) -> None:
    source = open_source(write(labelled(PICTURES, [-1, None, 3, 1]), tmp_path / "test.parquet"))
    assert [item.label for item in source] == [None, None, None, 1]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": [1]}}', b"\xff"])
def test_metadata_of_another_kind_is_passed_over(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": cells(PICTURES)}).replace_schema_metadata({b"huggingface": metadata})
    assert open_source(write(table, tmp_path / "other.parquet")).count == 4


def test_a_row_without_bytes_costs_only_itself(tmp_path: Path) -> None:
    rows = [{"bytes": PICTURES[0], "path": None}, {"bytes": None, "path": "elsewhere.png"}, None]
    table = pa.table({"image": pa.array(rows, STRUCT)})
    first, second, third = open_source(write(table, tmp_path / "paths.parquet"))
    assert first.data == PICTURES[0]
    for item in (second, third):
        assert isinstance(item.data, ImageError) and "holds no bytes of an image" in item.data.reason


# Shards


def test_shards_are_joined_in_sorted_order_and_a_split_takes_its_own(tmp_path: Path) -> None:
    write(labelled(PICTURES[2:3], [1]), tmp_path / "data" / "train-00001-of-00002.parquet")
    write(labelled(PICTURES[:2], [0, 2]), tmp_path / "data" / "train-00000-of-00002.parquet")
    write(labelled(PICTURES[3:], [1]), tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---")
    train = open_source(tmp_path, "train")
    assert train.count == 3
    assert train.class_names == ("cat", "dog", "owl")
    assert [(item.id, item.data, item.label) for item in train] == [
        ("data/train-00000-of-00002.parquet/0", PICTURES[0], 0),
        ("data/train-00000-of-00002.parquet/1", PICTURES[1], 2),
        ("data/train-00001-of-00002.parquet/0", PICTURES[2], 1),
    ]
    assert [item.data for item in open_source(tmp_path, "test")] == PICTURES[3:]
    assert open_source(tmp_path / "data", "train").count == 3
    with pytest.raises(SourceError, match=r"no split 'validation': neither .+ parquet files whose names begin with"):
        open_source(tmp_path, "validation")


def test_a_split_may_also_be_a_folder_of_shards(tmp_path: Path) -> None:
    write(labelled(PICTURES[:1], [0]), tmp_path / "default" / "train" / "0000.parquet")
    write(labelled(PICTURES[1:], [0] * 3), tmp_path / "default" / "test" / "0000.parquet")
    assert [item.data for item in open_source(tmp_path, "train")] == PICTURES[:1]


def test_a_split_is_not_what_only_begins_like_it() -> None:
    assert parquet.in_split(Path("test-0.parquet"), "test") and parquet.in_split(Path("test.parquet"), "test")
    assert not parquet.in_split(Path("testimonials.parquet"), "test")
    assert not parquet.in_split(Path("test.zip"), "test")


# Size, damage, and an environment without pyarrow


def test_a_file_is_not_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.bytes(20_000) for _ in range(1000)]  # 20 MB
    source = open_source(write(pa.table({"image": pictures}), tmp_path / "large.parquet", rows_in_a_group=100))
    before = pa.total_allocated_bytes()
    items = iter(source)
    assert next(items).data == pictures[0]
    assert pa.total_allocated_bytes() - before < 8e6
    items.close()  # type: ignore[attr-defined]


def test_a_file_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": [1], "file": pa.array([{"path": "x"}])})
    with pytest.raises(SourceError, match=r"only text: string, label: int64, file: struct<path: string>"):
        open_source(write(table, tmp_path / "text.parquet"))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    whole = write(labelled(PICTURES, [0] * 4), tmp_path / "whole.parquet").read_bytes()
    for name, data in (("empty", b""), ("cut", whole[:-20]), ("noise", bytes(100))):
        (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(SourceError, match=f"{name}.parquet is not a parquet file of images"):
            open_source(tmp_path / f"{name}.parquet")


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(row).bytes(2000) for row in range(8)]
    path = write(pa.table({"image": pictures}), tmp_path / "damaged.parquet", rows_in_a_group=1)
    column = pq.read_metadata(path).row_group(5).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged.parquet is damaged from here on"):
        list(open_source(path))


def test_without_pyarrow_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(labelled(PICTURES, [0] * 4), tmp_path / "animals.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in (tmp_path / "animals.parquet", tmp_path):  # a folder does not pass it over as damaged
        with pytest.raises(SourceError, match=r"needs pyarrow; run from .venv-full \(make setup-full\)"):
            open_source(path)


def test_pyarrow_is_imported_only_where_a_file_is_opened() -> None:
    code = "import sys, images.sources; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
