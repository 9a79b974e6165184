"""Streams of rows: a line for each, whole batches or nothing, whatever comes and whenever the client goes."""

import asyncio
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from handlers.bulk import BATCH_ROWS, Outbox, bulk
from handlers.exchange import Request
from handlers.rows import MAX_ROW_BYTES
from index.errors import GalleryFull
from tests.index_requests import (
    BULK,
    DIMENSION,
    NDJSON,
    TAR,
    Observed,
    count,
    errors,
    line,
    packed,
    results,
    row,
    served,
    vector,
)
from tests.server import Server
from tests.serving import JPEG, PATH, assert_refused, connect, talk, vector_of


def test_of_a_thousand_lines_the_bad_ones_fail_alone(writer: httpx.Client) -> None:
    bad = {
        7: b"not json\n",
        100: row(100, vektor=[]),
        255: line("00255", vector=[1.0]),
        256: line("00256", vector=[0.0] * DIMENSION),
        300: line("00300", image=b64encode(JPEG[:90]).decode()),
        511: line(5, vector=vector(511).tolist()),
        700: line("", vector=vector(700).tolist()),
        999: b'{"id": "00999"}\n',
    }
    stream = b"".join(bad.get(number, row(number)) for number in range(1000))
    answer = writer.post(BULK, content=stream, headers=NDJSON)
    expected = {number: (f"{number:05}", 200) for number in range(1000)}
    expected |= {number: (f"{number:05}", 400) for number in (100, 255, 256, 300, 999)}
    expected |= {7: (None, 400), 511: (None, 400), 700: ("", 400)}
    assert results(answer) == [expected[number] for number in range(1000)]
    assert count(writer) == 992
    reasons = errors(answer)
    for word, reason in zip(
        ["line 8: ", "'vektor'", "1 numbers", "zero", "damaged", "line 512: id is 5", "id ''", "neither"],
        reasons,
        strict=True,
    ):
        assert word in reason
    found = writer.post("/index/search", json={"vector": vector(640).tolist(), "k": 1}).json()["neighbors"]
    assert found[0]["id"] == "00640" and found[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_line_is_all_that_a_put_is(writer: httpx.Client, seeded_store: Path) -> None:
    stream = row(1, label="cat", metadata={"year": 1998}) + line("photo", image=b64encode(JPEG).decode(), label="dog")
    assert results(writer.post(BULK, content=stream, headers=NDJSON)) == [("00001", 200), ("photo", 200)]
    assert writer.get("/index/00001").json()["metadata"] == {"year": 1998}
    stored = writer.get("/index/photo").json()
    np.testing.assert_allclose(stored["vector"], vector_of(Encoder.load(seeded_store), JPEG), atol=1e-6)
    assert stored["label"] == "dog"
    assert writer.get("/thumbnails/photo").headers["content-type"] == "image/webp"


def test_lines_take_effect_in_their_order(writer: httpx.Client) -> None:
    stream = b"".join(
        [
            row(1),
            line("00001", delete=True),
            line("00001", delete=True),  # no longer there
            line("none", delete=True),
            row(2),
            line("00002", delete=True),
            row(2, label="again"),
            row(3, label="first"),
            row(3, label="second"),
            row(4),
            line("00004", vector=[0.0] * DIMENSION),  # refused: the one before it stays
            line("00003", delete=False),
            line("00003", delete=True, label="x"),
        ]
    )
    statuses = [status for _, status in results(writer.post(BULK, content=stream, headers=NDJSON))]
    assert statuses == [200, 200, 404, 404, 200, 200, 200, 200, 200, 200, 400, 400, 400]
    assert count(writer) == 3
    assert writer.get("/index/00002").json()["label"] == "again"
    assert writer.get("/index/00003").json()["label"] == "second"
    assert writer.get("/index/00004").status_code == 200


def test_empty_lines_and_a_last_one_without_a_break_are_fine(writer: httpx.Client) -> None:
    stream = b"\n \r\n" + row(1) + b"\r\n" + row(2).rstrip()
    assert results(writer.post(BULK, content=stream, headers=NDJSON)) == [("00001", 200), ("00002", 200)]
    assert results(writer.post(BULK, content=b"", headers=NDJSON)) == []


def test_a_client_that_reads_only_when_it_has_sent_everything_is_answered(writer: httpx.Client) -> None:
    total = 20_000
    answer = writer.post(
        BULK, content=(b"".join([line("x" * 900, delete=True)] * 100) for _ in range(200)), headers=NDJSON
    )
    assert results(answer) == [("x" * 900, 404)] * total  # 20 MB of lines, more than sockets hold


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "application/gzip", "image/jpeg"])
def test_a_stream_says_what_it_is(writer: httpx.Client, kind: str) -> None:
    # A web page could send one without a type, or a text, to a server on this machine.
    answer = writer.post(BULK, content=row(1), headers={"content-type": kind})
    assert_refused(answer, 415, "application/x-ndjson", "application/x-tar")
    assert count(writer) == 0


def test_a_line_beyond_the_limit_fails_alone_and_is_not_kept(writer: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        yield row(1)
        yield b'{"id": "huge", "image": "'
        for _ in range(MAX_ROW_BYTES // 2**20 + 1):
            yield b"A" * 2**20
        yield b'"}\n'
        yield row(2)

    answer = writer.post(BULK, content=stream(), headers=NDJSON)
    assert results(answer) == [("00001", 200), (None, 413), ("00002", 200)]
    assert "line 2 has" in errors(answer)[0] and str(MAX_ROW_BYTES) in errors(answer)[0]


# Clients that go, wait or send faster than disks write


def start_stream(server: Server, *headers: str) -> socket.socket:
    connection = connect(server)
    head = [f"POST {BULK} HTTP/1.1", "host: x", "content-type: application/x-ndjson", "transfer-encoding: chunked"]
    connection.sendall("\r\n".join([*head, *headers, "", ""]).encode())
    return connection


def send_piece(connection: socket.socket, data: bytes) -> None:
    connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def test_a_client_that_hangs_up_half_way_leaves_whole_batches(index_server: Server, writer: httpx.Client) -> None:
    with start_stream(index_server) as connection:
        send_piece(connection, b"".join(map(row, range(2 * BATCH_ROWS + 90))))
        deadline = time.monotonic() + 20
        while count(writer) < 2 * BATCH_ROWS and time.monotonic() < deadline:
            time.sleep(0.01)
    time.sleep(0.3)
    # All of it only where this test took so long that the pause had the rest committed.
    assert count(writer) in (2 * BATCH_ROWS, 2 * BATCH_ROWS + 90)


@pytest.mark.parametrize(("rows", "batches"), [(255, []), (256, [256]), (600, [256, 256])])
def test_what_is_no_whole_batch_when_the_client_goes_is_dropped(
    seeded_store: Path, rows: int, batches: list[int]
) -> None:
    index, sent = Observed(), []
    messages = iter(
        [
            {"type": "http.request", "body": b"".join(map(row, range(rows))), "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    scope = {"method": "POST", "path": BULK, "headers": [(b"content-type", b"application/x-ndjson")]}

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    front = served(seeded_store, index)
    asyncio.run(bulk(front, scope, receive, send))
    front.admission.close()
    assert index.sizes == batches
    assert all(message.get("more_body", True) for message in sent)  # nobody was told that it is complete


def test_a_client_that_waits_for_its_lines_gets_them_before_it_sends_more(
    index_server: Server, writer: httpx.Client
) -> None:
    with start_stream(index_server, "expect: 100-continue") as connection, connection.makefile("rb") as stream:
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        for number in range(2):
            send_piece(connection, row(number))
            while (text := stream.readline()) and not text.startswith(b"{"):
                pass
            assert json.loads(text) == {"id": f"{number:05}", "status": 200}
            assert writer.get(f"/index/{number:05}").status_code == 200  # durable when it is said
        connection.sendall(b"0\r\n\r\n")
        assert stream.read().endswith(b"0\r\n\r\n")


def test_rows_are_committed_in_batches_and_nothing_is_read_while_one_is_written(seeded_store: Path) -> None:
    index = Observed()

    async def lines() -> AsyncIterator[bytes]:
        for number in range(1000):
            index.pulled += 1
            yield row(number)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(BULK, content=lines(), headers=NDJSON)
        assert results(answer) == [(f"{number:05}", 200) for number in range(1000)]

    talk(served(seeded_store, index), scenario)
    assert index.sizes == [256, 256, 256, 232]
    assert max(index.ahead) <= 1


def test_large_entries_make_smaller_batches(seeded_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.bulk.BATCH_BYTES", 10 * len(row(0)))
    index = Observed()

    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post(BULK, content=b"".join(map(row, range(50))), headers=NDJSON)

    talk(served(seeded_store, index), scenario)
    assert index.count == 50 and 5 <= len(index.sizes) <= 6 and max(index.sizes) <= 11


def test_a_full_disk_answers_507_from_there_on_and_stops(seeded_store: Path) -> None:
    index = Observed(fail_at=2, error=GalleryFull("the disk is full; free some space"))
    sent = 0

    async def lines() -> AsyncIterator[bytes]:
        nonlocal sent
        for number in range(2000):
            sent += 1
            yield row(number)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(BULK, content=lines(), headers=NDJSON)
        statuses = results(answer)
        assert statuses == [
            *((f"{number:05}", 200) for number in range(512)),
            *((f"{number:05}", 507) for number in range(512, 768)),
            (None, 507),
        ]
        assert "free some space" in errors(answer)[0] and "send the rest again" in errors(answer)[-1]

    talk(served(seeded_store, index), scenario)
    assert index.count == 512
    assert index.get(["00511"])[0] is not None and index.get(["00512"]) == [None]


def test_a_mistake_of_ours_ends_the_stream_with_an_id_for_the_log(
    seeded_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Observed()
    index.add = lambda *rows: 1 / 0  # type: ignore[method-assign]

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(BULK, content=row(1), headers=NDJSON)
        assert results(answer) == [(None, 500)] and "internal error" in errors(answer)[0]

    talk(served(seeded_store, index), scenario)
    assert "ZeroDivisionError" in caplog.text and "division" not in caplog.messages[0]


def held_while(seeded_store: Path, index: Observed, body: bytes, headers: dict[str, str]) -> list[int]:
    """`held_bytes` of the server at each transaction of a stream that is taken whole."""
    front, held = served(seeded_store, index), []
    add = index.add
    index.add = lambda *rows: held.append(front.held_bytes) or add(*rows)  # type: ignore[method-assign]

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(BULK, content=body, headers=headers)
        assert {status for _, status in results(answer)} == {200}
        assert front.held_bytes == 0

    talk(front, scenario)
    return held


def test_a_batch_counts_among_the_bodies_that_are_held_until_it_is_written(seeded_store: Path) -> None:
    rows = b"".join(map(row, range(BATCH_ROWS)))
    (held,) = held_while(seeded_store, Observed(), rows, NDJSON)
    assert len(rows) - BATCH_ROWS <= held <= 2 * len(rows)  # without the line breaks; the piece may be there still
    (held,) = held_while(seeded_store, Observed(), packed({"a": JPEG}), TAR)
    assert held >= len(JPEG)


def test_a_line_that_is_not_kept_is_not_counted(seeded_store: Path) -> None:
    async def lines() -> AsyncIterator[bytes]:
        for _ in range(3 * MAX_ROW_BYTES // (1 << 20)):
            most.append(front.held_bytes)
            yield bytes(1 << 20)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert results(await client.post(BULK, content=lines(), headers=NDJSON)) == [(None, 413)]
        assert max(most) == MAX_ROW_BYTES and front.held_bytes == 0

    most: list[int] = []
    front = served(seeded_store, Observed())
    talk(front, scenario)


def test_a_stream_writes_what_it_has_and_waits_where_too_much_is_held(
    seeded_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.exchange.MAX_HELD_BYTES", 100_000)
    index = Observed()

    async def lines() -> AsyncIterator[bytes]:
        yield row(0)
        others.append(100_000 - front.held_bytes)
        front.hold(others[0])
        yield row(1)

    async def scenario(client: httpx.AsyncClient) -> None:
        stream = asyncio.create_task(client.post(BULK, content=lines(), headers=NDJSON))
        while index.count == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert index.count == 1 and not stream.done()
        front.release(others[0])
        assert results(await stream) == [("00000", 200), ("00001", 200)]
        assert front.held_bytes == 0

    others: list[int] = []
    front = served(seeded_store, index)
    talk(front, scenario)


def test_a_stream_that_finds_no_room_ends_with_503_and_what_was_written_stays(
    seeded_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.exchange.MAX_HELD_BYTES", 100_000)
    monkeypatch.setattr("handlers.bulk.ROOM_SECONDS", 0.1)
    index = Observed()

    async def lines() -> AsyncIterator[bytes]:
        yield row(0)
        front.hold(100_000 - front.held_bytes)
        yield row(1)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(BULK, content=lines(), headers=NDJSON)
        assert results(answer) == [("00000", 200), (None, 503)]
        assert "send the rest again" in errors(answer)[0] and "100000 bytes" in errors(answer)[0]
        assert index.count == 1

    front = served(seeded_store, index)
    talk(front, scenario)


def test_a_stream_of_small_photos_does_not_make_one_of_their_size_look_dear(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        form = [("image", JPEG)] * 16
        await client.post(BULK, content=packed({f"{n}.jpg": JPEG for n in range(16)}), headers=TAR)
        await client.post(PATH, files=form)
        costs = front.admission._costs
        assert costs.expected_s(16 * len(JPEG), "photo") == 0
        assert costs.expected_s(16 * len(JPEG), "bulk images") > 0 and costs.expected_s(16 * len(JPEG), "form") > 0
        await client.post(PATH, content=JPEG)
        assert 0 < costs.expected_s(16 * len(JPEG), "photo") < 2 * costs.expected_s(16 * len(JPEG), "form")

    front = served(seeded_store, Observed())
    talk(front, scenario)


def test_a_stream_waits_for_a_full_queue_instead_of_failing(seeded_store: Path) -> None:
    front = served(seeded_store, Observed())

    async def scenario(client: httpx.AsyncClient) -> None:
        gate = threading.Event()
        front.admission.capacity = 0
        occupied = front.admission.submit(gate.wait)
        stream = asyncio.create_task(client.post(BULK, content=row(1), headers=NDJSON))
        await asyncio.sleep(0.1)
        assert not stream.done()
        gate.set()
        assert results(await stream) == [("00001", 200)]
        assert await occupied

    talk(front, scenario)


def test_lines_beyond_the_memory_for_them_come_whole_and_in_order() -> None:
    sent: list[bytes] = []
    gate = asyncio.Event()

    async def send(message: Any) -> None:
        await gate.wait()
        sent.append(message.get("body", b""))

    async def run() -> None:
        outbox = Outbox(send, Request({}, {}, "mine"))
        delivery = asyncio.create_task(outbox.deliver())
        for number in range(3000):
            outbox.put(b"%09d\n" % number * 100)
            if number == 2000:  # from the file back to its beginning, and on
                gate.set()
                await asyncio.sleep(0.05)
        outbox.close()
        await delivery
        outbox.discard()

    asyncio.run(run())
    assert b"".join(sent) == b"".join(b"%09d\n" % number * 100 for number in range(3000))
