"""A real uvicorn server with uvloop, our door and our protocol, in a thread of the test; its app echoes."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from handlers.door import Guard, Server
from handlers.wire import Limits, client_gone, wire
from tests.server import Answer, read_answer, wait_until

GET = b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE = 10.0  # seconds after which a test gives up on the server


@dataclass
class Running:
    """A server under test, and what its app has seen."""

    port: int
    rejected: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gone: list[bool] = field(default_factory=list)
    no_delay: list[bool] = field(default_factory=list)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """/echo answers with the body and the headers, /wait only after a while, /big with 32 MB, /early unread."""
        self.paths.append(scope["path"])
        bare = receive.__self__.transport.get_extra_info("socket")
        self.no_delay.append(bool(bare.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        if scope["path"] == "/wait":
            await asyncio.sleep(0.6)
        if scope["path"] == "/watch":
            self.gone.append(client_gone(receive))
            deadline = time.monotonic() + PATIENCE
            while not client_gone(receive) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            self.gone.append(client_gone(receive))
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/big":
            body = bytes(32 << 20)
        head = [(b"content-length", b"%d" % len(body)), (b"sent", repr(scope["headers"]).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(self, request: bytes = GET) -> Answer:
        """The answer to one request over a connection of its own."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)


def is_error(answer: Answer, status: int, *words: str) -> bool:
    """Whether it is the JSON of an error that names `words`, after which the connection closes."""
    named = all(word in answer.json["error"] for word in words)
    closes, kind = answer.headers["connection"] == "close", answer.headers["content-type"] == "application/json"
    return named and closes and kind and answer.json["status"] == answer.status == status


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it, with nothing more to read."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@contextmanager
def serving(
    limits: Limits | None = None, connections: int = 1000, listener: socket.socket | None = None
) -> Iterator[Running]:
    """A server with these limits (None: those it comes with), ended with the block. connections: at a time."""
    listener = listener or socket.socket()
    listener.bind(("127.0.0.1", 0))
    running = Running(listener.getsockname()[1])
    config = uvicorn.Config(
        running.app,
        interface="asgi3",
        http=wire(limits or Limits(), running.rejected.append),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = Server(config, Guard(connections, running.rejected.append))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    wait_until(lambda: bool(server.started and server.servers))
    try:
        yield running
    finally:
        server.should_exit = True
        thread.join()
