"""A server that only plays one: every request gets the same answer, after a pause, and is remembered."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ANSWER = b'{"model": "stand-in@0", "provider": "NoProvider", "embedding": [1.0]}'


@dataclass
class StandIn:
    """Where it listens, and what it was sent."""

    url: str
    bodies: list[bytes] = field(default_factory=list)  # of POST requests


@contextmanager
def stand_in(status: int = 200, answer: bytes = ANSWER, pause_s: float = 0.0) -> Iterator[StandIn]:
    """One on loopback, in a thread of this process, until the block ends."""
    ready, served = threading.Event(), StandIn("")
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if head.startswith(b"post"):
                    served.bodies.append(body)
                await asyncio.sleep(pause_s)
                writer.write(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n%s" % (status, len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done
        finally:
            writer.close()

    async def serve() -> None:
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        served.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        end = asyncio.Event()
        ends.append((asyncio.get_running_loop(), end))
        ready.set()
        await end.wait()
        listener.close()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    ready.wait()
    try:
        yield served
    finally:
        loop, end = ends[0]
        loop.call_soon_threadsafe(end.set)
        thread.join()
