"""Several processes on one port: started, watched, replaced when they die, ended together.

Each listens on a socket of its own (SO_REUSEPORT), so the kernel shares the connections out.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from handlers import browser
from handlers.control import ControlError, ask, path_of, paths_of

if TYPE_CHECKING:
    from handlers.settings import Settings

log = logging.getLogger("akin")

POLL_S = 0.1
LONGEST_PAUSE_S = 30.0  # before a process that keeps dying is started again
SOUND_AFTER_S = 10.0  # of life, after which a death is not taken for a habit
PARTING_S = 20.0  # for the drain; what is not gone then is killed
METRICS_PATIENCE_S = 2.0
ASK_EVERY_S = 5.0  # whether each process is well
SILENT_S = 120.0  # after which one that does not answer is taken for wedged


class _Child:
    """One process of the server."""

    def __init__(self, number: int, command: list[str], control: Path) -> None:
        self.number = number
        self._command = command
        self._control = control
        self._deaths = 0
        self._not_before = 0.0
        self.start()

    def start(self) -> None:
        self._began = self._asked = self._heard = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def watch(self) -> None:
        """Start it again where it has died, later and later where it dies at once."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._not_before:
                self.start()
        elif (code := self.process.poll()) is not None:
            self._deaths = self._deaths + 1 if now - self._began < SOUND_AFTER_S else 0
            pause = min(LONGEST_PAUSE_S, 0.1 * 2**self._deaths)
            log.error("process %d ended with %d; another takes its place in %.1f s", self.number, code, pause)
            self.process, self._not_before = None, now + pause
        elif now - self._asked >= ASK_EVERY_S and (wedged := self._wedged(now)):
            log.error("process %d is ended: %s", self.number, wedged)
            self.process.kill()

    def _wedged(self, now: float) -> str | None:
        """Why it should be started anew, if it should. A probe of the port would reach it one time in many."""
        self._asked = now
        try:
            wedged: str | None = ask(self._control, "wedged", patience_s=1)["reason"]
        except ControlError as error:
            silent = now - self._heard
            return f"{error} for {silent:.0f} s; the limit is {SILENT_S:.0f}" if silent > SILENT_S else None
        self._heard = now
        return wedged

    def end(self, deadline: float) -> None:
        """After SIGTERM was sent."""
        if self.process is not None:
            try:
                self.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def supervise(settings: "Settings", reserved: socket.socket) -> int:
    """Run `settings.processes` servers until SIGINT or SIGTERM. Returns the exit code.

    reserved: bound to the port, which so stays ours while children come and go, and never listening.
    """
    stopping = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopping.set())
    with reserved:
        port = reserved.getsockname()[1]
        children: list[_Child] = []
        try:
            # The first alone: it seeds or fills the gallery that the others open.
            for number in range(1, settings.processes + 1):
                arguments = settings.arguments(port=port, process=number)
                command, control = [sys.executable, "-m", "handlers.native", *arguments], path_of(port, number)
                children.append(_Child(number, command, control))
                if not _ready(children[-1], control, stopping):
                    return 0 if stopping.is_set() else 1
            print(ask(path_of(port, 1), "describe")["text"], flush=True)
            if settings.opens:
                browser.show(settings.url(port))
            while not stopping.wait(POLL_S):
                for child in children:
                    child.watch()
            return 0
        finally:
            for child in children:
                if child.process is not None:
                    child.process.terminate()
            deadline = time.monotonic() + PARTING_S
            for child in children:
                child.end(deadline)


def _ready(child: _Child, control: Path, stopping: threading.Event) -> bool:
    """Wait until it answers predictions; false where it ends before, having said why, or where we are stopped."""
    while not stopping.wait(POLL_S):
        if child.process is None or child.process.poll() is not None:
            return False
        try:
            if ask(control, "ready", patience_s=1)["ready"]:
                return True
        except ControlError:
            pass  # it does not listen yet
    return False


def end_with_parent() -> None:
    """End this process when the one that started it has gone, however it went."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def merged_metrics(port: int, process: int, own: Callable[[], bytes]) -> bytes:
    """The metrics of all processes of a port, each sample labelled with its process."""
    texts = {process: own().decode()}
    for path in paths_of(port):
        number = int(path.stem.partition("-")[2])
        if number not in texts:
            try:
                texts[number] = ask(path, "metrics", patience_s=METRICS_PATIENCE_S)["text"]
            except ControlError as error:
                log.warning("no metrics of process %d: %s", number, error)
    return merge(texts).encode()


def merge(texts: dict[int, str]) -> str:
    """Expositions of the same metrics as one, where each family stands once."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, text in sorted(texts.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                if line not in (head := heads.setdefault(family, [])):
                    head.append(line)
                samples.setdefault(family, [])
            else:
                samples[family].append(_labelled(line, process))
    return "".join(f"{line}\n" for family in heads for line in (*heads[family], *samples[family]))


def _labelled(sample: str, process: int) -> str:
    label = f'process="{process}"'
    name, brace, rest = sample.partition("{")
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
