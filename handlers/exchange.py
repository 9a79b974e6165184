"""One request on a plain ASGI route: its body read within a cap, one answer whatever comes.

The event loop reads the body and writes the answer; what lies between is the route's, in a worker thread.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from handlers.about import HeaderList, Headers, about, request_id
from handlers.admission import Abandoned, Admission, QueueFull
from handlers.metrics import Metrics
from handlers.models import Models
from handlers.pace import Pace
from handlers.refusals import Refusal, check_encoding, plain_error, refusal_of, retry_after
from handlers.service import RequestError, Service
from handlers.together import Steps, together
from handlers.tokens import Access
from handlers.underway import UnderWay
from handlers.wire import client_gone

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0
MAX_HELD_BYTES = 1 << 30  # of bodies that are being read or wait for a worker, all together
MAX_DRAWINGS = 64  # requests that may wait for the map that is being drawn
REFUSALS_PER_S = 250  # for a full queue: a twentieth of what one core could send
CLIENT_GONE = 499  # what the log has in place of a status, as nginx writes it

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Result = TypeVar("Result")

JSON = b"application/json"


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
    kind: str = ""  # of work: what it is expected to take is learned from others of its kind
    body: bytes = b""  # until it is settled
    size: int = 0  # bytes of its body that have come
    timing_ms: dict[str, float] = field(default_factory=dict)  # by stage, for the Server-Timing header
    gone: Callable[[], bool] = lambda: False  # whether its client has hung up
    began: float = field(default_factory=perf_counter)
    service: Service | None = None  # the model that worked for it

    @property
    def model(self) -> str | None:
        """The model that the path names in /models/NAME/..., None for the default one."""
        return self.scope.get("akin.model")

    def noting_wait(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """`work` that begins by noting how long it has waited since now."""
        submitted = perf_counter()

        def timed() -> Result:
            waited_ms = (perf_counter() - submitted) * 1e3
            self.timing_ms["queue"] = self.timing_ms.get("queue", 0.0) + waited_ms
            return work()

        return timed


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
    stuck_after_s: float = 120.0  # a worker that is busy so long is taken for wedged
    access_log: AccessLog | None = None  # told of every answer
    render_metrics: Callable[[], bytes] | None = None  # for Prometheus; None: those of this process
    under_way: UnderWay = field(default_factory=UnderWay)
    refusals: Pace = field(default_factory=lambda: Pace(REFUSALS_PER_S))
    held_bytes: int = 0  # of bodies

    @cached_property
    def drawers(self) -> Admission:
        """One thread, apart from those that search: drawing a map takes seconds, once for all who ask."""
        return Admission(1, MAX_DRAWINGS)

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
        timed = request.noting_wait(work)
        done: Result = await (admission or self.admission).submit(timed, request.size, request.gone, request.kind)
        return done

    async def run_shared(
        self, request: Request, work: Callable[[], Steps[Result]], service: Service | None = None
    ) -> Result:
        """As `run`, for work that needs an encoder: where requests wait, several share a run of it."""
        request.service = service
        timed = request.noting_wait(work)
        done: Result = await self.admission.submit(timed, request.size, request.gone, request.kind, together)
        return done

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more of bodies may be held."""
        return self.held_bytes + size <= MAX_HELD_BYTES

    def hold(self, size: int) -> None:
        """Count bytes of a body that are kept from now on; raises `RequestError` 503 where there is no room."""
        if self.held_bytes + size > MAX_HELD_BYTES:
            self.metrics.reject("memory")
            raise RequestError(
                503, f"more than {MAX_HELD_BYTES} bytes of requests are held already; send again in a second"
            )
        self.held_bytes += size

    def release(self, size: int) -> None:
        """These bytes are not kept any more."""
        self.held_bytes -= size

    def settle(self, request: Request) -> None:
        """Let go of the body of a request that has been worked for."""
        self.release(request.size)
        request.body = b""

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
        if "drawers" in vars(self):  # somebody has asked for a map
            self.drawers.close()
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
        return f"a worker has been busy with the same work for {stuck:.0f} s; the limit is {self.stuck_after_s:.0f}"


@dataclass(frozen=True, slots=True)
class Route:
    """What sets one route apart from another."""

    methods: tuple[str, ...]
    max_bytes: int  # of a body
    answer: Callable[[Front, Request], Awaitable[bytes | Reply]]  # a request with its whole body to its answer
    error_json: Callable[[Refusal], bytes]
    counted: bool = True  # as a prediction, in the metrics
    content_type: bytes = JSON  # of its answer; errors are JSON
    kind: str = ""  # of its work, for what that is expected to take
    writes: tuple[str, ...] = ()  # methods for which the token is asked before anything is read


async def exchange(front: Front, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, whatever comes."""
    headers: Headers = dict(scope["headers"])
    request = Request(scope, headers, request_id(headers), route.kind, gone=lambda: client_gone(receive))
    unread, full = True, False
    arrived = perf_counter()
    try:
        if scope["method"] not in route.methods:
            raise _wrong_method(scope, route.methods)
        if scope["method"] in route.writes:
            front.access.check_write(headers)
        await _read_body(front, request, receive, route.max_bytes)
        unread = False
        arrived = perf_counter()
        check_encoding(headers.get(b"content-encoding", b"").decode("latin-1"))
        answer = await route.answer(front, request)
        reply = answer if isinstance(answer, Reply) else Reply(answer, route.content_type)
    except (ClientGone, Abandoned):
        front.metrics.reject("client gone")
        front.note(request, CLIENT_GONE, perf_counter() - arrived)
        return
    except Exception as error:
        # Not kept beyond this block: its traceback holds this frame, and so the body.
        reply = refusal(front, request, error, route.error_json)
        unread, full = unread and _has_body(headers), isinstance(error, QueueFull)
    finally:
        front.settle(request)
    if full:
        await front.refusals.turn(request.gone)
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


def media_type(headers: Headers) -> str:
    """The content type of the body, without its parameters."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def _has_body(headers: Headers) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


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
    refused = refusal_of(error, request.id)
    headers = retry_after(retry_s) if refused.status == 503 else ()
    return Reply(to_body(refused), headers=headers, status=refused.status)


async def _read_body(front: Front, request: Request, receive: Receive, limit: int) -> None:
    """Read the whole body, at most `limit` bytes; a declared length over it is refused before anything is read.

    `request.size` of it is counted in `front.held_bytes`, also where this raises.
    """
    declared = request.headers.get(b"content-length", b"0")
    if int(declared) > limit:
        raise BodyTooLarge(declared.decode(), limit)
    message = await next_chunk(receive)
    body: bytes = message["body"]
    front.hold(len(body))
    request.size = len(body)
    if not message["more_body"]:
        request.body = body
        return
    grown = bytearray(body)
    while message["more_body"]:
        message = await next_chunk(receive)
        size = len(message["body"])
        if request.size + size > limit:
            raise BodyTooLarge(f"more than {limit}", limit)
        front.hold(size)
        request.size += size
        grown += message["body"]
    request.body = bytes(grown)


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
