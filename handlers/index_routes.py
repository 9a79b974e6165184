"""The index over HTTP: its rows one by one, what it holds, and thumbnails. Search and bulk are beside it.

    curl -T photo.jpg 'http://127.0.0.1:8080/index/cats/1.jpg?label=cat'
    curl http://127.0.0.1:8080/index/cats/1.jpg
    curl -X DELETE http://127.0.0.1:8080/index/cats/1.jpg

An id is the rest of the path, percent-decoded; slashes may stand in it as they are.
"""

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from handlers.about import Headers
from handlers.exchange import Front, Request, Route
from handlers.inline import check_keys, parse_object, show
from handlers.pages import MAP
from handlers.refusals import plain_error
from handlers.requests import id_of, is_json, query_of
from handlers.rows import (
    MAX_ROW_BYTES,
    ROW_HOW_TO,
    Draft,
    Put,
    Refused,
    draft_from_json,
    most_commas,
    not_there,
    parse_metadata,
    prepare,
    remove,
    store,
)
from handlers.search import MAX_BODY_BYTES, search
from handlers.service import Options, RequestError, Service, to_json

INDEX = "/index"
SEARCH = "/index/search"
BULK = "/index/bulk"
THUMBNAILS = "/thumbnails/"
PUT_OPTIONS = Options(fields=frozenset({"embedding", "label", "confidence", "timing_ms"}))
MEASURING = threading.Lock()  # one at a time: it reads every row


def route_for(path: str, method: str) -> Route | None:
    """The route of a path that is the index's."""
    if path == INDEX:
        return _STATS
    if path == SEARCH and method == "POST":
        return _SEARCH
    if path.startswith(INDEX + "/"):
        return _GET_ROW if method == "GET" else _ROW
    return _THUMBNAIL if path.startswith(THUMBNAILS) else None


async def _row(front: Front, request: Request) -> bytes:
    """GET, PUT or DELETE one row."""
    id, method = id_of(request.scope, INDEX + "/"), request.scope["method"]
    service = front.service(request.model)
    if method == "GET":
        return await front.run(request, partial(_get, service, id), service)
    if method == "DELETE":
        answer = await front.run(request, partial(_delete, service, id), service, front.committing)
        front.metrics.written("remove", 1)
        return answer
    if f"{INDEX}/{id}" == MAP:
        raise RequestError(400, f"no row can be read as {show(id)}: GET {MAP} is the map; choose another id")
    service.index()
    put = await front.run(request, partial(_prepare, service, id, request), service)
    await front.run(request, partial(store, service, [put]), service, front.committing)
    front.metrics.written("put", 1)
    return _put_answer(service, put)


def _get(service: Service, id: str) -> bytes:
    (record,) = service.index().get([id])
    if record is None:
        raise _missing(id)
    return to_json({"id": id, "label": record.label, "metadata": record.metadata, "vector": record.vector})


def _delete(service: Service, id: str) -> bytes:
    if not remove(service, [id]):
        raise _missing(id)
    return to_json({"id": id, "removed": True})


def _prepare(service: Service, id: str, request: Request) -> Put:
    """In a worker thread: the row that a PUT describes."""
    draft = _draft(id, query_of(request.scope), request.headers, request.body, service.index().dimension)
    (row,) = prepare(service, [draft], PUT_OPTIONS, request.timing_ms)
    if isinstance(row, Refused):
        raise RequestError(row.status, row.reason)
    assert isinstance(row, Put)
    return row


def _draft(id: str, query: dict[str, str], headers: Headers, body: bytes, dimension: int) -> Draft:
    if is_json(headers, body):
        if query:
            raise RequestError(400, f"{show(min(query))} stands in the query; beside JSON it belongs into the body")
        return draft_from_json(id, parse_object(body, most_commas(dimension), ROW_HOW_TO), dimension)
    check_keys(query, ("label", "metadata"))
    return Draft(id, body, query.get("label"), parse_metadata(_metadata_in(query)))


def _metadata_in(query: dict[str, str]) -> Any:
    text = query.get("metadata")
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = f'metadata is {show(text)}, which is not JSON ({error}); write metadata={{"year":1998}}'
        raise RequestError(400, reason) from error


def _put_answer(service: Service, put: Put) -> bytes:
    answer: dict[str, Any] = {"id": put.id, "model": service.encoder.manifest.model_id, "label": put.label}
    if put.answer is not None:
        if "label" in put.answer:
            answer["predicted"] = {"label": put.answer["label"], "confidence": put.answer["confidence"]}
        answer["timing_ms"] = put.answer["timing_ms"]
    return to_json(answer)


async def _stats(front: Front, request: Request) -> bytes:
    query = query_of(request.scope)
    check_keys(query, ("recall",))
    if query.get("recall", "0") not in ("0", "1"):
        raise RequestError(
            400, f"recall is {show(query['recall'])}; send recall=1 to have it measured, or leave it out"
        )
    service = front.service(request.model)
    measure = query.get("recall") == "1"
    # Measuring takes seconds, and no prediction shall stand behind it, nor be expected to take as long.
    admission = front.committing if measure else front.admission
    return await front.run(request, partial(_describe, service, measure), service, admission)


def _describe(service: Service, measure: bool) -> bytes:
    index = service.index()
    if measure and not MEASURING.acquire(blocking=False):
        raise RequestError(503, "recall is being measured for someone else; send again in a moment")
    try:
        stats = index.stats(measure_recall=measure)
    finally:
        if measure:
            MEASURING.release()
    return to_json({"model": service.encoder.manifest.model_id, "dimension": index.dimension, **stats})


async def _thumbnail(front: Front, request: Request) -> bytes:
    id, service = id_of(request.scope, THUMBNAILS), front.service(request.model)
    return await front.run(request, partial(_find_thumbnail, service, id), service)


def _find_thumbnail(service: Service, id: str) -> bytes:
    if service.thumbnails is None:
        raise RequestError(404, "no thumbnails are kept here; start the server with --thumbnails")
    (record,) = service.index().get([id])
    if record is None:
        raise _missing(id)
    picture = service.thumbnails.get(id, record.content)
    if picture is None:
        raise RequestError(404, f"{show(id)} has no thumbnail; PUT its image again to have one")
    return picture


def _missing(id: str) -> RequestError:
    refused = not_there(id)
    return RequestError(
        refused.status, f"{refused.reason}; PUT /index/ID adds one, POST {SEARCH} finds those there are"
    )


_STATS = Route(("GET",), 0, _stats, plain_error, counted=False, kind="stats")
_ROW = Route(
    methods=("GET", "PUT", "DELETE"),
    max_bytes=MAX_ROW_BYTES,
    answer=_row,
    error_json=plain_error,
    counted=False,
    kind="row",
    writes=("PUT", "DELETE"),
)
_GET_ROW = replace(_ROW, max_bytes=0)
_SEARCH = Route(("POST",), MAX_BODY_BYTES, search, plain_error, counted=False, kind="search")
_THUMBNAIL = Route(
    ("GET",), 0, _thumbnail, plain_error, counted=False, content_type=b"image/webp", kind="thumbnail"
)
