"""`POST /predictions/NAME`: the hot path, a plain ASGI callable without framework or middleware.

The event loop reads the body and writes the answer; everything between runs in one worker thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from handlers.admission import Admission, QueueFull
from handlers.metrics import Metrics
from handlers.multipart import OPTION_NAMES, parse_multipart
from handlers.service import Options, RequestError, Service, batch_json, error_json, to_json
from images.decode import MAX_BYTES, ImageError

PREFIX = "/predictions/"
METHODS = ("POST", "PUT")  # PUT is what `curl -T photo.jpg` sends
DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0
EXTRA_HEADERS = {405: [(b"allow", b"POST, PUT")], 503: [(b"retry-after", b"1")]}
# curl calls --data-binary a urlencoded form unless told otherwise; what the bytes are, decode finds out.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
OPTION_HEADERS = {name: f"akin-{name}".encode() for name in OPTION_NAMES}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("akin")


class ClientGone(Exception):
    """The client hung up before its request was whole; nobody is left to answer."""


class BodyTooLarge(RequestError):
    """The body exceeds the cap, and the rest of it is still on its way."""

    def __init__(self, size: str) -> None:
        super().__init__(413, f"the body has {size} bytes; the limit is {MAX_BYTES}: send a smaller image")


@dataclass
class Front:
    """What the routes share. `service` is None until the golden vectors have passed."""

    name: str
    admission: Admission
    metrics: Metrics
    service: Service | None = None

    def ready_service(self) -> Service:
        """The service, or a 503 for those who come too early."""
        if self.service is None:
            raise RequestError(503, "the encoder is still loading; /readyz tells when to send again")
        return self.service


async def predict(front: Front, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one prediction, whatever comes."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    unread = False
    try:
        body = await _read_body(headers, receive)
        started = perf_counter()
        payload = await _answer(front, scope, headers, body)
        status = 200
        front.metrics.observe("total", perf_counter() - started)
    except ClientGone:
        return
    except (RequestError, ImageError) as error:
        status, payload = error.status, error_json(error.status, error.reason)
        unread = isinstance(error, BodyTooLarge)
    except QueueFull:
        front.metrics.rejected.inc()
        status = 503
        payload = error_json(503, f"{front.admission.capacity} requests wait already; send again in a second")
    except Exception as error:
        status, payload = 500, error_json(500, internal_error(error))
    front.metrics.answered(status)

    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))]
    head += EXTRA_HEADERS.get(status, ())
    if unread:
        head.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": payload, "more_body": unread})
    if unread:
        await _drain(receive)
        await send({"type": "http.response.body"})


def internal_error(error: Exception) -> str:
    """Write an unexpected exception to the log; what the client is told instead."""
    request_id = uuid4().hex[:12]
    log.error("request %s failed", request_id, exc_info=error)
    return f"internal error; the server's log has it as request {request_id}"


async def _read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body, at most MAX_BYTES; a declared length over it is refused before anything is read."""
    declared = headers.get(b"content-length", b"0")
    if int(declared) > MAX_BYTES:
        raise BodyTooLarge(declared.decode())
    message = await _next_chunk(receive)
    if not message["more_body"]:
        return message["body"]
    body = bytearray(message["body"])
    while message["more_body"]:
        message = await _next_chunk(receive)
        body += message["body"]
        if len(body) > MAX_BYTES:
            raise BodyTooLarge(f"more than {MAX_BYTES}")
    return bytes(body)


async def _next_chunk(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


async def _drain(receive: Receive) -> None:
    """Swallow what is still coming, within bounds.

    Closing on unread bytes resets the connection, and a client that is still sending would see the
    reset in place of its answer.
    """
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while drained < DRAIN_BYTES:
                message = await _next_chunk(receive)
                drained += len(message["body"])
                if not message["more_body"]:
                    return
    except (ClientGone, TimeoutError):
        return


async def _answer(front: Front, scope: Scope, headers: dict[bytes, bytes], body: bytes) -> bytes:
    """Check what needs no worker, then wait for one."""
    name = scope["path"].removeprefix(PREFIX)
    if name != front.name:
        raise RequestError(404, f"no model {name[:40]!r} here; there is {front.name!r}")
    if scope["method"] not in METHODS:
        raise RequestError(405, f"{scope['method']} is not for predictions; POST an image")
    service = front.ready_service()
    return await front.admission.submit(partial(_work, service, headers, scope["query_string"], body))


def _work(service: Service, headers: dict[bytes, bytes], query: bytes, body: bytes) -> bytes:
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


def _options(headers: dict[bytes, bytes], query: bytes, form: dict[str, str]) -> Options:
    """Each option from the query, else the form, else the headers `akin-k` and `akin-fields`."""
    given = {name: headers[key].decode("latin-1") for name, key in OPTION_HEADERS.items() if key in headers}
    given |= form
    if query:
        given |= parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return Options.parse(given.get("k"), given.get("fields"))
