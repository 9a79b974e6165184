"""Rows on their way into the index: from JSON or an image to a vector, then all of them durable.

`prepare` is the work of the cores, `commit` that of the disk; both run in worker threads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from handlers.inline import check_keys, image_of, parse_object, show
from handlers.refusals import log, of_gallery
from handlers.service import Answer, Options, RequestError, Service
from images.decode import ImageError
from images.thumbnails import thumbnail
from index.contents import content_digest
from index.errors import GalleryError, RowRefused
from index.face import Index
from index.incoming import MAX_METADATA_BYTES, checked

MAX_ROW_BYTES = 24 << 20  # an image of 16 MiB as base64, label and metadata
ROW_KEYS = ("vector", "image", "label", "metadata")
ROW_HOW_TO = 'send {"vector": [...], "label": ..., "metadata": {...}}, or "image": base64 instead of the vector'
NUMBERS = {int, float}  # true is neither
EMBEDDING_ONLY = Options(fields=frozenset({"embedding"}))


class Line(NamedTuple):
    """A line of NDJSON."""

    number: int
    data: bytes


class File(NamedTuple):
    """An image under its name."""

    id: str
    data: bytes


class Refused(NamedTuple):
    """A row that does not enter."""

    id: str | None  # None where it has none that can be read
    status: int
    reason: str


class Draft(NamedTuple):
    """A row whose vector may still have to be made."""

    id: str
    source: np.ndarray | bytes  # (dimension,) float64, or an encoded image
    label: str | None
    metadata: dict[str, Any]


class Put(NamedTuple):
    """A row to insert or replace."""

    id: str
    vector: np.ndarray  # (dimension,)
    label: str | None
    metadata: dict[str, Any]
    content: bytes | None = None  # digest of the image
    webp: bytes | None = None  # its thumbnail
    answer: Answer | None = None  # what the encoder says about it


class Delete(NamedTuple):
    """A row to remove."""

    id: str


class Committed(NamedTuple):
    """What became of a batch."""

    results: list[Refused | Put | Delete]  # in the order of the batch; a Refused says why
    stopped: RequestError | None  # the index takes no more


def most_commas(dimension: int) -> int:
    """What the JSON of an honest row cannot exceed: a vector's numbers and the fields of its metadata."""
    return dimension + MAX_METADATA_BYTES


def draft_from_json(id: str, given: dict[str, Any], dimension: int) -> Draft:
    """The row that a JSON object describes; raises `RequestError` or `ImageError`."""
    check_keys(given, ROW_KEYS)
    if ("vector" in given) == ("image" in given):
        raise RequestError(400, f"a row has a vector or an image, and this has {_both(given)}; {ROW_HOW_TO}")
    label, metadata = given.get("label"), given.get("metadata")
    if label is not None and not isinstance(label, str):
        raise RequestError(400, f"label is {show(label)}; send a string, or leave it out")
    source = parse_vector(given["vector"], dimension) if "vector" in given else parse_image(given["image"])
    return Draft(id, source, label, parse_metadata(metadata))


def parse_vector(given: Any, dimension: int, name: str = "vector") -> np.ndarray:
    """(dimension,) float64."""
    if not isinstance(given, list):
        raise RequestError(400, f"{name} is {show(given)}; send a list of {dimension} numbers")
    if len(given) != dimension:
        raise RequestError(400, f"{name} has {len(given)} numbers; this model's have {dimension}")
    if not set(map(type, given)) <= NUMBERS:
        position = next(at for at, value in enumerate(given) if type(value) not in NUMBERS)
        value = show(given[position])
        raise RequestError(400, f"{name}[{position}] is {value}; send a list of {dimension} numbers")
    return np.array(given, np.float64)


def parse_image(given: Any) -> bytes:
    """The image that a string holds; raises `ImageError` where it holds none."""
    image = image_of(given) if isinstance(given, str) else ImageError(400, f"image is {show(given)}, not a string")
    if isinstance(image, ImageError):
        raise image
    return image


def parse_metadata(given: Any) -> dict[str, Any]:
    """A JSON object; whether a row may have it is the index's to say."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError(400, f'metadata is {show(given)}; send an object such as {{"year": 1998}}')
    return given


def prepare(
    service: Service,
    entries: Sequence[Line | File | Draft | Refused],
    options: Options = EMBEDDING_ONLY,
    timing_ms: dict[str, float] | None = None,
) -> list[Put | Delete | Refused]:
    """The rows of some entries, their images embedded as one batch; what is wrong with one is told in its place."""
    dimension = service.encoder.manifest.dimension
    drafts = [_draft(entry, dimension) for entry in entries]
    images = [draft.source for draft in drafts if isinstance(draft, Draft) and isinstance(draft.source, bytes)]
    answers = iter(service.answer_many(images, options, timing_ms))
    rows: list[Put | Delete | Refused] = []
    for draft in drafts:
        if not isinstance(draft, Draft):
            rows.append(draft)
        elif isinstance(draft.source, bytes):
            rows.append(_embedded(draft, draft.source, next(answers), service.thumbnails is not None))
        else:
            rows.append(Put(draft.id, draft.source, draft.label, draft.metadata))
    return rows


def store(service: Service, puts: Sequence[Put]) -> None:
    """Make rows durable, all of them or none. Raises `GalleryError`."""
    if not puts:
        return
    ids, vectors, labels, metadata, contents, _, _ = zip(*puts, strict=True)
    service.index().add(ids, np.stack(vectors), labels, metadata, contents)
    pictures = [(put.id, put.content, put.webp) for put in puts if put.content is not None and put.webp is not None]
    if service.thumbnails is not None and pictures:
        try:
            service.thumbnails.put(pictures)
        except GalleryError as error:  # the rows are there, and thumbnails can be made again
            log.warning("thumbnails were not kept: %s", error)


def remove(service: Service, ids: Sequence[str]) -> int:
    """Remove rows and their thumbnails, durable when this returns; how many there were. Raises `GalleryError`."""
    removed = service.index().remove(ids)
    if service.thumbnails is not None and removed:
        try:
            service.thumbnails.drop(ids)
        except GalleryError as error:  # without its row none is ever given out
            log.warning("thumbnails were not removed: %s", error)
    return removed


def commit(service: Service, rows: Sequence[Put | Delete | Refused]) -> Committed:
    """Carry out a batch in its order, durable when this returns; one bad row fails alone."""
    index = service.index()
    stopped: RequestError | None = None
    undone: tuple[type, ...] = (Put, Delete)
    there: set[str] = set()
    try:
        there = _present(index, [row.id for row in rows if isinstance(row, Delete)])
        rows = _store_sound(service, rows)
        undone = (Delete,)
        last = {row.id: row for row in rows if not isinstance(row, Refused)}
        if removed := [row.id for row in last.values() if isinstance(row, Delete)]:
            remove(service, removed)
        undone = ()
    except GalleryError as error:
        stopped = of_gallery(error)
    return Committed([_result(row, undone, stopped, there) for row in rows], stopped)


def _draft(entry: Line | File | Draft | Refused, dimension: int) -> Draft | Delete | Refused:
    if isinstance(entry, File):
        return Draft(entry.id, entry.data, None, {})
    return _draft_from_line(entry, dimension) if isinstance(entry, Line) else entry


def _draft_from_line(line: Line, dimension: int) -> Draft | Delete | Refused:
    id: str | None = None
    try:
        given = parse_object(line.data, most_commas(dimension), 'send {"id": ..., "vector": [...]}')
        name = given.pop("id", None)
        if not isinstance(name, str):
            raise RequestError(400, f"id is {show(name)}; send a string")
        id = name
        if "delete" not in given:
            return draft_from_json(id, given, dimension)
        if given.pop("delete") is not True or given:
            raise RequestError(400, 'a line with delete has nothing but an id beside it: {"id": ..., "delete": true}')
        return Delete(id)
    except (RequestError, ImageError) as error:
        return Refused(id, error.status, error.reason if id is not None else f"line {line.number}: {error.reason}")


def _embedded(draft: Draft, image: bytes, answer: Answer | ImageError, pictured: bool) -> Put | Refused:
    if isinstance(answer, ImageError):
        return Refused(draft.id, answer.status, answer.reason)
    try:
        webp = thumbnail(image) if pictured else None
    except ImageError as error:
        return Refused(draft.id, error.status, error.reason)
    return Put(draft.id, answer["embedding"], draft.label, draft.metadata, content_digest(image), webp, answer)


def _store_sound(service: Service, rows: Sequence[Put | Delete | Refused]) -> Sequence[Put | Delete | Refused]:
    """Store the puts, in their order; those that the index refuses come back as refused."""
    try:
        store(service, [row for row in rows if isinstance(row, Put)])
    except RowRefused:
        rows = [_checked(row, service.index().dimension) if isinstance(row, Put) else row for row in rows]
        store(service, [row for row in rows if isinstance(row, Put)])
    return rows


def _checked(put: Put, dimension: int) -> Put | Refused:
    try:
        checked([put.id], put.vector[None], [put.label], [put.metadata], [put.content], dimension)
    except RowRefused as error:
        return Refused(put.id, error.status, str(error))
    return put


def _present(index: Index, ids: Sequence[str]) -> set[str]:
    return {record.id for record in index.get(ids) if record is not None} if ids else set()


def _result(
    row: Put | Delete | Refused, undone: tuple[type, ...], stopped: RequestError | None, there: set[str]
) -> Put | Delete | Refused:
    """What a row answers with. there: the ids that have a row at this point of the batch."""
    if isinstance(row, Refused):
        return row
    if stopped is not None and isinstance(row, undone):
        return Refused(row.id, stopped.status, stopped.reason)
    if isinstance(row, Put):
        there.add(row.id)
    elif row.id in there:
        there.remove(row.id)
    else:
        return not_there(row.id)
    return row


def not_there(id: str) -> Refused:
    """What an id that no row has answers with."""
    return Refused(id, 404, f"no row has the id {show(id)}")


def _both(given: dict[str, Any]) -> str:
    return "both" if "vector" in given else "neither"
