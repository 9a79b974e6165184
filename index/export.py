"""All rows of an index into another one, or into a file."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

from index.errors import GalleryError, RowRefused, WrongModel
from index.face import Index, Record
from index.sqlite import of_os_error, sync_folder

SAMPLE = 200  # rows compared in the end
EQUAL = 1e-5  # vectors whose components differ by less are the same: scaling one again may change its last bit


@dataclass(frozen=True)
class Summary:
    """What became of the rows."""

    copied: int
    already_there: int
    compared: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.copied} rows copied in {self.seconds:.1f} s, {self.already_there} were already there; "
            f"counts agree, {self.compared} rows drawn at random are equal and find themselves"
        )


def export_index(source: Index, target: Index, batch: int = 1000) -> Summary:
    """Copy every row of `source`, with a progress bar on a terminal; stopped, the same call goes on from there.

    Rows of other ids in the target stay. In the end the rows are counted there, and some drawn at random compared;
    raises `GalleryError` where they differ, and `WrongModel` for a target of other vectors.
    """
    if (source.model_digest, source.dimension) != (target.model_digest, target.dimension):
        raise WrongModel(
            f"the target holds vectors of model {target.model_digest[:12]} and dimension {target.dimension}, "
            f"the source of {source.model_digest[:12]} and {source.dimension}; name a target of the same model"
        )
    started = perf_counter()
    copied = already_there = 0
    sample: list[str] = []
    random = np.random.default_rng()
    with tqdm(total=source.count, unit=" rows", disable=None) as bar:
        for records in source.records(batch):
            there = target.get([record.id for record in records])
            new = [
                record for record, row in zip(records, there, strict=True) if row is None or not _equal(record, row)
            ]
            if new:
                _add(target, new)
            copied += len(new)
            already_there += len(records) - len(new)
            sample += random.choice([record.id for record in records], min(5, len(records)), replace=False).tolist()
            bar.update(len(records))
    compared = _compare(source, target, copied + already_there, random.permutation(sample)[:SAMPLE].tolist())
    return Summary(copied, already_there, compared, perf_counter() - started)


def export_file(source: Index, path: Path) -> int:
    """Write every row to `path`, which appears once it is whole. Returns how many there are.

    .ndjson: a JSON object a line with id, vector, label and metadata, as `POST /index/bulk` takes it. .npz: arrays
    `ids`, `labels` ("" for none) and `vectors` (rows, dimension) float32; without metadata.
    """
    writers: dict[str, Callable[[Index, Path], int]] = {".ndjson": _write_ndjson, ".npz": _write_npz}
    if path.suffix not in writers:
        raise RowRefused(
            f"{path} ends in {path.suffix!r}; name a file .ndjson or .npz, or an index: milvus://host:port"
        )
    part = path.with_name(f".{path.stem}.part{path.suffix}")  # NumPy adds a suffix where it misses its own
    try:
        try:
            rows = writers[path.suffix](source, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise of_os_error(error, path) from error
    return rows


def _add(target: Index, records: Sequence[Record]) -> None:
    target.add(
        [record.id for record in records],
        np.stack([record.vector for record in records]),
        [record.label for record in records],
        [record.metadata for record in records],
        [record.content for record in records],
    )


def _equal(one: Record, other: Record) -> bool:
    return (one.id, one.label, one.metadata, one.content) == (
        other.id,
        other.label,
        other.metadata,
        other.content,
    ) and (np.allclose(one.vector, other.vector, rtol=0, atol=EQUAL))


def _compare(source: Index, target: Index, rows: int, names: Sequence[str]) -> int:
    """How many of these rows were compared; raises where one differs, or the target has fewer than it should."""
    if target.count < min(rows, source.count):
        raise GalleryError(f"the target has {target.count} rows, the source {source.count}; run the export again")
    pairs = zip(source.get(names), target.get(names), strict=True)
    there = [(record, row) for record, row in pairs if record is not None]  # some may have been removed meanwhile
    for record, row in there:
        if row is None or not _equal(record, row):
            raise GalleryError(f"row {record.id!r} differs in the target; run the export again")
    if there:
        found = target.search(np.stack([record.vector for record, _ in there]), 1)
        for (record, _), neighbors in zip(there, found, strict=True):
            # A copy of it, or its code, may stand first: what matters is that something as near was found.
            if not neighbors or neighbors[0].score < 0.99:
                raise GalleryError(f"row {record.id!r} does not find itself in the target; look at its index")
    return len(there)


def _write_ndjson(source: Index, path: Path) -> int:
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        for record in chain.from_iterable(source.records()):
            line = {
                "id": record.id,
                "vector": record.vector.tolist(),
                "label": record.label,
                "metadata": record.metadata,
            }
            file.write(json.dumps(line) + "\n")
            rows += 1
    return rows


def _write_npz(source: Index, path: Path) -> int:
    records = [Record(row.id, row.vector, row.label, {}) for row in chain.from_iterable(source.records())]
    vectors = (
        np.stack([record.vector for record in records]) if records else np.empty((0, source.dimension), np.float32)
    )
    np.savez(
        path,
        ids=np.array([record.id for record in records], np.str_),
        labels=np.array([record.label or "" for record in records], np.str_),
        vectors=vectors,
    )
    return len(records)
