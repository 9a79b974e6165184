"""The wire below the routes, on a real uvicorn server with uvloop: each limit met by a client that breaks it."""

import gc
import select
import socket
import struct
import time
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from handlers.wire import Limits, Wire, client_gone
from tests.echo_server import GET, PATIENCE, Running, is_closed, is_error, serving
from tests.server import read_answer, wait_until

CHUNKED = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def drip(connection: socket.socket, piece: bytes) -> None:
    """Send `piece` again and again, until something comes back."""
    deadline = time.monotonic() + PATIENCE
    while not select.select([connection], [], [], 0.03)[0] and time.monotonic() < deadline:
        connection.sendall(piece)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One with the limits as they come."""
    with serving() as running:
        yield running


@pytest.mark.parametrize("size", [20_000, 5_000_000])
@pytest.mark.parametrize(
    ("start", "filler", "status"),
    [
        (b"GET /echo HTTP/1.1\r\nhost: ", b"x", 431),
        (b"GET /echo HTTP/1.1\r\nhost", b"x", 431),
        (b"GET /echo HTTP/1.1\r\n", b"a: b\r\n", 431),
        (b"GET /", b"x", 414),
        (b"", b"\r\n", 431),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n", 431),
        (CHUNKED + b"1;", b"x", 431),
    ],
    ids=["value", "name", "lines", "target", "blank lines", "trailers", "chunk extension"],
)
def test_headers_without_end_are_refused_and_the_client_can_read_why(
    server: Running, start: bytes, filler: bytes, status: int, size: int
) -> None:
    before = len(server.rejected)
    with server.connect() as connection:
        connection.sendall(start)
        if start.startswith(CHUNKED):
            size = max(size, 1_000_000)  # counted from the read after the body's last byte, of 256 KiB at most
        connection.sendall(filler * (size // len(filler)))
        assert is_error(read_answer(connection), status, "16384")
    assert server.rejected[before:] == ["headers too large"]
    assert server.ask().status == 200


def test_headers_up_to_the_limit_pass_also_in_one_packet_with_a_long_body(server: Running) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\nlong: %s\r\ncontent-length: 100000\r\n\r\n" % (b"y" * 16_000)
    assert server.ask(head + bytes(100_000)).body == bytes(100_000)
    too_long = head.replace(b"long: ", b"long: " + b"y" * 400)
    assert is_error(server.ask(too_long + bytes(100_000)), 431, "16384")


def test_a_long_body_with_the_start_of_the_next_request_behind_it_is_no_long_header(server: Running) -> None:
    with server.connect() as connection:
        post = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n" + bytes(50_000)
        connection.sendall(post + GET[:20])
        assert read_answer(connection).body == bytes(50_000)
        connection.sendall(GET[20:])
        assert read_answer(connection).status == 200


@pytest.mark.parametrize("after", [b"", GET])
def test_headers_that_trickle_get_408_on_a_fresh_connection_and_on_a_used_one(after: bytes) -> None:
    with serving(Limits(header_seconds=0.3)) as server, server.connect() as connection:
        if after:
            connection.sendall(after)
            assert read_answer(connection).status == 200
        connection.sendall(b"GET /echo HTTP/1.1\r\nhost: ")
        drip(connection, b"x")
        assert is_error(read_answer(connection), 408, "0.3 s")
        assert server.rejected == ["slow headers"]
        assert server.ask().status == 200


@pytest.mark.parametrize("piece", [b"", b"\r\n"])
def test_a_connection_that_begins_no_request_is_closed_without_a_word(piece: bytes) -> None:
    with serving(Limits(header_seconds=0.3)) as server, server.connect() as connection:
        drip(connection, piece)
        assert is_closed(connection)
        assert server.rejected == ["silent"]


@pytest.mark.parametrize("start", [GET.replace(b"GET", b"POST")[:-2] + b"content-length: 9999\r\n\r\n", CHUNKED])
def test_a_body_that_trickles_gets_408(start: bytes) -> None:
    with serving(Limits(body_seconds=0.3)) as server, server.connect() as connection:
        connection.sendall(start)
        drip(connection, b"1\r\nx\r\n")
        assert is_error(read_answer(connection), 408, "0.3 s", "16384 bytes")
        assert server.rejected == ["slow body"]
        assert server.ask().status == 200


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize(
    "start",
    [
        b"GET /echo HTTP/1.1\r\nX-Request-ID: mine\r\nhost: ",
        b"POST /echo HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 9999\r\n\r\n",
    ],
)
def test_who_is_given_up_is_told_so_under_the_id_that_was_sent(before: bytes, start: bytes) -> None:
    with serving(Limits(header_seconds=0.3, body_seconds=0.3)) as server, server.connect() as connection:
        if before:
            connection.sendall(before)
            assert read_answer(connection).status == 200
        connection.sendall(start)
        drip(connection, b"x")
        answer = read_answer(connection)
        assert is_error(answer, 408) and answer.headers["x-request-id"] == "mine"


def test_an_answered_request_does_not_lend_its_id_to_what_comes_behind_it(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(GET[:-2] + b"x-request-id: mine\r\n\r\n")
        assert read_answer(connection).status == 200
        connection.sendall(b"no HTTP\r\n\r\n")
        answer = read_answer(connection)
        assert is_error(answer, 400) and answer.headers["x-request-id"] != "mine"


def test_a_body_that_trickles_behind_an_early_answer_ends_the_connection() -> None:
    with serving(Limits(body_seconds=0.3)) as server, server.connect() as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n")
        assert read_answer(connection).status == 200
        drip(connection, b"x")
        assert is_closed(connection)
        assert server.rejected == ["slow body"]


def test_a_long_body_may_take_longer_at_the_rate_that_is_asked_for() -> None:
    with serving(Limits(body_seconds=0.1, bytes_per_second=1000)) as server, server.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 40000\r\n\r\n")
        for _ in range(40):
            connection.sendall(bytes(1000))
            time.sleep(0.02)
        assert read_answer(connection).body == bytes(40_000)


def test_a_client_does_not_pay_for_the_time_that_the_server_takes() -> None:
    limits = Limits(header_seconds=0.1, body_seconds=0.1, write_seconds=0.1)
    post = b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n"
    with serving(limits) as server, server.connect() as connection:
        connection.sendall(post + b"expect: 100-continue\r\n\r\n")
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(bytes(200_000))
        assert read_answer(connection).body == bytes(200_000)
        # Unread by the app, the pause in the middle of the second is the server's; what follows it is ahead of time.
        connection.sendall(post + b"\r\n" + bytes(200_000) + GET[:20])
        assert read_answer(connection).body == bytes(200_000)
        connection.sendall(GET[20:])
        assert read_answer(connection).status == 200
        assert server.rejected == []


def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
    with serving(Limits(write_seconds=0.3)) as server, server.connect() as connection:
        connection.sendall(GET.replace(b"echo", b"big"))
        wait_until(lambda: server.rejected == ["slow reader"])
        with pytest.raises((ConnectionResetError, EOFError)):
            while connection.recv(1 << 20):
                pass
            raise EOFError
        assert server.rejected == ["slow reader"]


def test_a_client_that_reads_a_long_answer_slowly_gets_all_of_it() -> None:
    with serving(Limits(write_seconds=0.1, bytes_per_second=1 << 20)) as server, server.connect() as connection:
        connection.sendall(GET.replace(b"echo", b"big"))
        with HTTPResponse(connection) as response:
            response.begin()
            received = 0
            while piece := response.read(1 << 19):
                received += len(piece)
                time.sleep(0.01)
        assert received == 32 << 20
        assert server.rejected == []


POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
MALFORMED = {
    "length and chunks": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a list of lengths": POST + b"content-length: 2, 2\r\n\r\nab",
    "a length with a sign": POST + b"content-length: +2\r\n\r\nab",
    "an underscore in a length": POST + b"content-length: 0_2\r\n\r\nab",
    "a length past 64 bits": POST + b"content-length: 18446744073709551618\r\n\r\nab",
    "no length": POST + b"content-length:\r\n\r\n",
    "bare LF": POST.replace(b"\r", b"") + b"\n",
    "bare LF in a header": POST + b"a: b\ncontent-length: 2\r\n\r\nab",
    "bare CR in a header": POST + b"a: b\rcontent-length: 2\r\n\r\nab",
    "folded length": POST + b"content-length: 1\r\n 2\r\n\r\nab",
    "folded header": POST + b"a: b\r\n c\r\n\r\n",
    "space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before chunked": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, then identity": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF after a chunk's size": CHUNKED + b"2\nab\r\n0\r\n\r\n",
    "bare LF in a chunk's extension": CHUNKED + b"2;a\nab\r\n0\r\n\r\n",
    "hexadecimal prefix of a chunk": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "chunk past 64 bits": CHUNKED + b"f" * 17 + b"\r\n",
    "chunk without its end": CHUNKED + b"2\r\nabXX0\r\n\r\n",
    "NUL in a header": POST + b"a: b\0c\r\n\r\n",
    "space in a name": POST + b"a b: c\r\n\r\n",
    "no name": POST + b": c\r\n\r\n",
    "bytes past ASCII in the target": b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n",
    "CONNECT": b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_malformed_and_ambiguous_requests_get_400_and_nothing_behind_them_is_heard(
    server: Running, request_: bytes
) -> None:
    before = len(server.rejected)
    with server.connect() as connection:
        connection.sendall(request_ + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n")
        assert is_error(read_answer(connection), 400, "; ")
        assert is_closed(connection) or connection.close()
    assert server.rejected[before:] == ["malformed"]
    assert "/smuggled" not in server.paths
    assert server.ask().status == 200


def test_garbage_behind_a_good_request_ends_the_connection_after_its_answer(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(GET.replace(b"echo", b"wait") + b"garbage\r\n\r\n" + GET)
        assert read_answer(connection).status == 200
        assert is_closed(connection)


def test_requests_sent_ahead_are_answered_in_order_on_a_connection_that_lives_on(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(b"".join(POST + b"content-length: 2\r\n\r\n%02d" % number for number in range(50)))
        answers = connection.makefile("rb")
        for number in range(50):
            assert b" 200 " in answers.readline()
            while answers.readline() != b"\r\n":
                pass
            assert answers.read(2) == b"%02d" % number
        connection.sendall(GET)
        assert read_answer(connection).status == 200


def test_too_many_requests_sent_ahead_end_the_connection_after_the_answers_to_those_within_the_limit() -> None:
    with serving(Limits(pipelined=3)) as server, server.connect() as connection:
        connection.sendall(GET.replace(b"echo", b"wait") + GET * 10)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        assert received.count(b"HTTP/1.1 200 OK") == len(server.paths) == 4
        assert server.rejected == ["pipelined"]


def test_a_hundred_thousand_chunks_of_one_byte_are_one_body(server: Running) -> None:
    assert server.ask(CHUNKED + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n").body == b"x" * 100_000


def test_trailers_do_not_become_headers(server: Running) -> None:
    answer = server.ask(CHUNKED + b"2\r\nab\r\n0\r\nauthorization: Bearer mine\r\n\r\n")
    assert answer.body == b"ab"
    assert "host" in answer.headers["sent"] and "authorization" not in answer.headers["sent"]


def test_an_offer_to_upgrade_is_ignored_and_the_body_behind_it_stays_a_body(server: Running) -> None:
    """As Java's HttpClient sends it; read as a request, this body would be one that nobody has checked."""
    body = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    offer = POST + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n" % len(body)
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(offer + body + offer)
            assert read_answer(connection).body == body
            time.sleep(0.05)
            connection.sendall(body)
            assert read_answer(connection).body == body
    assert "/smuggled" not in server.paths


def test_client_gone_tells_once_the_client_has_hung_up(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(GET.replace(b"echo", b"watch"))
        wait_until(lambda: server.gone == [False])
    wait_until(lambda: len(server.gone) == 2)
    assert server.gone == [False, True]


def test_client_gone_is_false_of_what_is_not_uvicorns(server: Running) -> None:
    assert not client_gone(server.app)
    assert not client_gone(lambda: None)


def test_connections_that_were_reset_are_not_kept(server: Running) -> None:
    def kept() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Wire) for thing in gc.get_objects())  # isinstance() would ask lazy modules

    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(GET)
            assert read_answer(connection).status == 200
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: kept() < 3)
