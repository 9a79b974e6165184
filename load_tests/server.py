"""A server to measure: started as users start it, timed until it is ready, ended by its own pid."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.005
PORTS = 5  # that TorchServe takes, from the one it is given


class ServerError(Exception):
    """A server that did not start, or answered wrongly."""


class Content(NamedTuple):
    """What a good answer carries."""

    type: str  # its media type, without parameters
    body: bytes


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    port: int
    process: "subprocess.Popen[bytes]"
    ready_s: float  # from its start until it answers rightly

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def post(self, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """The JSON of one good answer."""
        return json.loads(self.fetch(path, body, headers).body)

    def fetch(self, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> Content:
        """One good answer as it came."""
        connection = HTTPConnection(HOST, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("POST", path, body, {"content-type": "image/jpeg", **dict(headers)})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"POST {path} was answered with {response.status}: {content.decode(errors='replace')}")
        return Content(response.headers.get_content_type(), content)

    def memory(self) -> "Memory":
        """Of its process and all those below it, added up: what they share counts for each. Linux only."""
        processes = _processes()
        family = [processes[pid] for pid in _with_descendants(self.process.pid, processes)]
        return Memory(sum(each.resident_kb for each in family) / 1e3, sum(each.peak_kb for each in family) / 1e3)


@dataclass(frozen=True)
class Memory:
    """Resident memory in units of 10^6 bytes."""

    resident_mb: float
    peak_mb: float


@dataclass(frozen=True)
class _Process:
    """What /proc says of a process."""

    parent: int
    resident_kb: float  # units of 10^3 bytes; 0 for zombies and the kernel's own
    peak_kb: float


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


def _processes() -> dict[int, _Process]:
    """Every process of this machine, by pid."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = (line.partition(":") for line in file.read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        numbers = {name: int(value.split()[0]) for name, _, value in lines if name in ("PPid", "VmRSS", "VmHWM")}
        resident_kb, peak_kb = (numbers.get(name, 0) * 1.024 for name in ("VmRSS", "VmHWM"))
        found[int(file.parent.name)] = _Process(numbers["PPid"], resident_kb, peak_kb)
    return found


def _with_descendants(pid: int, processes: Mapping[int, _Process]) -> list[int]:
    children = [child for child, process in processes.items() if process.parent == pid]
    return [pid, *(each for child in children for each in _with_descendants(child, processes))]


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
    """The first of PORTS in a row that are free."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.create_server((HOST, 0))).getsockname()[1]
            with suppress(OSError, OverflowError):  # taken, or beyond the last port
                for port in range(first + 1, first + PORTS):
                    held.enter_context(socket.create_server((HOST, port)))
                return int(first)
