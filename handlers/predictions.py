"""`POST /predictions/NAME`: the hot path, a plain ASGI route without framework or middleware."""

from functools import partial
from urllib.parse import parse_qsl

from handlers.exchange import Front, Headers, Route, Scope, plain_error
from handlers.multipart import OPTION_NAMES, parse_multipart
from handlers.service import Options, RequestError, Service, batch_json, to_json
from images.decode import MAX_BYTES

PREFIX = "/predictions/"
# curl calls --data-binary a urlencoded form unless told otherwise; what the bytes are, decode finds out.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
OPTION_HEADERS = {name: f"akin-{name}".encode() for name in OPTION_NAMES}


async def _answer(front: Front, scope: Scope, headers: Headers, body: bytes) -> bytes:
    """Check what needs no worker, then wait for one."""
    name = scope["path"].removeprefix(PREFIX)
    if name != front.name:
        raise RequestError(404, f"no model {name[:40]!r} here; there is {front.name!r}")
    service = front.ready_service()
    return await front.admission.submit(partial(_work, service, headers, scope["query_string"], body))


def _work(service: Service, headers: Headers, query: bytes, body: bytes) -> bytes:
    """In a worker thread: from the request's options and images to the JSON of the answer."""
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = parse_multipart(body, content_type)
        options = _options(headers, query, form.options)
        if len(form.images) > 1:
            return batch_json(service.answer_many(form.images, options))
        return to_json(service.answer(form.images[0], options))
    if not (kind in RAW_TYPES or kind.startswith("image/")):
        raise RequestError(
            415,
            f"content type {kind[:40]!r} is not taken; send the image's bytes as image/* or"
            " application/octet-stream, or several as multipart/form-data",
        )
    return to_json(service.answer(body, _options(headers, query, {})))


def _options(headers: Headers, query: bytes, form: dict[str, str]) -> Options:
    """Each option from the query, else the form, else the headers `akin-k` and `akin-fields`."""
    given = {name: headers[key].decode("latin-1") for name, key in OPTION_HEADERS.items() if key in headers}
    given |= form
    if query:
        given |= parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return Options.parse(given.get("k"), given.get("fields"))


# PUT is what `curl -T photo.jpg` sends.
PREDICTIONS = Route(methods=("POST", "PUT"), max_bytes=MAX_BYTES, answer=_answer, error_json=plain_error)
