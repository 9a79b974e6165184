"""Clients that go away or take their time; what they send is in the table of bad inputs, tests/bad_inputs.py."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from tests.server import Server, read_answer, running_server
from tests.serving import JPEG, PATH, connect, post_head, vector_of


@pytest.fixture(scope="module")
def right(seeded_store: Path) -> np.ndarray:
    """The embedding of a good request."""
    return vector_of(Encoder.load(seeded_store), JPEG)


@pytest.fixture(autouse=True)
def served_on(server: Server, right: np.ndarray) -> Iterator[None]:
    """Afterwards: the same process, no traceback in its log, the next good request answered right."""
    yield
    assert server.process.poll() is None
    assert_answers(server, right)
    assert "Traceback" not in server.log


def assert_answers(server: Server, right: np.ndarray) -> None:
    """A good request gets the right embedding."""
    good = httpx.post(server.url + PATH, content=JPEG, timeout=30)
    assert good.status_code == 200
    np.testing.assert_allclose(good.json()["embedding"], right, atol=1e-6)


def test_k_of_zero_means_no_neighbors(client: httpx.Client) -> None:
    assert "neighbors" not in client.post(PATH, params={"k": "0"}, content=JPEG).json()


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


def test_slow_clients_keep_nobody_waiting(seeded_store: Path, tmp_path: Path, right: np.ndarray) -> None:
    """More of them than workers, and their requests are under way: each has been asked for its body."""
    wanted = b"HTTP/1.1 100 Continue\r\n\r\n"
    arguments = ["--threads", "1", "--body-seconds", "600"]
    with running_server(seeded_store, tmp_path, arguments) as server, ExitStack() as opened:
        slow = [opened.enter_context(connect(server)) for _ in range(3)]
        for client in slow:
            client.sendall(post_head(f"content-length: {len(JPEG)}", "expect: 100-continue"))
            assert client.recv(len(wanted), socket.MSG_WAITALL) == wanted
            client.sendall(JPEG[:10])
        assert_answers(server, right)
        for client in slow:
            client.sendall(JPEG[10:])
            np.testing.assert_allclose(read_answer(client).json["embedding"], right, atol=1e-6)
