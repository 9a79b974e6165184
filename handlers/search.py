"""`POST /index/search`: neighbours of a vector, a row or an image, filtered, thresholded, and their vote.

    curl -T photo.jpg -X POST 'http://127.0.0.1:8080/index/search?k=5&min_score=0.8'
    curl --json '{"id": "cats/1.jpg", "k": 5, "filter": {"label": "cat"}}' http://127.0.0.1:8080/index/search
"""

from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import orjson

from handlers.exchange import Front, Request
from handlers.inline import check_keys, parse_object, show
from handlers.requests import is_json, query_of
from handlers.rows import parse_image, parse_vector
from handlers.service import MAX_K, Options, RequestError, Service, readable, to_json
from handlers.together import Steps, by_itself
from index.errors import NotThere
from index.face import Neighbor
from index.filters import MAX_CONDITIONS, MAX_VALUES, Filter
from index.votes import vote

DEFAULT_K = 10
MAX_QUERIES = 1000
MAX_ANSWERED = 10_000  # neighbours in one answer; each may carry 64 KB of metadata
MAX_BODY_BYTES = 64 << 20  # MAX_QUERIES vectors of 2,048 numbers, or an image as base64
SUBJECTS = ("vector", "vectors", "id", "image")
REFINEMENTS = ("k", "filter", "min_score")
HOW_TO = 'send {"vector": [...]}, {"vectors": [[...], ...]}, {"id": ...}, {"image": base64} or the bytes of an image'
IMAGE_OPTIONS = Options(fields=frozenset({"embedding", "timing_ms"}))


class _Asked(NamedTuple):
    """What a search is about: one of vectors, an id or an image."""

    k: int
    where: Filter | None
    min_score: float | None
    vectors: np.ndarray | None = None  # (Q, dimension) float64
    id: str | None = None
    image: bytes | None = None
    batch: bool = False


async def search(front: Front, request: Request) -> bytes:
    """Answer one search."""
    service = front.service(request.model)
    work = partial(_work, service, request)
    if is_json(request.headers, request.body):  # most are about vectors and ids, which would only wait for each other
        return await front.run(request, lambda: by_itself(work()), service)
    request.kind = "image search"
    return await front.run_shared(request, work, service)


def _work(service: Service, request: Request) -> Steps[bytes]:
    """In a worker thread: from the body to the JSON of the answer."""
    index = service.index()
    asked = _asked(request, index.dimension)
    timing_ms: dict[str, float] = {}
    vectors = asked.vectors
    if asked.image is not None:
        (answer,) = readable((yield from service.answering([asked.image], IMAGE_OPTIONS)))
        vectors, timing_ms = answer["embedding"][None], answer["timing_ms"]
    started = perf_counter()
    if asked.id is not None:
        (record,) = index.get([asked.id])
        if record is None:
            raise NotThere(f"no row has the id {show(asked.id)}; GET /index tells how many there are")
        vectors = record.vector[None]
    assert vectors is not None
    found = index.search(vectors, asked.k + (asked.id is not None), asked.where, asked.min_score)
    timing_ms["search"] = service.stage_ms("search", started)
    request.timing_ms |= timing_ms
    answers = [_answer(service, asked, neighbors, timing_ms) for neighbors in found]
    return to_json(answers if asked.batch else answers[0])


def _answer(
    service: Service, asked: _Asked, neighbors: list[Neighbor], timing_ms: dict[str, float]
) -> dict[str, Any]:
    if asked.id is not None:  # not a neighbour of itself
        neighbors = [neighbor for neighbor in neighbors if neighbor.id != asked.id][: asked.k]
    return {
        "model": service.encoder.manifest.model_id,
        "neighbors": [neighbor._asdict() for neighbor in neighbors],
        "vote": [one._asdict() for one in vote(neighbors)],
        "timing_ms": timing_ms,
    }


def _asked(request: Request, dimension: int) -> _Asked:
    """The search, each part of it checked."""
    headers, body, query = request.headers, request.body, query_of(request.scope)
    if not is_json(headers, body):
        check_keys(query, REFINEMENTS)
        return _Asked(**_refinements({name: _value(name, text) for name, text in query.items()}), image=body)
    if query:
        raise RequestError(400, f"{show(min(query))} stands in the query; beside JSON it belongs into the body")
    given = parse_object(body, MAX_QUERIES * dimension + MAX_CONDITIONS * MAX_VALUES, HOW_TO)
    check_keys(given, (*SUBJECTS, *REFINEMENTS))
    subjects = [name for name in SUBJECTS if name in given]
    if len(subjects) != 1:
        raise RequestError(
            400, f"a search is about one thing, and this names {' and '.join(subjects) or 'none'}; {HOW_TO}"
        )
    subject, value = subjects[0], given[subjects[0]]
    refinements = _refinements(given)
    if subject == "vector":
        return _Asked(**refinements, vectors=parse_vector(value, dimension)[None])
    if subject == "vectors":
        return _Asked(**refinements, vectors=_parse_vectors(value, dimension, refinements["k"]), batch=True)
    if subject == "image":
        return _Asked(**refinements, image=parse_image(value))
    if not isinstance(value, str):
        raise RequestError(400, f"id is {show(value)}; send a string")
    return _Asked(**refinements, id=value)


def _refinements(given: dict[str, Any]) -> dict[str, Any]:
    k, min_score = given.get("k", DEFAULT_K), given.get("min_score")
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise RequestError(400, f"k is {show(k)}; send a whole number from 1 to {MAX_K}")
    if min_score is not None and not (type(min_score) in (int, float) and -1 <= min_score <= 1):
        raise RequestError(400, f"min_score is {show(min_score)}; send a number from -1 to 1, a cosine similarity")
    return {"k": k, "where": Filter.parse(given.get("filter")), "min_score": min_score}


def _value(name: str, text: str) -> Any:
    """A refinement that stands in the query, where it is JSON as well."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            400,
            f"{name} is {show(text)}, which is not JSON ({error}); write k=5, min_score=0.8 "
            'or filter={"label":"cat"}',
        ) from error


def _parse_vectors(given: Any, dimension: int, k: int) -> np.ndarray:
    """(Q, dimension) float64."""
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_QUERIES:
        count = len(given) if isinstance(given, list) else show(given)
        raise RequestError(400, f"vectors is {count}; send a list of 1 to {MAX_QUERIES} vectors")
    if len(given) * k > MAX_ANSWERED:
        raise RequestError(
            400, f"{len(given)} vectors with k={k} ask for more than {MAX_ANSWERED} neighbours; send fewer at a time"
        )
    return np.stack([parse_vector(vector, dimension, f"vectors[{row}]") for row, vector in enumerate(given)])
