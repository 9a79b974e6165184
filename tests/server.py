"""A real server for tests: its own process on a free port, ended by its pid; and what tests do with any server.

with running_server(model_store, folder) as server:
    httpx.post(server.url + "/predictions/encoder", content=photo)
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
STARTUP_SECONDS = 60.0  # generous: the machine may be busy
PATIENCE_SECONDS = 60.0  # so is this


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str  # "http://127.0.0.1:PORT"
    port: int
    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> str:
        """What it has printed so far, errors too."""
        return self.log_file.read_text()

    def stop(self) -> int:
        """Send SIGTERM, as a service manager does; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)


class Answer(NamedTuple):
    """What came back over a bare connection."""

    status: int
    headers: dict[str, str]  # by names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    with HTTPResponse(connection) as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def wait_until(condition: Callable[[], bool], told: Callable[[], object] = lambda: "in vain") -> None:
    """Fail with what is `told` where `condition` does not become true within a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)


def deploy(server: Server, store: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`akin deploy` as a user runs it, in the folder of the server."""
    command = [sys.executable, "-m", "handlers.deploy", str(store), "--port", str(server.port), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = server.log_file.parent
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def start(
    model_store: Path, folder: Path, arguments: Sequence[str] = (), module: str = "handlers.native"
) -> "tuple[subprocess.Popen[bytes], Path]":
    """Start a server in `folder`, where its var/ goes; its process and the file it prints to."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "server.log"
    command = [sys.executable, "-m", module, "--model-store", str(model_store.resolve()), "--port", "0"]
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, log_file


@contextmanager
def running_server(model_store: Path, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """A server that has said it is ready, ended with the block."""
    process, log_file = start(model_store, folder, arguments)
    try:
        url = _wait_for_url(process, log_file)
        yield Server(url, int(url.rpartition(":")[2]), process, log_file)
    finally:
        process.kill()
        process.wait()


def _wait_for_url(process: "subprocess.Popen[bytes]", log_file: Path) -> str:
    """The address from the block that the server prints once it is ready."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^akin serves .* at (http://\S+)$", log_file.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"the server did not become ready; it printed:\n{log_file.read_text()}")
