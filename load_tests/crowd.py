"""Many HTTP/1.1 connections from one thread: what overload and soak send with.

wrk adds refused answers to its latencies, which are then those of saying no, and its script cannot tell one
connection from another. Here every answer is told apart, every connection can have manners of its own, and a
request costs about 25 µs, as the server's cores are shared. Linux only: it waits in epoll.
"""

import heapq
import re
import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from time import perf_counter
from typing import NamedTuple

HOST = "127.0.0.1"
NOBODY_WAITED = 0  # the status of a request that was hung up on
BROKEN = -1  # the status where the connection ended before the answer did, or the answer never came
CONNECT_SECONDS = 10
PATIENCE_SECONDS = 60.0  # for an answer
LOOK_SECONDS = 1.0  # between two looks for answers that are overdue
READ_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire, and what it is called."""

    data: bytes
    kind: str = ""
    hang_up: bool = False  # as soon as it is sent


class Answer(NamedTuple):
    """What came of a request."""

    request: Request
    status: int  # HTTP's, NOBODY_WAITED or BROKEN
    seconds: float  # from the first byte sent to the last one read
    retry_after_s: float  # 0 where the answer does not say


@dataclass(slots=True, eq=False)
class _Connection:
    tcp: socket.socket | None = None  # None: closed, until it has something to send
    request: Request | None = None  # None: it pauses
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    read: bytes = b""
    started: float = 0.0


class Crowd:
    """`size` connections, each of which sends, waits for the answer, pauses, and sends again.

    `ask` gives the next request of whichever connection is free, None when there are no more. `hear` gets each
    answer and says for how many seconds its connection pauses.
    """

    def __init__(
        self, port: int, size: int, ask: Callable[[], Request | None], hear: Callable[[Answer], float]
    ) -> None:
        self._port, self._size, self._ask, self._hear = port, size, ask, hear
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._paused: list[tuple[float, int, _Connection]] = []  # a heap by the end of the pause
        self._order = count()

    def run(self, until: float = inf) -> None:
        """Send until `ask` has no more and all is answered, at the latest until perf_counter() says `until`."""
        try:
            for _ in range(self._size):
                self._pause(_Connection(), 0.0)
            look = perf_counter() + LOOK_SECONDS
            while (now := perf_counter()) < until and (self._paused or self._open):
                while self._paused and self._paused[0][0] <= now:
                    self._begin(heapq.heappop(self._paused)[2])
                if not (self._open or self._paused):
                    return
                wake = min(until, look, self._paused[0][0] if self._paused else inf) - perf_counter()
                for number, events in self._poll.poll(max(0.0, wake)):
                    if connection := self._open.get(number):  # else it was closed a moment ago
                        self._go_on(connection, events)
                if perf_counter() >= look:
                    self._give_up()
                    look = perf_counter() + LOOK_SECONDS
        finally:
            for connection in self._open.values():
                # With a reset: hundreds of ports that wait for a late packet would be in the next server's way.
                connection.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.tcp.close()
            self._poll.close()

    def _connect(self, connection: _Connection) -> None:
        made = connection.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.settimeout(CONNECT_SECONDS)
        made.connect((HOST, self._port))  # create_connection() looks the address up, for as long as this takes
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._open[made.fileno()] = connection
        self._poll.register(made, select.EPOLLIN)

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.tcp.fileno()]
        connection.tcp.close()  # which takes it out of the poll
        connection.tcp = None

    def _give_up(self) -> None:
        overdue = perf_counter() - PATIENCE_SECONDS
        for connection in list(self._open.values()):
            if connection.request is not None and connection.started < overdue:
                self._finish(connection, BROKEN)

    def _pause(self, connection: _Connection, seconds: float) -> None:
        heapq.heappush(self._paused, (perf_counter() + seconds, next(self._order), connection))

    def _begin(self, connection: _Connection) -> None:
        request = self._ask()
        if request is None:
            if connection.tcp:
                self._close(connection)
            return
        if connection.tcp is None:
            self._connect(connection)
        connection.request, connection.unsent = request, memoryview(request.data)
        connection.started = perf_counter()
        self._send(connection)

    def _go_on(self, connection: _Connection, events: int) -> None:
        if connection.request is None:  # nothing is due to it but the end
            self._close(connection)
        elif events & select.EPOLLIN or events & (select.EPOLLHUP | select.EPOLLERR):
            self._receive(connection)
        else:
            self._send(connection)

    def _send(self, connection: _Connection) -> None:
        waited = len(connection.unsent) < len(connection.request.data)
        try:
            connection.unsent = connection.unsent[connection.tcp.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # closed by the server, which may have said why
            self._receive(connection)
            return
        if connection.unsent:
            self._poll.modify(connection.tcp, select.EPOLLIN | select.EPOLLOUT)
        elif connection.request.hang_up:
            self._finish(connection, NOBODY_WAITED)
        elif waited:
            self._poll.modify(connection.tcp, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.tcp.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._finish(connection, BROKEN)
            return
        read = connection.read = connection.read + data if connection.read else data
        end = read.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = read[: end - 2]
        length = LENGTH.search(head)
        if len(read) < end + (int(length[1]) if length else 0):
            return
        retry_after = RETRY_AFTER.search(head)
        wait_s = float(retry_after[1]) if retry_after else 0.0
        self._finish(connection, int(head[9:12]), wait_s, closes=CLOSES.search(head) is not None)

    def _finish(self, connection: _Connection, status: int, retry_after_s: float = 0.0, closes: bool = False) -> None:
        answer = Answer(connection.request, status, perf_counter() - connection.started, retry_after_s)
        if closes or connection.unsent or status in (NOBODY_WAITED, BROKEN):
            self._close(connection)
        connection.request, connection.read = None, b""
        self._pause(connection, self._hear(answer))


def post(path: str, body: bytes, kind: str = "", headers: Sequence[tuple[str, str]] = ()) -> Request:
    """A POST of `body` with its length, as an image where `headers` names no other type."""
    named = {"host": HOST, "content-type": "image/jpeg", "content-length": str(len(body)), **dict(headers)}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return Request(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body, kind)
