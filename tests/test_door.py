"""The door: connections up to a number at a time; those beyond it told so, as often as a share of the time allows."""

import asyncio
import errno
import resource
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
import uvloop

from handlers import door
from handlers.door import Door, Guard, lack_of_files
from tests.echo_server import GET, PATIENCE, Running, is_closed, is_error, serving
from tests.server import read_answer, wait_until

RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds
HARDLY = 1e-9  # a share of the time so small that nobody is refused twice


def is_served(connection: socket.socket) -> bool:
    connection.sendall(GET)
    return read_answer(connection).status == 200


def hears(connection: socket.socket, seconds: float = 0.2) -> bool:
    """Whether anything comes within the time."""
    return bool(select.select([connection], [], [], seconds)[0])


def test_connections_over_the_limit_get_503_and_those_below_it_go_on() -> None:
    with serving(connections=2) as server, server.connect() as first, server.connect() as second:
        assert is_served(first) and is_served(second)
        with server.connect() as third:
            answer = read_answer(third)
            assert is_error(answer, 503, "2 connections", "again in a second")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["server-timing"] == "total;dur=0.000" and answer.headers["x-request-id"]
            assert is_closed(third)
        assert server.rejected == ["connections"]
        assert is_served(second)
        first.close()
        wait_until(lambda: server.ask().status == 200)


def test_every_place_is_given_and_given_again() -> None:
    with serving(connections=50) as server:
        for _ in range(3):
            wait_until(lambda: _leaves_room_for(server, 50))


def _leaves_room_for(server: Running, number: int) -> bool:
    """Whether so many more are served."""
    known = len(server.rejected)
    trying = [server.connect() for _ in range(number)]
    try:
        return all(_is_let_in(connection) for connection in trying) and len(server.rejected) == known
    finally:
        for connection in trying:
            connection.close()


def _is_let_in(connection: socket.socket) -> bool:
    try:
        return is_served(connection)
    except OSError:  # refused, and so reset
        return False


def test_refusals_beyond_their_share_of_the_time_wait_and_nobody_inside_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SHARE", HARDLY)
    with serving(connections=1) as server, server.connect() as inside:
        assert is_served(inside)
        with server.connect() as refused:
            assert read_answer(refused).status == 503
        with server.connect() as waiting:
            assert not hears(waiting)
            assert is_served(inside)
            assert server.rejected == ["connections"]
            waiting.sendall(GET)
            inside.close()  # its place is for the next in the kernel's queue
            assert read_answer(waiting).status == 200


def test_refusals_go_on_when_their_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SPARE_SECONDS", 0.0)  # so that each has to wait
    with serving(connections=1) as server, server.connect() as inside:
        assert is_served(inside)
        for _ in range(20):
            with server.connect() as refused:
                assert read_answer(refused).status == 503
        assert server.rejected == ["connections"] * 20


class _Patient(socket.socket):
    """A listening socket that gives a connection away once something has come over it."""

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, client = super().accept()
        select.select([connection], [], [], PATIENCE)
        return connection, client


def test_who_is_refused_reads_why_and_not_of_a_reset() -> None:
    request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + bytes(5000)
    with _Patient() as listener, serving(connections=1, listener=listener) as server, server.connect() as inside:
        assert is_served(inside)
        with server.connect() as refused:
            refused.sendall(request)
            assert read_answer(refused).status == 503
            assert refused.recv(1) == b""


def test_who_has_been_idle_longest_gives_its_place_to_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(door, "LOOK_SECONDS", 0.01)
    with serving(connections=3) as server, server.connect() as first, server.connect() as second:
        assert is_served(first)
        time.sleep(0.05)
        assert is_served(second)
        with server.connect() as busy:
            busy.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")  # longer than others may be idle
            time.sleep(0.3)
            with server.connect() as newcomer:
                assert is_served(newcomer)
                assert is_closed(first)
                assert is_served(second)
                assert read_answer(busy).status == 200
        assert server.rejected == []


def test_who_is_idle_for_a_moment_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "LOOK_SECONDS", 0.0)
    with serving(connections=1) as server, server.connect() as inside:
        for _ in range(10):
            assert is_served(inside)
            with server.connect() as refused:
                assert read_answer(refused).status == 503


def test_more_than_are_taken_at_once_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AT_ONCE", 2)
    with serving() as server:
        coming = [server.connect() for _ in range(9)]
        assert all(is_served(connection) for connection in coming)
        for connection in coming:
            connection.close()


def test_who_resets_its_connection_at_once_takes_no_place() -> None:
    with serving(connections=2) as server:
        for _ in range(100):
            with server.connect() as leaving:
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wait_until(lambda: _leaves_room_for(server, 2))


class _Poor(socket.socket):
    """A listening socket of a process that has no file descriptor left, once."""

    tries = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.tries += 1
        if self.tries == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_where_no_file_can_be_opened_a_connection_waits_until_one_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "OUT_OF_FILES_SECONDS", 0.05)
    with _Poor() as listener, serving(listener=listener) as server:
        assert server.ask().status == 200
        assert "no connection can be accepted ([Errno 24] Too many open files)" in caplog.text


def test_small_answers_are_not_held_back_by_the_kernel() -> None:
    with serving() as server:
        server.ask()
        assert server.no_delay == [True]


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """The limits on open files, which a test may change."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_are_allowed_the_files_that_they_take(files: tuple[int, int]) -> None:
    _, most = files
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))
    assert lack_of_files(244) is None
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, most)  # they were enough
    assert lack_of_files(1000) is None
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1256, most)


def test_more_connections_than_there_may_be_files_are_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert lack_of_files(4000) == (
        "4000 connections take 4256 open files; the limit is 4096: raise it with `ulimit -Hn`"
    )


class _Protocol(asyncio.Protocol):
    """What the door needs of one."""

    is_shut = False

    def left(self, _: object) -> None:
        """Replaced by the door."""

    def shutdown(self) -> None:
        self.is_shut = True


def test_a_connection_that_comes_in_while_the_door_closes_is_shut_down() -> None:
    protocol = _Protocol()

    async def close_as_one_comes() -> None:
        entered = asyncio.Event()

        def enter() -> _Protocol:
            opened.close()
            entered.set()
            return protocol

        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            opened = Door(listener, enter, Guard(limit=9))
            with socket.create_connection(listener.getsockname()):
                await entered.wait()
                await opened.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(close_as_one_comes(), 10))
    assert protocol.is_shut
