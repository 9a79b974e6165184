"""Parquet files as Hugging Face's `datasets` writes them: a column of encoded images, perhaps one of labels.

The images are struct<bytes, path> or bare bytes; the class names stand in the schema's metadata. Rows are read a few
at a time. pyarrow is imported when a file is opened: the serving environment does without it.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

ROWS = 64  # read at a time
BUFFER = 2**20  # bytes of a column that are read at a time; a row group's all otherwise


class Table(NamedTuple):
    """What a file holds."""

    rows: int
    image: str  # the column of images
    label: str | None  # the column of labels, where there is one
    class_names: tuple[str, ...]


class Row(NamedTuple):
    data: bytes | None  # None: the row holds no image, or only a path
    label: int | None


def describe(path: Path) -> Table:
    """What a file holds. Raises ModuleNotFoundError without pyarrow, ValueError or OSError for no such file."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
    features = _features(schema.metadata or {})

    def preference(field: Any) -> tuple[bool, bool, bool]:
        declared = features.get(field.name, {}).get("_type") == "Image"
        return not declared, field.name not in ("image", "img"), not pa.types.is_struct(field.type)

    images = sorted((field for field in schema if _holds_bytes(field.type)), key=preference)
    if not images:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ValueError(f"no column holds images as bytes or struct<bytes, path>, only {columns or 'none at all'}")
    labels = [f.name for f in schema if f.name in ("label", "labels") and pa.types.is_integer(f.type)]
    label = labels[0] if labels else None
    names = features.get(label, {}).get("names") if label else None
    return Table(count, images[0].name, label, tuple(map(str, names)) if isinstance(names, list) else ())


def rows(path: Path, table: Table) -> Iterator[Row]:
    """The rows in order. A label that is negative, as where it is withheld, or has no name counts as none."""
    from pyarrow.parquet import ParquetFile

    columns = [table.image] + ([table.label] if table.label else [])
    known = len(table.class_names) or float("inf")
    with ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(ROWS, columns=columns):
            cells = batch.column(table.image).to_pylist()
            labels = batch.column(table.label).to_pylist() if table.label else [None] * len(cells)
            for cell, label in zip(cells, labels, strict=True):
                data = cell["bytes"] if isinstance(cell, dict) else cell
                yield Row(data, label if label is not None and 0 <= label < known else None)


def in_split(path: PurePath, split: str) -> bool:
    """Whether a path relative to a data set's folder is a shard of `split`: data/train-00000-of-00002.parquet, or
    train/0000.parquet."""
    named = path.name.startswith(split) and not path.name[len(split)].isalpha()
    return path.suffix == ".parquet" and (named or split in path.parts[:-1])


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Column name -> how `datasets` describes it; nothing where the file was written by something else."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"].items()
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {name: kind for name, kind in features if isinstance(kind, dict)}


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
