"""The table of bad inputs on TorchServe: what reaches the handler is answered as everywhere, the rest is survived."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoder.session import Encoder
from tests.bad_case import WAITS, Case, Differs, ask, assert_answered, converse, http
from tests.bad_inputs import TABLE
from tests.server import Server, wait_until
from tests.serving import JPEG, vector_of
from tests.torchserving import running_torchserve, session_of, workers

WORKERS = 2  # unless it is told otherwise
CASES = [case for case in TABLE if case.torchserve is not None]


@pytest.fixture(scope="module")
def torchserve(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of them."""
    with running_torchserve(seeded_store, tmp_path_factory.mktemp("torchserve")) as server:
        ready = ["READY"] * WORKERS  # it answers from the first on
        wait_until(lambda: [*workers(server).values()] == ready, lambda: workers(server))
        yield server


@pytest.fixture(scope="module")
def encoder(seeded_store: Path) -> Encoder:
    return Encoder.load(seeded_store)


@pytest.fixture
def served_on(torchserve: Server, encoder: Encoder) -> Iterator[None]:
    """Afterwards: the same Java and the same workers, no traceback in their log, and the next good request right."""
    pids, states = session_of(torchserve), workers(torchserve)
    yield
    good = ask(torchserve.port, http(JPEG))
    assert good.status == 200
    np.testing.assert_allclose(good.json["embedding"], vector_of(encoder, JPEG), atol=1e-6)
    assert session_of(torchserve) == pids and workers(torchserve) == states
    assert "Traceback" not in torchserve.log


@pytest.mark.usefixtures("served_on")
@pytest.mark.parametrize("case", [case for case in CASES if case.torchserve != WAITS], ids=lambda case: case.name)
def test_it_is_answered_and_the_same_workers_go_on(torchserve: Server, case: Case, encoder: Encoder) -> None:
    answer = converse(torchserve.port, case)
    if isinstance(case.torchserve, Differs):
        assert answer.status == case.torchserve.status
        assert case.torchserve.word in answer.body.decode()
    else:
        assert_answered(answer, case, encoder)


@pytest.mark.usefixtures("served_on")
@pytest.mark.parametrize("case", [case for case in CASES if case.torchserve == WAITS], ids=lambda case: case.name)
def test_it_is_waited_for_while_others_are_served(torchserve: Server, case: Case) -> None:
    with socket.create_connection(("127.0.0.1", torchserve.port), timeout=30) as slow:
        slow.sendall(case.request())
        for _ in range(3):
            slow.sendall(case.drip)
            assert ask(torchserve.port, http(JPEG)).status == 200
        assert not select.select([slow], [], [], 0)[0]
