"""The one rule for rows that enter an index, whichever holds it: checked and in stored form, or all refused."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from index.errors import RowRefused
from index.vectors import unit_rows

# What Milvus takes too, so that a row accepted here can always move there.
MAX_ID_BYTES = 1024
MAX_LABEL_BYTES = 1024
MAX_METADATA_BYTES = 65_535
MAX_DIGEST_BYTES = 32
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON escapes it, not behind a backslash of its own


class Incoming(NamedTuple):
    """Rows as they will be stored; where an id came twice, the later row."""

    ids: list[str]
    vectors: np.ndarray  # (N, dimension) float32 of unit length
    labels: list[str | None]
    documents: list[str | None]  # metadata as a JSON object; None for an empty one
    contents: list[bytes | None]  # digests of the images' bytes


def checked(
    ids: Sequence[str],
    vectors: np.ndarray,
    labels: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any]] | None,
    contents: Sequence[bytes | None] | None,
    dimension: int,
) -> Incoming:
    """Return the rows in stored form; raise `RowRefused`, naming the row, where one of them must not enter.

    vectors: (N, dimension), any real dtype; scaled to unit length.
    """
    count = len(ids)
    documents: Sequence[Mapping[str, Any]] = [{}] * count if metadata is None else metadata
    digests: Sequence[bytes | None] = [None] * count if contents is None else contents
    if not count == len(vectors) == len(labels) == len(documents) == len(digests):
        raise RowRefused(
            f"{count} ids, {len(vectors)} vectors, {len(labels)} labels and "
            f"{'no' if metadata is None else len(metadata)} metadata: send one of each per row"
        )
    for row, (name, label) in enumerate(zip(ids, labels, strict=True)):
        check_text("id", row, name, MAX_ID_BYTES)
        if label is not None:
            check_text("label", row, label, MAX_LABEL_BYTES)
    for row, digest in enumerate(digests):
        if digest is not None and not (isinstance(digest, bytes) and 0 < len(digest) <= MAX_DIGEST_BYTES):
            raise RowRefused(f"content of row {row} must be a digest of 1 to {MAX_DIGEST_BYTES} bytes; leave it out")
    rows = Incoming(
        list(ids),
        unit_rows(vectors, dimension, names=ids),
        list(labels),
        [_to_json(row, fields) for row, fields in enumerate(documents)],
        list(digests),
    )
    last = {name: row for row, name in enumerate(ids)}
    if len(last) == count:
        return rows
    kept = sorted(last.values())
    return Incoming(
        [rows.ids[row] for row in kept],
        rows.vectors[kept],
        [rows.labels[row] for row in kept],
        [rows.documents[row] for row in kept],
        [rows.contents[row] for row in kept],
    )


def check_text(what: str, row: int, text: object, limit: int) -> None:
    """Raise `RowRefused` unless `text` is a non-empty string of at most `limit` bytes of UTF-8 without NUL."""
    if not isinstance(text, str) or not text:
        raise RowRefused(f"{what} {text!r} of row {row} must be a non-empty string; nothing was changed")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise RowRefused(f"{what} {text!r} of row {row} is not valid Unicode; rename it") from error
    if size > limit:
        raise RowRefused(f"{what} {text[:40]!r}... of row {row} has {size} bytes; the limit is {limit}: shorten it")
    if "\0" in text:
        raise RowRefused(f"{what} {text!r} of row {row} holds a NUL character; rename it")


def _to_json(row: int, metadata: Mapping[str, Any]) -> str | None:
    try:
        fields = dict(metadata)
        # What answers are written with refuses numbers beyond 64 bits, broken Unicode and more than 254 levels, of
        # which a search has four around it; the standard library refuses NaN and what is no JSON.
        orjson.dumps([[[[fields]]]])
        document = json.dumps(fields, allow_nan=False) if fields else None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowRefused(
            f"metadata of row {row} is no JSON object that an answer can carry ({error}); nothing was changed"
        ) from error
    if document is not None and NUL.search(document):  # SQLite's JSON would end there
        raise RowRefused(f"metadata of row {row} holds a NUL character; replace it")
    if document is not None and len(document) > MAX_METADATA_BYTES:
        raise RowRefused(
            f"metadata of row {row} has {len(document)} bytes as JSON; the limit is {MAX_METADATA_BYTES}: shorten it"
        )
    return document
