"""A real TorchServe for tests: archive, Java, workers and all, ended by the pid of what started it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from export.archive import Archive, write_archive
from tests.server import ROOT, STARTUP_SECONDS, Server


def start(archive: Path, folder: Path, arguments: Sequence[str] = ()) -> "tuple[subprocess.Popen[bytes], Path]":
    """Start `handlers.torchserve.run` in `folder`; its process and the file it prints to."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "torchserve.log"
    command = [sys.executable, "-m", "handlers.torchserve.run", "--archive", str(archive), "--port", "0"]
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},  # for this process; workers must do without
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, log_file


@contextmanager
def running_torchserve(model_store: Path, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """`model_store` packed and served; ended with the block."""
    archive = write_archive(Archive(model_store=str(model_store), out=str(folder / "encoder.mar")))
    process, log_file = start(archive, folder, arguments)
    try:
        port = _wait_for_port(process, log_file)
        yield Server(f"http://127.0.0.1:{port}", port, process, log_file)
    finally:
        process.terminate()  # a kill would leave Java behind
        process.wait(timeout=30)


def workers(server: Server) -> dict[int, str]:
    """State of each worker by pid, as TorchServe's management API has it."""
    (model,) = httpx.get(f"http://127.0.0.1:{server.port + 1}/models/encoder").json()
    return {worker["pid"]: worker["status"] for worker in model["workers"]}


def session_of(server: Server) -> list[int]:
    """Pids of Java and then its workers: the session that the server's process started."""
    (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    java = int(child)
    return [java, *(pid for pid, session in _sessions().items() if session == java != pid)]


def is_running(pid: int) -> bool:
    """Whether the process is there, and more than an entry that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _sessions() -> dict[int, int]:
    """Session of each process."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[int(process.name)] = os.getsid(int(process.name))
        except ProcessLookupError:
            continue
    return found


def _wait_for_port(process: "subprocess.Popen[bytes]", log_file: Path) -> int:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^akin serves .* at http://\S+:(\d+)$", log_file.read_text(), re.MULTILINE):
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"TorchServe did not become ready; it printed:\n{log_file.read_text()}")
