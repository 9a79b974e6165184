"""What stands between the network and the routes: limits on headers, time and unread answers.

uvicorn's protocol on httptools has none of them: a header line may be endless, and a client may take forever over it.
A good request pays for a few comparisons; the clock is one timer a connection, not one a request.

    uvicorn.Config(app, http=wire(Limits(header_seconds=5), rejected=metrics.reject), ws="none")
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from handlers import logs
from handlers.about import about, new_id, request_id
from handlers.service import error_json

LINGER_SECONDS = 2.0  # how long a refused client may go on sending, so that it reads our answer and not a reset
LOOKS = 4  # at the clock in the shortest time limit: one takes effect within a quarter of itself more

Awaited = Literal["silent", "slow headers", "slow body", "slow reader"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask of the server before any route looks at its request."""

    header_bytes: int = 16 << 10  # of request line and headers; again of trailers, or of one chunk's extensions
    header_seconds: float = 10.0  # for all of them; also for the first byte of a connection
    body_seconds: float = 30.0  # for the whole body, and on top of that
    bytes_per_second: int = 16 << 10  # one second more for so many bytes, of a body or of an answer
    write_seconds: float = 30.0  # that a client may leave an answer unread
    pipelined: int = 128  # requests that a connection may send ahead of their answers


class Refused(Exception):
    """A request that breaks the limits or the grammar of HTTP. reason: a word or two for the metrics."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class _Deaf:
    """The parser of a connection that has been refused: it hears nothing more."""

    def feed_data(self, data: bytes) -> None:
        pass


DEAF = cast(httptools.HttpRequestParser, _Deaf())


class Wire(HttpToolsProtocol):
    """uvicorn's protocol within `limits`. No WebSockets: uvicorn must run with ws="none"."""

    limits = Limits()
    url = b""  # of a connection that has not begun a request
    unparsed = 0  # bytes of the reads since the last request, or the last piece of a body
    payload = 0  # bytes of bodies so far
    steps = 0  # heads and requests that became whole, and full write buffers that emptied
    timer: asyncio.TimerHandle | None = None
    left: Callable[["Wire"], None] = staticmethod(lambda _: None)  # told once the connection is no more

    # At the last look at the clock: what the client was waited for, at which step, since when, how much had come.
    awaited: Awaited | None = "silent"
    awaited_step = 0
    since = 0.0
    moved = 0

    @staticmethod
    def rejected(reason: str) -> None:
        """Told of every refusal, for the metrics."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # after a reset uvicorn does not, and we would live on for its time
        if self.timer is not None:
            self.timer.cancel()
        self.left(self)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.unparsed += len(data)
        try:
            self.parser.feed_data(data)
            if self.unparsed > self.limits.header_bytes and self.parser is not DEAF:
                self._refuse(self._headers_too_large())
        except httptools.HttpParserUpgrade as upgrade:
            self.data_received(self._without_upgrade() + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__  # an exception of a method below
            if not isinstance(cause, Refused):
                text = f"not well-formed HTTP/1.1: {str(cause or error)[:100]}; mend the request"
                cause = Refused(400, "malformed", text)
            self._refuse(cause)

    def on_headers_complete(self) -> None:
        limits = self.limits
        if self.unparsed > limits.header_bytes:
            # Counted exactly only here, where the same reads may hold a body too.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header_bytes:
                raise self._headers_too_large()
        self.unparsed = 0
        self.steps += 1
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Refused(400, "malformed", "CONNECT is for proxies, and this is none; send GET, POST or PUT")
            return  # the parser stops after this head, and data_received goes on from there
        if len(self.pipeline) >= limits.pipelined:
            text = f"more than {limits.pipelined} requests sent ahead of their answers; wait for some"
            raise Refused(400, "pipelined", text)
        super().on_headers_complete()
        # The parser calls trailers headers too. The app has not seen its headers yet: the two must not mix.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self.unparsed = 0
        self.payload += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        self.unparsed = 0
        self.steps += 1
        if not self.parser.should_upgrade():
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def resume_writing(self) -> None:
        self.steps += 1
        super().resume_writing()

    @property
    def idle_s(self) -> float:
        """How long it has waited for another request; 0 where it does not, or could not be closed at once."""
        timeout, transport = self.timeout_keep_alive_task, self.transport
        if timeout is None or transport.is_closing() or transport.get_write_buffer_size():
            return 0.0
        return self.loop.time() - (timeout.when() - self.timeout_keep_alive)

    @property
    def _in_head(self) -> bool:
        """Whether no request has come yet, or the headers of the latest are not whole."""
        return self.cycle is None or self.cycle.scope is not self.scope

    def _without_upgrade(self) -> bytes:
        """The head just parsed less its Upgrade, for a new parser.

        Java's HttpClient offers h2c with every request, and the old parser would take the body for the new protocol,
        or for the next request. A server may ignore the offer (RFC 9110, 7.8).
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        return b"".join((method, b" ", self.url, b" HTTP/", version, b"\r\n", *lines, b"\r\n"))

    def _look_later(self) -> None:
        shortest = min(self.limits.header_seconds, self.limits.body_seconds, self.limits.write_seconds)
        self.timer = self.loop.call_later(shortest / LOOKS, self._look)

    def _look(self) -> None:
        """Look at the clock: has the client been waited for too long?"""
        now = self.loop.time()
        awaited, count = self._awaited()
        if awaited != self.awaited or self.steps != self.awaited_step or count < self.moved:
            self.awaited, self.awaited_step, self.since, self.moved = awaited, self.steps, now, count
        elif awaited is not None:
            moved, waited = count - self.moved, now - self.since
            if waited > self._seconds(awaited) + moved / self.limits.bytes_per_second:
                self._give_up(awaited, moved, waited)
                return
        self._look_later()

    def _awaited(self) -> tuple[Awaited | None, int]:
        """What the client owes us (None: it is our turn), and a count of bytes that grows as it pays."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            return "slow reader", -unsent
        if self.scope is None:
            return "silent", 0
        cycle = self.cycle
        if self._in_head:
            # Sent ahead of an answer, it is in no hurry.
            return ("slow headers" if cycle is None or cycle.response_complete else None), 0
        if cycle.more_body:
            ours = self.pipeline or self.flow.read_paused or cycle.waiting_for_100_continue
            return (None if ours else "slow body"), self.payload
        # Idle: bytes that begin no request, such as blank lines, have ended uvicorn's own clock.
        return ("silent" if cycle.response_complete and self.timeout_keep_alive_task is None else None), 0

    def _seconds(self, awaited: Awaited) -> float:
        if awaited == "slow reader":
            return self.limits.write_seconds
        if awaited == "slow body":
            return self.limits.body_seconds
        idle = awaited == "silent" and self.scope is not None
        return self.timeout_keep_alive if idle else self.limits.header_seconds

    def _give_up(self, awaited: Awaited, moved: int, waited: float) -> None:
        """End a connection whose client took too long; with an answer where it could still read one."""
        limit, rate = self._seconds(awaited), self.limits.bytes_per_second
        if awaited == "slow headers":
            text = f"the headers are not whole after {waited:.0f} s; the limit is {limit:g} s: send them at once"
            self._refuse(Refused(408, awaited, text))
        elif awaited == "slow body":
            text = f"{moved} bytes of the body came in {waited:.0f} s; the limit is {limit:g} s, and 1 s more for"
            text += f" every {rate} bytes: send fewer bytes, or over a faster line"
            self._refuse(Refused(408, awaited, text))
        else:
            self.rejected(awaited)
            self.transport.abort()

    def _headers_too_large(self) -> Refused:
        limit = self.limits.header_bytes
        if 2 * len(self.url) > limit and self._in_head:
            text = f"the target has {len(self.url)} bytes or more; the limit is {limit}, headers included: send less"
            return Refused(414, "headers too large", text)
        text = f"more than {limit} bytes of headers, trailers or chunk extensions; send fewer and shorter ones"
        return Refused(431, "headers too large", text)

    def _refuse(self, refused: Refused) -> None:
        """Answer the latest request with an error and close, after the answers to those before it."""
        self.rejected(refused.reason)
        self.parser = DEAF
        cycle = self.cycle
        if self._in_head:
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False  # the connection closes once that is answered
                return
        else:
            cycle.disconnected = True  # whatever the app sends now is dropped
            cycle.message_event.set()
            if self.pipeline or cycle.response_started:
                self.transport.close()  # no room for an answer
                return
        self._write_error(refused.status, str(refused))
        # The reset that follows unread bytes would overtake the answer: read on, and close when the client has.
        self.transport.write_eof()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _write_error(self, status: int, text: str) -> None:
        id = self._request_id()
        self.transport.write(error_answer(status, text, id))
        logs.turned_away(id, self.client, status, text)

    def _request_id(self) -> str:
        """The client's own where it has been parsed: of the latest request, unless that has its answer already."""
        if self.scope is None or (not self._in_head and self.cycle.response_complete):
            return new_id()
        return request_id(dict(self.scope["headers"]))


def error_answer(status: int, text: str, id: str, header: bytes = b"") -> bytes:
    """An HTTP/1.1 answer, whole, after which the connection closes. header: lines more of its head."""
    body = error_json(status, text)
    head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    named = b"".join(b"%s: %s\r\n" % each for each in about(id, 0.0, {}))  # no work was done
    return b"".join((STATUS_LINE[status], head, named, header, b"\r\n", body))


def wire(limits: Limits, rejected: Callable[[str], None]) -> type[Wire]:
    """The protocol for `uvicorn.Config(http=...)`.

    rejected: told of every refusal: "headers too large", "slow headers", "slow body", "slow reader", "silent" (a
    connection without a request), "pipelined", "malformed".
    """
    return type("Wire", (Wire,), {"limits": limits, "rejected": staticmethod(rejected)})


def client_gone(receive: Callable[..., Any]) -> bool:
    """Whether the connection behind an ASGI `receive` has been lost; False where it is not uvicorn's."""
    cycle = getattr(receive, "__self__", None)
    return isinstance(cycle, RequestResponseCycle) and cycle.disconnected
