"""A server to measure: started as users start it, timed until it is ready, ended by its own pid."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.005


class ServerError(Exception):
    """A server that did not start, or answered wrongly."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    port: int
    process: "subprocess.Popen[bytes]"
    ready_s: float  # from the start of its process to the first 200 of /readyz

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """The JSON of one good answer."""
        connection = HTTPConnection(HOST, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("POST", path, body, {"content-type": "image/jpeg"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"POST {path} was answered with {response.status}: {content.decode(errors='replace')}")
        return json.loads(content)

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory now and at its peak, in units of 10^6 bytes. Linux only."""
        lines = (line.split() for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
        return kib["VmRSS:"] * 1024 / 1e6, kib["VmHWM:"] * 1024 / 1e6


@contextmanager
def running(
    command: Sequence[str], folder: Path, is_ready: Callable[[int, Path], bool] | None = None
) -> Iterator[Server]:
    """`command --port PORT` started in `folder`, where its var/ goes, and ended with the block, whatever ends it.

    `is_ready` is asked with the port and the file that the server prints to; left out, /readyz is.
    """
    port = _free_port()
    log_file = folder / "server.log"
    with log_file.open("wb") as log:
        started = perf_counter()
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while not (is_ready(port, log_file) if is_ready else _ready(port)):
                if process.poll() is not None or perf_counter() - started > PATIENCE_SECONDS:
                    raise ServerError(f"{' '.join(command)} did not become ready")
                sleep(POLL_SECONDS)
            yield Server(port, process, perf_counter() - started)
        except Exception as error:
            error.add_note(f"the server printed: {log_file.read_text(errors='replace').strip() or 'nothing'}")
            raise
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ready(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
