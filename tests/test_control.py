"""The control socket: a line each way, for the user of the server alone."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlers.control import Control, ControlError, ask, path_of, paths_of


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fail(given: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"no {given['what']}")


@pytest.fixture
def control() -> Iterator[Control]:
    control = Control(path_of(8080, 0), {"double": lambda given: {"is": given["number"] * 2}, "fail": fail})
    threading.Thread(target=control.serve_forever, daemon=True).start()
    yield control
    control.close()


def test_a_command_is_answered(control: Control) -> None:
    assert ask(path_of(8080, 0), "double", number=21) == {"is": 42}


def test_an_error_is_told_and_the_next_command_is_answered(control: Control) -> None:
    with pytest.raises(ControlError, match="no bananas"):
        ask(path_of(8080, 0), "fail", what="bananas")
    with pytest.raises(ControlError, match="unheard"):
        ask(path_of(8080, 0), "unheard")
    assert ask(path_of(8080, 0), "double", number=1) == {"is": 2}


def test_only_the_user_of_the_server_may_open_it(control: Control) -> None:
    assert stat.S_IMODE(os.stat(path_of(8080, 0)).st_mode) == 0o600


def test_it_goes_with_the_server_and_one_that_a_killed_server_left_is_no_hindrance(control: Control) -> None:
    left = path_of(9090, 0)
    left.touch()
    other = Control(left, {"here": lambda given: {"yes": True}})
    threading.Thread(target=other.serve_forever, daemon=True).start()
    assert ask(left, "here") == {"yes": True}
    other.close()
    assert not left.exists()
    with pytest.raises(ControlError, match="no server answers"):
        ask(left, "here")


@contextmanager
def listening(*paths: Path) -> Iterator[None]:
    """Processes that listen, and answer when they come to it."""
    with ExitStack() as opened:
        for path in paths:
            opened.callback(Control(path, {}).server_close)
        yield


def test_the_processes_of_a_port_are_found_in_their_order() -> None:
    with listening(*(path_of(8080, process) for process in (10, 2, 1)), path_of(808, 1)):
        assert paths_of(8080) == [path_of(8080, process) for process in (1, 2, 10)]


def test_the_socket_of_a_killed_process_is_left_out_and_removed() -> None:
    live, dead = path_of(8080, 1), path_of(8080, 3)
    with listening(live):
        with listening(dead):
            pass
        assert dead.exists()
        assert paths_of(8080) == [live]
        assert live.exists() and not dead.exists()


def test_one_whose_callers_queue_is_live() -> None:
    live = path_of(8080, 1)
    with listening(live), ExitStack() as callers:
        for _ in range(Control.request_queue_size + 1):
            callers.enter_context(socket.socket(socket.AF_UNIX)).connect(str(live))
        assert paths_of(8080) == [live]


def test_to_be_looked_for_is_no_failed_command(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    assert paths_of(8080) == [path_of(8080, 0)]
    assert ask(path_of(8080, 0), "double", number=1) == {"is": 2}
    assert caplog.messages == []
