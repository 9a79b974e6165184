"""The crowd that asks for ten times too much: every answer is counted as what it is, and manners are kept."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from load_tests import crowd, overload
from load_tests.crowd import BROKEN, NOBODY_WAITED, Answer, Crowd, Request, post
from load_tests.overload import Borne, Overload, Tally, Under, as_told, at_once, at_rate
from load_tests.server import ServerError
from tests.server import running_server
from tests.serving import JPEG, PATH, samples


class _Scripted(BaseHTTPRequestHandler):
    """Answers as the request's path asks: /200, /503/7 (Retry-After), /close, /cut, /slow."""

    protocol_version = "HTTP/1.1"
    seen: Counter[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen[self.path] += 1
        _, word, *rest = self.path.split("/")
        if word == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
            self.close_connection = True
            return
        if word == "slow":
            time.sleep(0.2)
        self.send_response(int(word) if word.isdigit() else 200)
        self.send_header("Content-Length", str(len(body)))
        if rest:
            self.send_header("Retry-After", rest[0])
        if word == "close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that leave in the middle are what is tested."""


@pytest.fixture
def scripted() -> Iterator[tuple[int, Counter[str]]]:
    """A server's port, and how often each of its paths was asked."""
    handler = type("Handler", (_Scripted,), {"seen": Counter()})
    with _Listening(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening.server_address[1], handler.seen
        listening.shutdown()
        thread.join()


def ask_all(port: int, requests: list[Request], size: int = 1) -> list[Answer]:
    """The answers to all, from a crowd of `size`."""
    left, answers = iter(requests), []

    def hear(answer: Answer) -> float:
        answers.append(answer)
        return 0.0

    Crowd(port, size, lambda: next(left, None), hear).run()
    return answers


def test_every_request_is_sent_once_and_every_answer_is_told_apart(scripted: tuple[int, Counter[str]]) -> None:
    port, seen = scripted
    paths = ["/200", "/503/7", "/404", "/close", "/200", "/cut", "/200"] * 10
    answers = ask_all(port, [post(path, b"body", kind=path) for path in paths], size=4)
    assert seen == Counter(paths)
    assert Counter((each.request.kind, each.status, each.retry_after_s) for each in answers) == {
        ("/200", 200, 0.0): 30,
        ("/503/7", 503, 7.0): 10,
        ("/404", 404, 0.0): 10,
        ("/close", 200, 0.0): 10,
        ("/cut", BROKEN, 0.0): 10,
    }


def test_bodies_larger_than_any_buffer_are_sent_and_read_whole(scripted: tuple[int, Counter[str]]) -> None:
    port, _ = scripted
    (answer,) = ask_all(port, [post("/200", bytes(20_000_000))])
    assert answer.status == 200


def test_the_time_of_an_answer_is_what_its_client_waited(scripted: tuple[int, Counter[str]]) -> None:
    port, _ = scripted
    slow, quick = ask_all(port, [post("/slow", b""), post("/200", b"")])
    assert slow.seconds >= 0.2 > quick.seconds


def test_who_hangs_up_waits_for_no_answer_and_asks_again(scripted: tuple[int, Counter[str]]) -> None:
    port, seen = scripted
    leaving = replace(post("/slow", b"body"), hang_up=True)
    answers = ask_all(port, [leaving, leaving, post("/200", b"")])
    assert [each.status for each in answers] == [NOBODY_WAITED, NOBODY_WAITED, 200]
    assert seen["/200"] == 1


def test_a_crowd_ends_at_its_time_though_answers_are_due(scripted: tuple[int, Counter[str]]) -> None:
    port, _ = scripted
    heard: list[Answer] = []
    Crowd(port, 2, lambda: post("/slow", b""), lambda each: heard.append(each) or 0.0).run(time.perf_counter() + 0.05)
    assert heard == []


def test_a_connection_pauses_for_as_long_as_it_is_told(scripted: tuple[int, Counter[str]]) -> None:
    port, seen = scripted
    until = time.perf_counter() + 0.3
    Crowd(port, 3, lambda: post("/200", b""), lambda _: 60.0).run(until)
    assert seen["/200"] == 3
    assert time.perf_counter() >= until


def test_an_answer_that_never_comes_is_broken(
    scripted: tuple[int, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(crowd, "LOOK_SECONDS", 0.02)
    port, _ = scripted
    late, next_one = ask_all(port, [post("/slow", b""), post("/200", b"")])
    assert (late.status, next_one.status) == (BROKEN, 200)


def test_a_server_that_turns_away_whoever_connects_is_heard() -> None:
    refusal = b"HTTP/1.1 503 No\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

    def turn_away() -> None:
        for _ in range(3):
            connection, _ = listening.accept()
            connection.sendall(refusal)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=turn_away)
        thread.start()
        answers = ask_all(listening.getsockname()[1], [post("/", bytes(1000))] * 3)
        thread.join()
    assert [(each.status, each.retry_after_s) for each in answers] == [(503, 1.0)] * 3


def test_manners_are_what_they_are_called() -> None:
    refused = Answer(post("/", b""), 503, 0.01, 7.0)
    assert at_once(refused) == 0.0
    assert as_told(refused) == 7.0
    assert as_told(refused._replace(status=200, retry_after_s=0.0)) == 0.0


def test_a_rate_is_shared_by_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(overload, "perf_counter", lambda: clock[0])
    pause = at_rate(10.0)
    answer = Answer(post("/", b""), 200, 0.01, 0.0)
    assert [pause(answer) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    clock[0] = 105.0  # too late for 47 more, which nobody makes up for
    assert [pause(answer) for _ in range(2)] == pytest.approx([0.0, 0.1])


def test_refusals_and_the_warm_up_are_in_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [9.0]
    monkeypatch.setattr(overload, "perf_counter", lambda: clock[0])
    tally, request = Tally(since=10.0), post("/", b"")
    tally.add(Answer(request, 200, 99.0, 0.0))  # too early
    clock[0] = 11.0
    for status, seconds in (
        (200, 0.1),
        (200, 0.2),
        (200, 0.3),
        (503, 0.001),
        (503, 0.001),
        (500, 0.001),
        (BROKEN, 9.0),
    ):
        tally.add(Answer(request, status, seconds, 0.0))
    borne = tally.result(seconds=2.0)
    assert (borne.goodput, borne.refused, borne.failed) == (1.5, 1.0, 1.0)
    assert borne.p50_ms == pytest.approx(200) and borne.p99_ms == pytest.approx(298)


def test_a_server_that_answers_nobody_is_no_result() -> None:
    with pytest.raises(ServerError, match="not one good answer in 2 s; 0 refused, 0 failed"):
        Tally(since=0.0).result(2.0)


def test_the_rows_hold_goodput_to_the_maximum_and_waiting_to_the_limit() -> None:
    borne = Borne(goodput=390.0, refused=4000.0, p50_ms=200.0, p99_ms=240.0, failed=10.0)
    taken = Overload({"640 connections retrying at once": Under(borne, most=500.0)}, limit_ms=250.0)
    rows = {row.name: row for row in overload.rows_of("native", [taken])}
    name = "native, 640 connections retrying at once"
    assert {row: (rows[row].median, rows[row].verdict) for row in rows} == {
        f"{name}: the most that it can answer": (500.0, ""),
        f"{name}: asked, to the most": (8.8, ""),
        f"{name}: goodput to the most": (0.78, "missed"),
        f"{name}: p50 of the accepted": (200.0, ""),
        f"{name}: p99 of the accepted": (240.0, "met"),
        f"{name}: refused": (4000.0, ""),
        f"{name}: failed": (10.0, "missed"),
    }


def test_each_crowd_is_held_to_the_loads_right_before_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    goodputs = iter([90.0, 100.0, 70.0, 60.0, 50.0, 80.0, 40.0, 120.0])  # two to begin with, then crowd and load
    sizes = []

    def bear(port: int, request: Request, connections: int, *_: object) -> Borne:
        sizes.append(connections)
        return Borne(next(goodputs), 0.0, 1.0, 1.0, 0.0)

    monkeypatch.setattr(overload, "bear", bear)
    taken = overload.measure(1, PATH, JPEG, seconds=1, limit_ms=1.0)
    assert sizes == [8, 32, 640, 32, 640, 32, 1200, 32]
    assert [(each.borne.goodput, each.most) for each in taken.under.values()] == [(70, 80), (50, 70), (40, 100)]


def test_a_real_server_is_asked_for_ten_times_its_most(
    seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "WARM_UP_SECONDS", 0.5)
    monkeypatch.setattr(overload, "CROWD", 100)
    monkeypatch.setattr(overload, "BEYOND", 120)
    few = ["--queue", "32", "--connections", "100"]
    with running_server(seeded_store, tmp_path, few) as server:
        taken = overload.measure(server.port, PATH, JPEG, seconds=1, limit_ms=1.0)
        counted = samples(httpx.get(server.url + "/metrics", timeout=30).text)
    assert [each.borne.failed for each in taken.under.values()] == [0, 0, 0]
    retrying, _, beyond = taken.under.values()
    assert retrying.borne.refused > 0
    assert beyond.borne.refused > retrying.borne.refused
    assert beyond.borne.goodput > 0
    assert counted['akin_rejected_total{reason="connections"}'] > 0
