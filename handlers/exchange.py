"""One request on a plain ASGI route: its body read within a cap, one answer whatever comes.

The event loop reads the body and writes the answer; what lies between is the route's, in a worker thread.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from handlers.about import HeaderList, Headers, about, request_id
from handlers.admission import Abandoned, Admission, Pace, QueueFull
from handlers.metrics import Metrics
from handlers.models import Models
from handlers.service import RequestError, Service, error_json
from handlers.tokens import Access
from handlers.underway import UnderWay
from handlers.wire import client_gone
from images.decode import ImageError
from index.errors import GalleryError

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0
MAX_HELD_BYTES = 1 << 30  # of bodies that are being read or wait for a worker, all together
REFUSALS_PER_S = 250  # for a full queue: a twentieth of what one core could send
CLIENT_GONE = 499  # what the log has in place of a status, as nginx writes it

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = RequestError | ImageError
Result = TypeVar("Result")

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


@dataclass(slots=True)
class Request:
    """One request on a plain route, from its head to its answer."""

    scope: Scope
    headers: Headers
    id: str  # the client's x-request-id, or ours
    body: bytes = b""
    timing_ms: dict[str, float] = field(default_factory=dict)  # by stage, for the Server-Timing header
    gone: Callable[[], bool] = lambda: False  # whether its client has hung up
    began: float = field(default_factory=perf_counter)
    service: Service | None = None  # the model that worked for it

    @property
    def model(self) -> str | None:
        """The model that the path names in /models/NAME/..., None for the default one."""
        return self.scope.get("akin.model")


class Reply(NamedTuple):
    """An answer that is more than JSON with 200."""

    payload: bytes
    content_type: bytes = JSON
    headers: HeaderList = ()
    status: int = 200


AccessLog = Callable[[Request, int, float], None]  # status, seconds


@dataclass
class Front:
    """What the routes share. `models` is empty until the golden vectors have passed."""

    models: Models
    admission: Admission
    metrics: Metrics
    access: Access = field(default_factory=Access)
    writers: Admission | None = None  # threads that wait for disks and locks; None: those of `admission`
    stuck_after_s: float = 120.0  # a job that runs so long is taken for wedged
    access_log: AccessLog | None = None  # told of every answer
    render_metrics: Callable[[], bytes] | None = None  # for Prometheus; None: those of this process
    under_way: UnderWay = field(default_factory=UnderWay)
    refusals: Pace = field(default_factory=lambda: Pace(REFUSALS_PER_S))
    held_bytes: int = 0  # of bodies

    @property
    def committing(self) -> Admission:
        """Where rows are written: apart, so that no prediction stands behind a sync of the disk."""
        return self.writers or self.admission

    def service(self, name: str | None = None, version: str | None = None) -> Service:
        """The service of a model; raises `RequestError` 503 for those who come too early, 404 for an unknown one."""
        return self.models.service(name, version)

    async def run(
        self,
        request: Request,
        work: Callable[[], Result],
        service: Service | None = None,
        admission: Admission | None = None,
    ) -> Result:
        """Do `work` in a worker thread once its turn has come; raises `QueueFull` where that would take too long."""
        request.service = service
        submitted = perf_counter()

        def timed() -> Result:
            request.timing_ms["queue"] = (perf_counter() - submitted) * 1e3
            return work()

        return await (admission or self.admission).submit(timed, len(request.body), request.gone)

    def prometheus(self) -> bytes:
        """What GET /metrics answers."""
        return (self.render_metrics or self.metrics.render)()

    def note(self, request: Request, status: int, seconds: float) -> None:
        """A line for the access log, where there is one."""
        if self.access_log is not None:
            self.access_log(request, status, seconds)

    def close(self) -> None:
        """End the workers, after what they do, and close what is on disk."""
        self.under_way.close()
        self.admission.close()
        if self.writers is not None:
            self.writers.close()
        for service in self.models.clear():
            service.close()

    def check_live(self) -> None:
        """Raise `RequestError` 503 where this process should be started anew."""
        if wedged := self.wedged():
            raise RequestError(503, f"{wedged}: this process should be started anew")

    def wedged(self) -> str | None:
        """What has stopped answering, if anything has: a reason to start the process anew."""
        stuck = max(self.admission.stuck_s, self.committing.stuck_s)
        if stuck <= self.stuck_after_s:
            return None
        return f"a worker has been busy with one request for {stuck:.0f} s; the limit is {self.stuck_after_s:.0f}"


@dataclass(frozen=True, slots=True)
class Route:
    """What sets one route apart from another."""

    methods: tuple[str, ...]
    max_bytes: int  # of a body
    answer: Callable[[Front, Request], Awaitable[bytes | Reply]]  # a request with its whole body to its answer
    error_json: Callable[[Refusal], bytes]
    counted: bool = True  # as a prediction, in the metrics
    content_type: bytes = JSON  # of its answer; errors are JSON


async def exchange(front: Front, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, whatever comes."""
    headers: Headers = dict(scope["headers"])
    request = Request(scope, headers, request_id(headers), gone=lambda: client_gone(receive))
    unread = False
    arrived = perf_counter()
    try:
        request.body = await _read_body(front, headers, receive, route.max_bytes)
        arrived = perf_counter()
        if scope["method"] not in route.methods:
            raise _wrong_method(scope, route.methods)
        check_encoding(headers.get(b"content-encoding", b"").decode("latin-1"))
        answer = await route.answer(front, request)
        reply = answer if isinstance(answer, Reply) else Reply(answer, route.content_type)
    except (ClientGone, Abandoned):
        front.metrics.reject("client gone")
        front.note(request, CLIENT_GONE, perf_counter() - arrived)
        return
    except QueueFull as error:
        reply = refusal(front, request, error, route.error_json)
        front.held_bytes -= len(request.body)
        request.body = b""
        await asyncio.sleep(front.refusals.delay_s())
    except Exception as error:
        # Not kept beyond this block: its traceback holds this frame, and so the body.
        reply = refusal(front, request, error, route.error_json)
        unread = isinstance(error, BodyTooLarge)
    finally:
        front.held_bytes -= len(request.body)
    seconds = perf_counter() - arrived
    head = (*reply.headers, *about(request.id, seconds, request.timing_ms))
    allowed = ((b"allow", ", ".join(route.methods).encode()),) if reply.status == 405 else ()
    await send_reply(receive, send, reply._replace(headers=(*head, *allowed)), unread)
    # The books are kept while the answer is on its way.
    if route.counted:
        front.metrics.answered(reply.status, request.service, seconds, request.timing_ms)
    front.note(request, reply.status, seconds)


async def turn_away(front: Front, request: Request, error: Exception, receive: Receive, send: Send) -> None:
    """Answer a request whose body nobody will read with the error."""
    reply = refusal(front, request, error)
    seconds = perf_counter() - request.began
    head = (*reply.headers, *about(request.id, seconds, {}))
    await send_reply(receive, send, reply._replace(headers=head), unread=True)
    front.note(request, reply.status, seconds)


async def send_reply(receive: Receive, send: Send, reply: Reply, unread: bool = False) -> None:
    """Send an answer that is whole. unread: the request's body is not, and the rest of it is still on its way."""
    head = [(b"content-type", reply.content_type), (b"content-length", b"%d" % len(reply.payload)), *reply.headers]
    if reply.status == 401:
        head.append((b"www-authenticate", b"Bearer"))
    if unread:
        head.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
    await send({"type": "http.response.body", "body": reply.payload, "more_body": unread})
    if unread:
        await drain(receive)
        await send({"type": "http.response.body"})


def plain_error(refusal: Refusal) -> bytes:
    """The JSON of an error where no other API says how it looks."""
    return error_json(refusal.status, refusal.reason)


def media_type(headers: Headers) -> str:
    """The content type of the body, without its parameters."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def check_encoding(coding: str) -> None:
    """Refuse a body that would have to be unpacked first: a small one may hold gigabytes."""
    if coding not in ("", "identity"):
        raise RequestError(415, f"the body is encoded as {coding[:40]!r}; send it as it is")


def internal_error(error: Exception, request: str) -> str:
    """Write an unexpected exception to the log; what the client is told instead."""
    log.error("request %s failed", request, exc_info=error)
    return f"internal error; the server's log has it as request {request}"


def _wrong_method(scope: Scope, methods: tuple[str, ...]) -> RequestError:
    return RequestError(405, f"{scope['method']} is not for {scope['path'][:80]}; use {' or '.join(methods)}")


def refusal(
    front: Front, request: Request, error: Exception, to_body: Callable[[Refusal], bytes] = plain_error
) -> Reply:
    """The answer to a request that ended in `error`."""
    retry_s = 1.0
    if isinstance(error, QueueFull):
        front.metrics.reject("queue full")
        retry_s = error.wait_s
        reason = f"{error.waiting} requests wait already, about {error.wait_s * 1e3:.0f} ms of work; send again later"
        error = RequestError(503, reason)
    elif isinstance(error, GalleryError):
        error = of_gallery(error)
    elif not isinstance(error, RequestError | ImageError):
        error = RequestError(500, internal_error(error, request.id))
    return Reply(to_body(error), status=error.status, headers=retry_after(retry_s) if error.status == 503 else ())


def retry_after(seconds: float) -> HeaderList:
    """In whole seconds, as the header wants it; at least one."""
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def of_gallery(error: GalleryError) -> RequestError:
    """What an error of the index means to a client; what nobody outside can put right goes to the log too."""
    if error.status == 500:
        log.error("the gallery failed: %s", error)
    return RequestError(error.status, str(error))


async def _read_body(front: Front, headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; a declared length over it is refused before anything is read.

    What it returns is counted in `front.held_bytes`, and what it does not is not.
    """
    declared = headers.get(b"content-length", b"0")
    if int(declared) > limit:
        raise BodyTooLarge(declared.decode(), limit)
    message = await next_chunk(receive)
    held = len(message["body"])
    front.held_bytes += held
    if not message["more_body"]:
        return message["body"]
    body = bytearray(message["body"])
    try:
        while message["more_body"]:
            message = await next_chunk(receive)
            body += message["body"]
            front.held_bytes += len(message["body"])
            held = len(body)
            if held > limit:
                raise BodyTooLarge(f"more than {limit}", limit)
            if front.held_bytes > MAX_HELD_BYTES:
                front.metrics.reject("memory")
                raise RequestError(
                    503, f"more than {MAX_HELD_BYTES} bytes of requests are held already; send again in a second"
                )
        return bytes(body)
    except BaseException:
        front.held_bytes -= held
        raise


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
