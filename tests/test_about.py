"""Every answer says how long it took and which request it is for, whoever gives it."""

from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from encoder.session import Encoder
from handlers.about import about, new_id, request_id
from handlers.service import Service
from handlers.tokens import Access
from tests.server import Server
from tests.serving import JPEG, PATH, connect, front_with, post_head, talk

ROW = b'{"id": "a", "delete": true}\n'


def test_stages_and_the_total_are_milliseconds() -> None:
    assert about("mine", 0.0125, {"decode": 1.5, "embed": 10}) == (
        (b"server-timing", b"decode;dur=1.500, embed;dur=10.000, total;dur=12.500"),
        (b"x-request-id", b"mine"),
    )


def test_an_id_is_the_clients_where_a_log_can_hold_it_and_else_new() -> None:
    assert request_id({b"x-request-id": b"trace-17/b"}) == "trace-17/b"
    made = {request_id({}), request_id({b"x-request-id": b"two words"}), new_id()}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (lambda: post_head(f"content-length: {len(JPEG)}") + JPEG, 200),
        (lambda: post_head("content-length: 5") + b"noise", 415),
        (lambda: b"GET /healthz HTTP/1.1\r\nhost: akin\r\n\r\n", 200),
        (lambda: b"GET /nowhere HTTP/1.1\r\nhost: akin\r\n\r\n", 404),
        (lambda: b"no HTTP\r\n\r\n", 400),
        (lambda: post_head("x-long: " + "a" * 20_000), 431),
        (lambda: b"CONNECT a:1 HTTP/1.1\r\nhost: akin\r\n\r\n", 400),
        (lambda: post_head(f"content-length: {1 << 40}"), 413),
    ],
    ids=["good", "no image", "page", "no page", "no HTTP", "long headers", "proxy", "too large"],
)
def test_answers_of_the_routes_and_of_the_wire_carry_both(
    server: Server, request_bytes: Callable[[], bytes], status: int
) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes())
        with HTTPResponse(connection) as answer:
            answer.begin()
            assert answer.status == status
            assert answer.headers["x-request-id"]
            assert "total;dur=" in answer.headers["server-timing"]


@pytest.mark.parametrize(("kind", "status"), [("application/x-ndjson", 200), ("text/plain", 415)])
def test_streams_carry_both_whether_they_are_taken_or_not(writer: httpx.Client, kind: str, status: int) -> None:
    given = {"content-type": kind, "x-request-id": "mine"}
    answer = writer.post("/index/bulk", content=ROW, headers=given)
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")
    assert "total;dur=" in answer.headers["server-timing"]


def test_who_has_no_token_hears_both_too(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post(PATH, content=JPEG, headers={"x-request-id": "mine"})
        assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")
        assert "total;dur=" in refused.headers["server-timing"]

    talk(front_with(Service(Encoder.load(seeded_store)), access=Access(b"secret", protect_reads=True)), scenario)
