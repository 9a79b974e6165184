"""The control socket of a server process: one line of JSON each way on a Unix socket that only its user can open.

New models and the metrics of other processes come this way, so that no request from the network can ask for a path
on this machine.
"""

import json
import logging
import os
import socket
import socketserver
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = Path("var/run")
PATIENCE_S = 600.0  # loading a model may embed a folder of images first

Command = Callable[[dict[str, Any]], dict[str, Any]]  # arguments to answer; raises what its caller shall read

log = logging.getLogger("akin")


class ControlError(Exception):
    """A process that cannot be asked, or that has refused."""


def path_of(port: int, process: int) -> Path:
    """Where the process listens. Short, since the path of a socket has at most 107 bytes."""
    return FOLDER / f"{port}-{process}.sock"


def paths_of(port: int) -> list[Path]:
    """Those of all processes that serve `port`; one that a killed process left is removed."""
    paths = [path for path in FOLDER.glob(f"{port}-*.sock") if _listens(path)]
    return sorted(paths, key=lambda path: int(path.stem.partition("-")[2]))


def _listens(path: Path) -> bool:
    """Whether a process is behind it. Whoever listens has done so since before the path was theirs."""
    try:
        found = path.stat()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)  # one whose callers queue is there too
            connection.connect(str(path))
    except ConnectionRefusedError:
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), found):  # and not that of a process that has come since
                path.unlink()
        return False
    except FileNotFoundError:
        return False
    except OSError:  # there, and it is for who asks to hear what it says
        return True
    return True


class Control(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers commands until it is closed, each on a thread of its own."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        """commands: by the name that stands in a request's `do`."""
        self.commands = commands
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".new")  # refuses connections until it listens, and then takes any other one's place
        begun.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(begun), _Handler)
        finally:
            os.umask(before)
        begun.rename(path)

    def close(self) -> None:
        """Answer nobody any more."""
        self.shutdown()
        self.server_close()
        with suppress(FileNotFoundError):
            self._path.unlink()


class _Handler(socketserver.StreamRequestHandler):
    server: Control

    def handle(self) -> None:
        try:
            line = self.rfile.readline()
            if not line:  # it was asked only whether it listens
                return
            given = json.loads(line)
            answer = self.server.commands[given.pop("do")](given)
        except Exception as error:
            log.warning("a command on the control socket failed: %s", error)
            answer = {"error": str(error) or type(error).__name__}
        with suppress(OSError):  # nobody waits any more
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def ask(path: Path, do: str, patience_s: float = PATIENCE_S, **given: Any) -> dict[str, Any]:
    """The answer of the process that listens at `path`; raises `ControlError`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience_s)
            connection.connect(str(path))
            connection.sendall(json.dumps({"do": do, **given}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except OSError as error:
        raise ControlError(f"no server answers at {path} ({error.strerror or error})") from error
    if not line:
        raise ControlError(f"the server at {path} hung up")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer
