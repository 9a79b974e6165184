"""Who comes in: a connection where there is room for one more, or where one that is idle can make room for it.

The others are told to come again. An event loop's own listener makes a transport and a protocol of every connection
before anyone can refuse it, as often as clients like. Here one too many is answered and closed as a bare socket, and
that gets a tenth of the loop's time at most: who comes faster waits in the kernel's queue.
"""

import asyncio
import logging
import math
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from heapq import nlargest
from operator import attrgetter
from time import perf_counter
from typing import NamedTuple, cast

import uvicorn

from handlers import logs
from handlers.about import new_id
from handlers.wire import Wire, error_answer

BACKLOG = 2048  # connections that the kernel keeps for us
AT_ONCE = 64  # connections taken before the event loop sees to other things
READ_BYTES = 1 << 16  # of a request that is refused unseen
SHARE = 0.1  # of the event loop's time, for refusals
SPARE_SECONDS = 0.02  # of it that may be saved up
PAUSE_SECONDS = 0.01  # at least, before refusals go on
IDLE_SECONDS = 5.0  # between requests, after which a connection gives its place to one that waits
LOOK_SECONDS = 0.5  # until the next look for idle ones, where there was none
OUT_OF_FILES_SECONDS = 1.0  # until one may be free again
SPARE_FILES = 256  # of the index, the models and the log; what the connections leave to everything else

log = logging.getLogger("akin")


class Guard(NamedTuple):
    """Who may come in."""

    limit: int  # connections at a time
    rejected: Callable[[str], None] = lambda reason: None  # told "connections" of each that is one too many


def lack_of_files(connections: int) -> str | None:
    """Allow this process the open files that so many connections take; what is in the way, if something is.

    The usual limit is 1024. Beyond it not only connections fail, but also the files of an index.
    """
    wanted = connections + SPARE_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted > most != resource.RLIM_INFINITY:
        return f"{connections} connections take {wanted} open files; the limit is {most}: raise it with `ulimit -Hn`"
    if wanted > allowed != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return None


class Server(uvicorn.Server):
    """uvicorn's, with a door of ours; it must run with the protocol of `handlers.wire`."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self._guard = guard

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`, which are bound."""
        await super().startup([])  # else uvicorn listens itself
        config, state = self.config, self.lifespan.state
        wire = cast(type[Wire], config.http_protocol_class)
        protocol = partial(wire, config=config, server_state=self.server_state, app_state=state)
        self.servers = [cast(asyncio.Server, Door(each, protocol, self._guard)) for each in sockets or ()]


class Door:
    """A listening socket, with as much of an asyncio server about it as uvicorn needs."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], Wire], guard: Guard) -> None:
        """listener: bound to its address. protocol: makes that of a connection."""
        self._listener = listener
        self._protocol = protocol
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._inside: set[Wire] = set()
        self._entering: set[asyncio.Task[None]] = set()
        self._refuse_at = 0.0  # perf_counter: when the refusals so far will have had no more than their share
        self._look_at = 0.0  # perf_counter: for idle ones
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Take no more; who is inside stays."""
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Return once all who were taken are inside or gone."""
        if self._entering:
            await asyncio.wait(self._entering)

    @property
    def _full(self) -> bool:
        return len(self._inside) >= self._guard.limit

    def _take(self) -> None:
        """Someone waits. Let in as many as there is room for, or refuse as many as there is time for."""
        full = self._full
        if full and self._ask_the_idle():
            self._rest(PAUSE_SECONDS)
            return
        for _ in range(AT_ONCE):
            began = perf_counter()
            if full and began < self._refuse_at:
                self._rest(max(PAUSE_SECONDS, self._refuse_at - began))
                return
            try:
                connection, client = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection can be accepted (%s); the next try is in a second", error)
                self._rest(OUT_OF_FILES_SECONDS)
                return
            if full:
                self._refuse(connection, client)
                now = perf_counter()
                self._refuse_at = max(self._refuse_at, now - SPARE_SECONDS) + (now - began) / SHARE
            else:
                self._let_in(connection)
                if self._full:  # whether more wait, the next call knows
                    return

    def _ask_the_idle(self) -> bool:
        """Have those that are idle for longest leave; whether there are any."""
        now = perf_counter()
        if now < self._look_at:
            return False
        idle = [each for each in self._inside if each.idle_s >= IDLE_SECONDS]
        if not idle:
            self._look_at = now + LOOK_SECONDS
        for each in nlargest(math.ceil(len(idle) / 64), idle, key=attrgetter("idle_s")):
            each.shutdown()
        return bool(idle)

    def _let_in(self, connection: socket.socket) -> None:
        protocol = self._protocol()
        protocol.left = self._leave
        self._inside.add(protocol)
        entering = self._loop.create_task(self._enter(connection, protocol))
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket, protocol: Wire) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it has gone again
            connection.close()
            self._leave(protocol)
            return
        if self._closed:
            protocol.shutdown()

    def _leave(self, protocol: Wire) -> None:
        self._inside.discard(protocol)
        if self._pause is not None and not self._closed:
            self._resume()  # there is room for one of those who wait

    def _refuse(self, connection: socket.socket, client: tuple[str, int]) -> None:
        self._guard.rejected("connections")
        limit = self._guard.limit
        id, text = new_id(), f"more than {limit} connections are open; send again in a second, over fewer connections"
        with connection:
            with suppress(OSError):  # nothing has come
                connection.recv(READ_BYTES, socket.MSG_DONTWAIT)  # closed on unread bytes, it would be reset
            with suppress(OSError):  # it has gone again
                connection.send(error_answer(503, text, id, b"retry-after: 1\r\n"))
        logs.turned_away(id, client, 503, text)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._loop.add_reader(self._listener, self._take)
