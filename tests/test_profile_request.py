"""Where the time of one request goes: the steps are those of the server, and they add up to what its client waits."""

import json
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from load_tests import profile_request
from load_tests.profile_request import SERVER_STEPS, STEPS, ask, rows_of, split
from load_tests.server import ServerError


def test_steps_are_the_times_between_stamps_and_other_requests_are_left_out() -> None:
    stamps = [("read", 0.5), *((name, 1.0 + at / 1e3) for at, name in enumerate(SERVER_STEPS, 1)), ("settled", 9.0)]
    (steps_ms,) = split(stamps, [(1.0, 1.020)])
    np.testing.assert_allclose(steps_ms[:-1], 1.0)
    assert steps_ms[-1] == pytest.approx(20 - len(SERVER_STEPS))


def test_a_server_that_goes_another_way_is_no_result() -> None:
    stamps = [(name, 1.0 + at / 1e3) for at, name in enumerate(reversed(SERVER_STEPS), 1)]
    with pytest.raises(ServerError, match=r"only 0 of 1 requests came by read, routed, .* in turn"):
        split(stamps, [(1.0, 2.0)])


def test_lines_are_means_next_to_the_median_and_add_up_to_it() -> None:
    steps_ms = np.zeros((21, len(STEPS) - 1))
    steps_ms[:, 0] = 1.0
    steps_ms[:, 1] = np.arange(21)  # the whole takes 1 to 21 ms, 11 in the median
    steps_ms[10, 1:3] = 4.0, 6.0
    rows = rows_of(steps_ms)
    values = [row.median for row in rows]
    assert values[0] == 1.0 and values[-1] == pytest.approx(sum(values[:-1]))
    assert 10.5 <= values[-1] <= 11.5 and values[2] == 3.0  # of the two next to it


def test_a_run_says_what_every_step_of_a_real_server_takes(
    seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_request, "WARM_UP", 20)
    out = tmp_path / "out/profile.json"
    options = ["--requests", "100", "--model-store", str(seeded_store), "--environment", sys.prefix]
    monkeypatch.setattr(sys, "argv", ["profile_request", *options, "--out", str(out)])
    assert profile_request.main() == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows[: len(STEPS) - 1]] == [what for _, what in STEPS[1:]]
    steps, rest = rows[: len(STEPS) - 1], rows[len(STEPS) - 1 :]
    whole, plain, least, _ = (row["median"] for row in rest)
    assert all(row["median"] > 0 for row in steps)
    assert whole == pytest.approx(sum(row["median"] for row in steps))
    assert plain > 0 and least > 0
    plain_ms, floor_ms, cost_ms = (row["rounds"] for row in rest[1:])
    assert len(cost_ms) == profile_request.TURNS
    assert cost_ms == pytest.approx(np.subtract(plain_ms, floor_ms))
    assert f"| {whole:.3f} | one request, as its client waits |" in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == ["profile.json"]


def test_a_server_that_hangs_up_is_no_result() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: listening.accept()[0].close())
        thread.start()
        with pytest.raises((ServerError, ConnectionError)):
            ask(listening.getsockname()[1], b"GET / HTTP/1.1\r\n\r\n", times=1)
        thread.join()
