"""A real server for tests: its own process on a free port, ended by its pid.

with running_server(model_store, folder) as server:
    httpx.post(server.url + "/predictions/encoder", content=photo)
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTUP_SECONDS = 60.0  # generous: the machine may be busy


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
