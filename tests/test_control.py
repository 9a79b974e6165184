"""The control socket: a line each way, for the user of the server alone."""

import os
import stat
import threading
from collections.abc import Iterator
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


def test_the_processes_of_a_port_are_found_in_their_order() -> None:
    for process in (10, 2, 1):
        path = path_of(8080, process)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path_of(808, 1).touch()
    assert paths_of(8080) == [path_of(8080, process) for process in (1, 2, 10)]
