"""Clients that go away or take their time; what they send is in the table of bad inputs, tests/bad_inputs.py."""

from collections.abc import Iterator

import httpx
import pytest

from tests.server import Server
from tests.serving import JPEG, PATH, assert_refused, connect, post_head, read_answer


@pytest.fixture(autouse=True)
def served_on(server: Server) -> Iterator[None]:
    """Afterwards: the same process, no traceback in its log, the next good request answered."""
    yield
    assert server.process.poll() is None
    assert httpx.post(server.url + PATH, content=JPEG, timeout=30).status_code == 200
    assert "Traceback" not in server.log


def test_k_of_zero_means_no_neighbors(client: httpx.Client) -> None:
    assert "neighbors" not in client.post(PATH, params={"k": "0"}, content=JPEG).json()


def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client) -> None:
    refused = client.get(PATH)
    assert_refused(refused, 405, "GET", "POST or PUT")
    assert refused.headers["allow"] == "POST, PUT"


def test_a_client_that_hangs_up_in_mid_body_leaves_no_trace(server: Server) -> None:
    before = server.log
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(post_head("content-length: 5000"))
            connection.sendall(JPEG[:100])
    assert server.log == before


def test_a_client_that_does_not_wait_for_the_answer_leaves_no_trace(server: Server) -> None:
    before = server.log
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(post_head(f"content-length: {len(JPEG)}") + JPEG)
    assert server.log == before


def test_a_slow_client_keeps_nobody_waiting(server: Server) -> None:
    with connect(server) as slow:
        slow.sendall(post_head(f"content-length: {len(JPEG)}"))
        slow.sendall(JPEG[:10])
        assert httpx.post(server.url + PATH, content=JPEG, timeout=30).status_code == 200
        slow.sendall(JPEG[10:])
        assert read_answer(slow)[0] == 200
