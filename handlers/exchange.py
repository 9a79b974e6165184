"""One request on a plain ASGI route: its body read within a cap, one answer whatever comes.

The event loop reads the body and writes the answer; what lies between is the route's, in a worker thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from uuid import uuid4

from handlers.admission import Admission, QueueFull
from handlers.metrics import Metrics
from handlers.service import RequestError, Service, error_json
from handlers.tokens import Access
from images.decode import ImageError
from index.errors import GalleryError

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]
Refusal = RequestError | ImageError

JSON = b"application/json"

log = logging.getLogger("akin")


class ClientGone(Exception):
    """The client hung up before its request was whole; nobody is left to answer."""


class BodyTooLarge(RequestError):
    """The body exceeds the cap, and the rest of it is still on its way."""

    def __init__(self, size: str, limit: int) -> None:
        super().__init__(
            413, f"the body has {size} bytes; the limit is {limit}: send a smaller image, or fewer in one request"
        )


@dataclass
class Front:
    """What the routes share. `service` is None until the golden vectors have passed."""

    name: str
    admission: Admission
    metrics: Metrics
    service: Service | None = None
    access: Access = field(default_factory=Access)
    writers: Admission | None = None  # threads that wait for disks and locks; None: those of `admission`

    @property
    def committing(self) -> Admission:
        """Where rows are written: apart, so that no prediction stands behind a sync of the disk."""
        return self.writers or self.admission

    def ready_service(self) -> Service:
        """The service, or a 503 for those who come too early."""
        if self.service is None:
            raise RequestError(503, "the encoder is still loading; /readyz tells when to send again")
        return self.service


@dataclass(frozen=True, slots=True)
class Route:
    """What sets one route apart from another."""

    methods: tuple[str, ...]
    max_bytes: int  # of a body
    answer: Callable[[Front, Scope, Headers, bytes], Awaitable[bytes]]  # a whole body to that of its answer
    error_json: Callable[[Refusal], bytes]
    counted: bool = True  # as a prediction, in the metrics
    content_type: bytes = JSON  # of its answer; errors are JSON


async def exchange(front: Front, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, whatever comes."""
    headers: Headers = dict(scope["headers"])
    status, unread = 200, False
    try:
        body = await _read_body(headers, receive, route.max_bytes)
        started = perf_counter()
        if scope["method"] not in route.methods:
            raise _wrong_method(scope, route.methods)
        payload = await route.answer(front, scope, headers, body)
        if route.counted:
            front.metrics.observe("total", perf_counter() - started)
    except ClientGone:
        return
    except Exception as error:
        # Not kept beyond this block: its traceback holds this frame, and so the body.
        status, payload = refusal(front, error, route.error_json)
        unread = isinstance(error, BodyTooLarge)
    if route.counted:
        front.metrics.answered(status)
    content_type = route.content_type if status == 200 else JSON
    await reply(receive, send, status, payload, content_type, route.methods, unread)


async def reply(
    receive: Receive,
    send: Send,
    status: int,
    payload: bytes,
    content_type: bytes = JSON,
    methods: tuple[str, ...] = (),
    unread: bool = False,
) -> None:
    """Send an answer that is whole. unread: the request's body is not, and the rest of it is still on its way."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(payload))]
    if status == 405:
        head.append((b"allow", ", ".join(methods).encode()))
    elif status == 503:
        head.append((b"retry-after", b"1"))
    elif status == 401:
        head.append((b"www-authenticate", b"Bearer"))
    if unread:
        head.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": payload, "more_body": unread})
    if unread:
        await drain(receive)
        await send({"type": "http.response.body"})


def plain_error(refusal: Refusal) -> bytes:
    """The JSON of an error where no other API says how it looks."""
    return error_json(refusal.status, refusal.reason)


def media_type(headers: Headers) -> str:
    """The content type of the body, without its parameters."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def internal_error(error: Exception) -> str:
    """Write an unexpected exception to the log; what the client is told instead."""
    request_id = uuid4().hex[:12]
    log.error("request %s failed", request_id, exc_info=error)
    return f"internal error; the server's log has it as request {request_id}"


def _wrong_method(scope: Scope, methods: tuple[str, ...]) -> RequestError:
    return RequestError(405, f"{scope['method']} is not for {scope['path'][:80]}; use {' or '.join(methods)}")


def refusal(front: Front, error: Exception, to_body: Callable[[Refusal], bytes] = plain_error) -> tuple[int, bytes]:
    """Status and body of the answer to a request that ended in `error`."""
    if isinstance(error, QueueFull):
        front.metrics.rejected.inc()
        error = RequestError(503, f"{front.admission.capacity} requests wait already; send again in a second")
    elif isinstance(error, GalleryError):
        error = of_gallery(error)
    elif not isinstance(error, RequestError | ImageError):
        error = RequestError(500, internal_error(error))
    return error.status, to_body(error)


def of_gallery(error: GalleryError) -> RequestError:
    """What an error of the index means to a client; what nobody outside can put right goes to the log too."""
    if error.status == 500:
        log.error("the gallery failed: %s", error)
    return RequestError(error.status, str(error))


async def _read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; a declared length over it is refused before anything is read."""
    declared = headers.get(b"content-length", b"0")
    if int(declared) > limit:
        raise BodyTooLarge(declared.decode(), limit)
    message = await next_chunk(receive)
    if not message["more_body"]:
        return message["body"]
    body = bytearray(message["body"])
    while message["more_body"]:
        message = await next_chunk(receive)
        body += message["body"]
        if len(body) > limit:
            raise BodyTooLarge(f"more than {limit}", limit)
    return bytes(body)


async def next_chunk(receive: Receive) -> Message:
    """The next piece of the body; raises `ClientGone`."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


async def drain(receive: Receive) -> None:
    """Swallow what is still coming, within bounds.

    Closing on unread bytes resets the connection, and a client that is still sending would see the
    reset in place of its answer.
    """
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while drained < DRAIN_BYTES:
                message = await next_chunk(receive)
                drained += len(message["body"])
                if not message["more_body"]:
                    return
    except (ClientGone, TimeoutError):
        return
