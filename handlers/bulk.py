"""`POST /index/bulk`: a stream of rows of any length, and a line for each that says what became of it.

    tar c photos/ | curl -T - -X POST -H 'content-type: application/x-tar' http://127.0.0.1:8080/index/bulk
    curl -T rows.ndjson -X POST -H 'content-type: application/x-ndjson' http://127.0.0.1:8080/index/bulk

Rows are committed a batch at a time, and their lines follow. Nothing is read while a batch is written, so what is
held is one batch, however fast the client sends; it counts among the bodies that the server holds, and where these
are too many the stream waits. A client that hangs up leaves whole batches.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from tempfile import SpooledTemporaryFile
from time import monotonic, perf_counter
from typing import TypeVar

from handlers.about import about, request_id
from handlers.admission import Admission, QueueFull
from handlers.exchange import (
    CLIENT_GONE,
    ClientGone,
    Front,
    Receive,
    Request,
    Scope,
    Send,
    drain,
    media_type,
    next_chunk,
    turn_away,
)
from handlers.framing import Entry, Framing, Lines, StreamBroken, Tar
from handlers.refusals import check_encoding, internal_error
from handlers.rows import MAX_ROW_BYTES, Committed, Delete, File, Put, Refused, commit, prepare
from handlers.service import RequestError, Service, to_json

FRAMINGS: dict[str, Callable[[], Framing]] = {
    "application/x-ndjson": Lines,
    "application/ndjson": Lines,
    "application/x-tar": Tar,
}
BATCH_ROWS = 256  # a transaction
BATCH_BYTES = 32 << 20  # of entries as they came: a batch of large ones has fewer
EMBED_ROWS = 16  # a job of a worker: few enough for predictions to come through between two
IDLE_SECONDS = 1.0  # a client that waits for its lines before it sends more gets them after this
RETRY_SECONDS = 0.02
ROOM_SECONDS = 30.0  # that a stream waits for others to let go of memory
SPOOL_BYTES = 1 << 20
PIECE_BYTES = 64 << 10

Result = TypeVar("Result")


async def bulk(front: Front, scope: Scope, receive: Receive, send: Send) -> None:
    """Take in one stream."""
    headers = dict(scope["headers"])
    request = Request(scope, headers, request_id(headers))
    try:
        service, framing = _begin(front, request)
    except Exception as error:
        await turn_away(front, request, error, receive, send)
        return
    outbox = Outbox(send, request)
    status = 200
    delivery = asyncio.create_task(outbox.deliver())
    intake = _Intake(front, receive, framing)
    try:
        await _take_in(front, service, intake, outbox, request.id)
        outbox.close()
        await delivery
        if not intake.whole:
            await drain(receive)
        await send({"type": "http.response.body"})
    except ClientGone:
        front.metrics.reject("client gone")
        status = CLIENT_GONE
    finally:
        intake.discard()
        request.size = intake.size
        front.note(request, status, perf_counter() - request.began)
        delivery.cancel()
        outbox.discard()


class Outbox:
    """Lines for a client that may not read before it has sent everything: kept in memory, and beyond `SPOOL_BYTES`
    in a file without a name, so that neither side ever waits for the other."""

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._request = request
        self._spool = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 (closed by `discard`)
        self._written = self._sent = 0
        self._more = asyncio.Event()
        self._closed = False

    def put(self, lines: bytes) -> None:
        """Send these, some time."""
        self._spool.seek(self._written)
        self._spool.write(lines)
        self._written += len(lines)
        self._more.set()

    def close(self) -> None:
        """Nothing more will be put."""
        self._closed = True
        self._more.set()

    def discard(self) -> None:
        """Let go of what is left."""
        self._spool.close()

    async def deliver(self) -> None:
        """Send what is put until it is closed; the end of the body is left to the caller."""
        head = [(b"content-type", b"application/x-ndjson"), (b"connection", b"close")]
        await self._more.wait()  # the client may wait for the "100 Continue" that the first read sends
        head += about(self._request.id, perf_counter() - self._request.began, {})
        await self._send({"type": "http.response.start", "status": 200, "headers": head})
        while self._sent < self._written or not self._closed:
            if self._sent == self._written:
                self._more.clear()
                await self._more.wait()
                continue
            self._spool.seek(self._sent)
            piece = self._spool.read(PIECE_BYTES)
            self._sent += len(piece)
            if self._sent == self._written:
                self._sent = self._written = 0
                self._spool.seek(0)
                self._spool.truncate()
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})


class _Intake:
    """The request's body as batches of entries; what is kept of it is counted in `front.held_bytes`."""

    def __init__(self, front: Front, receive: Receive, framing: Framing) -> None:
        self._front = front
        self._receive = receive
        self._framing = framing
        self._batch_bytes = 0
        self._rest_bytes = 0  # at most so many came behind the last entry
        self._held = 0  # of `front.held_bytes`
        self.size = 0  # of what has been read
        self.whole = False  # the body has been read to its end

    async def batches(self) -> AsyncGenerator[list[Entry], None]:
        """Raises `ClientGone`, and `RequestError` after what came before the break."""
        batch: list[Entry] = []
        broken: RequestError | None = None
        try:
            async for entry in self._entries():
                if entry is not None:
                    batch.append(entry)
                    self._batch_bytes += 0 if isinstance(entry, Refused) else len(entry.data)
                if batch and (entry is None or len(batch) == BATCH_ROWS or self._batch_bytes >= BATCH_BYTES):
                    yield batch
                    batch, self._batch_bytes = [], 0
                    self._count(min(0, self._unheld))
        except RequestError as error:
            broken = error
        if batch:
            yield batch
        if broken is not None:
            raise broken

    def discard(self) -> None:
        """Nothing of it is kept any more."""
        self._count(-self._held)

    @property
    def _unheld(self) -> int:
        """Bytes that are kept, less those that are counted: the batch, and what the framing has of an entry."""
        return self._batch_bytes + min(self._rest_bytes, MAX_ROW_BYTES) - self._held

    def _count(self, size: int) -> None:
        """So many bytes more; raises `RequestError` where there is no room for them."""
        self._front.hold(size)
        self._held += size

    async def _entries(self) -> AsyncIterator[Entry | None]:
        """None where the client pauses."""
        while not self.whole:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await next_chunk(self._receive)
            except TimeoutError:
                yield None
                continue
            self.whole = not message["more_body"]
            piece: bytes = message["body"]
            self.size += len(piece)
            self._rest_bytes += len(piece)
            patient_until = monotonic() + ROOM_SECONDS
            while not self._front.has_room(self._unheld) and monotonic() < patient_until:
                yield None
                await asyncio.sleep(RETRY_SECONDS)
            self._count(self._unheld)
            for entry in self._framing.feed(piece):
                self._rest_bytes = len(piece)
                yield entry
        for entry in self._framing.end():
            yield entry


def _begin(front: Front, request: Request) -> tuple[Service, Framing]:
    """What can be said before anything is read."""
    front.access.check_write(request.headers)
    check_encoding(request.headers.get(b"content-encoding", b"").decode("latin-1"))
    kind = media_type(request.headers)
    # Never without one: a page of any web site may send that to this machine, and would write.
    if kind not in FRAMINGS:
        raise RequestError(
            415, f"content type {kind[:40]!r} is not taken; send {' or '.join(FRAMINGS)}, not compressed"
        )
    service = front.service(request.model)
    service.index()
    return service, FRAMINGS[kind]()


async def _take_in(front: Front, service: Service, intake: _Intake, outbox: Outbox, request: str) -> None:
    """Commit batch after batch, until the end or what forbids to go on, which gets a line without an id."""
    try:
        async with aclosing(intake.batches()) as batches:
            async for batch in batches:
                committed = await _write(front, service, batch)
                outbox.put(b"".join(map(_line, committed.results)))
                if committed.stopped is not None:
                    outbox.put(_stopped(committed.stopped))
                    return
    except StreamBroken as error:
        outbox.put(_line(Refused(None, error.status, error.reason)))
    except RequestError as error:
        outbox.put(_stopped(error))
    except ClientGone:
        raise
    except Exception as error:
        outbox.put(_line(Refused(None, 500, internal_error(error, request))))


async def _write(front: Front, service: Service, batch: Sequence[Entry]) -> Committed:
    """Prepare on all workers, a few entries a job, then commit as one."""
    lanes = asyncio.Semaphore(front.admission.threads)

    async def prepared(some: Sequence[Entry]) -> list[Put | Delete | Refused]:
        async with lanes:
            size = sum(len(entry.data) for entry in some if not isinstance(entry, Refused))
            kind = "bulk images" if any(isinstance(entry, File) for entry in some) else "bulk lines"
            return await _submit(front.admission, partial(prepare, service, some), size, kind)

    jobs = [prepared(batch[start : start + EMBED_ROWS]) for start in range(0, len(batch), EMBED_ROWS)]
    rows = [row for part in await asyncio.gather(*jobs) for row in part]
    committed = await _submit(front.committing, partial(commit, service, rows))
    front.metrics.written("put", sum(isinstance(row, Put) for row in committed.results))
    front.metrics.written("remove", sum(isinstance(row, Delete) for row in committed.results))
    return committed


async def _submit(admission: Admission, work: Callable[[], Result], size: int = 0, kind: str = "bulk") -> Result:
    """A stream waits where a single request would be refused."""
    while True:
        try:
            return await admission.submit(work, size, kind=kind)
        except QueueFull:
            await asyncio.sleep(RETRY_SECONDS)


def _stopped(error: RequestError) -> bytes:
    return _line(Refused(None, error.status, f"stopped here, send the rest again: {error.reason}"))


def _line(result: Put | Delete | Refused) -> bytes:
    if isinstance(result, Refused):
        return to_json({"id": result.id, "status": result.status, "error": result.reason}) + b"\n"
    return to_json({"id": result.id, "status": 200}) + b"\n"
