"""All rows of an index into another one, or into a file."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

from index.errors import GalleryError, RowRefused, WrongModel
from index.face import Index, Record
from index.sqlite import of_os_error, sync_folder

SAMPLE = 200  # rows compared in the end
EQUAL = 1e-6  # vectors whose components differ by less are the same: scaling one again may change its last bit
NEAR = 10  # among so many neighbours a row must be: copies, and what its code cannot tell from it, may stand first
OVERLOOKED_MOST = 1 / 20  # of the sample: an accelerated search may overlook a row


@dataclass(frozen=True)
class Summary:
    """What became of the rows."""

    copied: int
    already_there: int
    others: int  # rows of the target that the source does not have; they stay
    compared: int  # drawn at random, and equal
    found: int  # of those, rows that a search in the target finds by their vectors
    seconds: float

    def __str__(self) -> str:
        others = f"the target has {self.others} others besides" if self.others else "counts agree"
        return (
            f"{self.copied} rows copied in {self.seconds:.1f} s, {self.already_there} were already there; {others}, "
            f"{self.compared} rows drawn at random are equal and {self.found} of them find themselves"
        )


def export_index(source: Index, target: Index, batch: int = 1000, progress: bool = True) -> Summary:
    """Copy every row of `source`; stopped, the same call goes on from there. `progress`: a bar, on a terminal.

    Rows of other ids in the target stay. In the end the rows are counted there, and some drawn at random compared;
    raises `GalleryError` where they differ, and `WrongModel` for a target of other vectors.
    """
    if (source.model_digest, source.dimension) != (target.model_digest, target.dimension):
        raise WrongModel(
            f"the target holds vectors of model {target.model_digest[:12]} and dimension {target.dimension}, "
            f"the source of {source.model_digest[:12]} and {source.dimension}; name a target of the same model"
        )
    if batch < 1:
        raise RowRefused(f"batch is {batch}; send at least 1 row at a time")
    started = perf_counter()
    rows, before = source.count, target.count
    copied = already_there = inserted = 0
    drawn: list[tuple[float, str]] = []  # every row draws a number; those of the smallest are compared
    random = np.random.default_rng()
    with tqdm(total=rows, unit=" rows", disable=None if progress else True) as bar:
        for records in source.records(batch):
            there = target.get([record.id for record in records])
            new = [
                record for record, row in zip(records, there, strict=True) if row is None or not _equal(record, row)
            ]
            if new:
                _add(target, new)
            copied += len(new)
            already_there += len(records) - len(new)
            inserted += there.count(None)
            numbers = random.random(len(records)).tolist()
            names = [record.id for record in records]
            drawn = nsmallest(SAMPLE, chain(drawn, zip(numbers, names, strict=True)))
            bar.update(len(records))
    least = min(rows, source.count)  # it may be written to meanwhile
    others = _count(target, before + inserted, copied + already_there, least)
    compared, found = _compare(source, target, [name for _, name in drawn])
    return Summary(copied, already_there, others, compared, found, perf_counter() - started)


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


def _count(target: Index, expected: int, seen: int, least: int) -> int:
    """How many rows the target has besides the `seen` ones of the source, which had at least `least` throughout;
    raises where rows are missing, or there are more than came and were there."""
    count = target.count
    if seen < least:
        raise GalleryError(f"the source gave {seen} rows of {least}; run the export again")
    if count != expected:
        raise GalleryError(
            f"the target has {count} rows where {expected} should be, {seen} of them from the source; "
            "run the export again while nobody else writes to the target"
        )
    return max(0, count - seen)  # a row that moved in the source meanwhile was seen twice


def _compare(source: Index, target: Index, names: Sequence[str]) -> tuple[int, int]:
    """How many of these rows were compared, and how many a search finds; raises where one differs or many are not."""
    pairs = zip(source.get(names), target.get(names), strict=True)
    there = [(record, row) for record, row in pairs if record is not None]  # some may have been removed meanwhile
    for record, row in there:
        if row is None or not _equal(record, row):
            raise GalleryError(f"row {record.id!r} differs in the target; run the export again")
    if not there:
        return 0, 0
    near = target.search(np.stack([record.vector for record, _ in there]), NEAR)
    overlooked = [
        record.id
        for (record, _), neighbors in zip(there, near, strict=True)
        # More copies of it than neighbours were asked for are as good as the row itself.
        if record.id not in {one.id for one in neighbors} and (len(neighbors) < NEAR or neighbors[-1].score < 0.99)
    ]
    if len(overlooked) > OVERLOOKED_MOST * len(there):
        raise GalleryError(
            f"{len(overlooked)} of {len(there)} rows do not find themselves in the target, the first is "
            f"{overlooked[0]!r}; look at its index"
        )
    return len(there), len(there) - len(overlooked)


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
