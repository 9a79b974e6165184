"""`POST /predictions/NAME`, or `/NAME/VERSION`: the hot path, a plain ASGI route without framework or middleware.

The answer is JSON. `Accept: application/octet-stream` asks for the embedding alone as little-endian float32, and
`Accept: application/x-npy` for the same as a .npy file; label and confidence then stand in headers.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from io import BytesIO
from urllib.parse import parse_qsl, quote

import numpy as np

from handlers.about import HeaderList, Headers
from handlers.exchange import Front, Reply, Request, Route, media_type
from handlers.inline import check_keys
from handlers.multipart import OPTION_NAMES, parse_multipart
from handlers.refusals import plain_error
from handlers.service import (
    WITHOUT_NEIGHBORS,
    Answer,
    Options,
    RequestError,
    Service,
    answer_json,
    batch_json,
    readable,
)
from handlers.together import Steps
from images.decode import MAX_BYTES, ImageError

PREFIX = "/predictions/"
# curl calls --data-binary a urlencoded form unless told otherwise; what the bytes are, decode finds out.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
OPTION_HEADERS = {name: f"akin-{name}".encode() for name in OPTION_NAMES}
FLOATS = b"application/octet-stream"
NPY = b"application/x-npy"
BINARY_OPTIONS = Options(fields=frozenset({"model", "embedding", "label", "confidence"}))


async def _answer(front: Front, request: Request) -> bytes | Reply:
    """Check what needs no worker, then wait for one."""
    name, _, version = request.scope["path"].removeprefix(PREFIX).partition("/")
    service = front.service(name, version or None)
    if request.headers.get(b"content-type", b"").startswith(b"multipart/"):
        request.kind = "form"  # sixteen small images take longer than one of their size
    return await front.run_shared(request, partial(_work, service, request), service)


def _work(service: Service, request: Request) -> Steps[bytes | Reply]:
    """In a worker thread: from the request's options and images to its answer."""
    headers = request.headers
    kind = media_type(headers)
    form_options: dict[str, str] = {}
    images = [request.body]
    if kind == "multipart/form-data":
        form = parse_multipart(request.body, headers[b"content-type"].decode("latin-1"))
        images, form_options = form.images, form.options
    elif not (kind in RAW_TYPES or kind.startswith("image/")):
        raise RequestError(
            415,
            f"content type {kind[:40]!r} is not taken; send the image's bytes as image/* or"
            " application/octet-stream, or several as multipart/form-data",
        )
    options = _options(headers, request.scope["query_string"], form_options)
    accepted = _first(headers[b"accept"]) if b"accept" in headers else b""
    if accepted in (FLOATS, NPY):
        _check_binary(options, accepted)
        return _binary((yield from service.answering(images, BINARY_OPTIONS, request.timing_ms)), accepted)
    answers = yield from service.answering(images, options, request.timing_ms)
    if len(answers) > 1:
        return batch_json(answers, options)
    return answer_json(readable(answers)[0], options)


def _options(headers: Headers, query: bytes, form: dict[str, str]) -> Options:
    """Each option from the query, else the form, else the headers `akin-k`, `akin-fields` and `akin-encoding`."""
    given = {name: headers[key].decode("latin-1") for name, key in OPTION_HEADERS.items() if key in headers}
    given |= form
    if query:
        given |= _parsed(query)
    return Options.parse(**{name: given.get(name) for name in OPTION_NAMES})


@lru_cache(maxsize=256)  # clients send the same few again and again
def _parsed(query: bytes) -> dict[str, str]:
    """By name; of a name given twice the later value. Nobody may change what this returns."""
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    check_keys(given, OPTION_NAMES)
    return given


@lru_cache(maxsize=256)
def _first(accept: bytes) -> bytes:
    """The media type that a client names first, without parameters."""
    return accept.partition(b",")[0].partition(b";")[0].strip().lower()


def _check_binary(options: Options, content_type: bytes) -> None:
    """Raise `RequestError` where more was asked for than has room beside the numbers."""
    if options.k or not ("embedding" in options.fields and options.fields <= WITHOUT_NEIGHBORS):
        kind = content_type.decode()
        raise RequestError(400, f"{kind} holds the embedding alone; leave out k and fields, or ask for JSON")


def _binary(answers: Sequence[Answer | ImageError], content_type: bytes) -> Reply:
    """The embeddings, (D,) of one image and (N, D) of several; there is no room for the error of one among many."""
    good = readable(answers)
    vectors = good[0]["embedding"] if len(good) == 1 else np.stack([answer["embedding"] for answer in good])
    return Reply(_bytes(vectors, content_type), content_type, _described(good))


def _bytes(vectors: np.ndarray, content_type: bytes) -> bytes:
    if content_type == FLOATS:
        return vectors.astype("<f4", copy=False).tobytes()
    file = BytesIO()
    np.save(file, vectors)
    return file.getvalue()


def _described(answers: Sequence[Answer]) -> HeaderList:
    """What stands beside the numbers; of several images, the model alone."""
    first = answers[0]
    head = [(b"akin-model", first["model"].encode())]
    if len(answers) == 1 and "label" in first:
        head.append((b"akin-label", _quoted(first["label"])))
        head.append((b"akin-confidence", b"%.6f" % first["confidence"]))
    return tuple(head)


@lru_cache(maxsize=4096)
def _quoted(label: str) -> bytes:
    return quote(label).encode()


# PUT is what `curl -T photo.jpg` sends.
PREDICTIONS = Route(("POST", "PUT"), MAX_BYTES, _answer, plain_error, kind="photo")
