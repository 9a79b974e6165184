"""The fronts that can be started to be measured, each as its make target runs it, on a free port."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from load_tests import server

ROOT = Path(__file__).parents[1]
ANNOUNCEMENT = "akin serves "  # the first words that either front prints once it is ready


@dataclass(frozen=True)
class Model:
    """What is to be served, and the environment that serves it natively."""

    store: Path
    name: str
    environment: Path

    @property
    def python(self) -> Path:
        """The interpreter of that environment."""
        # Not resolved: an environment's interpreter is a link, and finds its packages by where the link lies.
        python = self.environment.absolute() / "bin/python"
        if not python.exists():
            raise server.ServerError(f"{self.environment} is not an environment to serve from; run make setup")
        return python

    @property
    def arguments(self) -> list[str]:
        return ["--model-store", str(self.store.resolve()), "--name", self.name]


@dataclass(frozen=True)
class NativeOptions:
    """What `akin serve --help` lists in an environment: only what is there is asked for."""

    help: str  # its white space one space each

    @classmethod
    def of(cls, python: Path) -> "NativeOptions":
        """Ask the interpreter `python`."""
        done = subprocess.run(
            [*_akin(python), "serve", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        if done.returncode:
            raise server.ServerError(f"akin serve --help failed: {done.stderr.strip()}")
        # argparse breaks lines, at hyphens too.
        return cls(" ".join(re.sub(r"-\n\s+", "-", done.stdout).split()))

    def idle_threads(self, number: int) -> tuple[str, ...] | None:
        """The arguments with which a request that is alone gets so many threads; None where none can ask for it."""
        return ("--idle-threads", str(number)) if "--idle-threads" in self.help else None

    @property
    def openvino(self) -> tuple[str, ...] | None:
        """The arguments for OpenVINO and nothing else; None where it cannot be asked for."""
        offered = re.search(r"--require-provider\b.*?\b(OpenVINO\w*)", self.help)
        return ("--require-provider", offered[1]) if offered else None

    @property
    def max_wait_ms(self) -> float | None:
        """How long a request may wait in the queue by default; None where it has no such limit."""
        default = re.search(r"--max-wait-ms\b[^(]*\(default: ([\d.]+)", self.help)
        return float(default[1]) if default else None


@contextmanager
def native(model: Model, folder: Path, options: Sequence[str] = ()) -> Iterator[server.Server]:
    """`make serve`, with its gallery in `folder`, and `options` more."""
    with server.running([*_akin(model.python), "serve", *model.arguments, *options], folder) as started:
        yield started


@contextmanager
def torchserve(model: Model, folder: Path) -> Iterator[server.Server]:
    """`make torchserve`, in this interpreter's environment, with archive and gallery in `folder`.

    Its start includes packing the archive, as users wait for that too.
    """
    started = perf_counter()
    archive = str((folder / "encoder.mar").resolve())
    _akin_verb(folder, "archive", *model.arguments, "--out", archive)
    gallery = str((folder / "gallery").resolve())
    command = [*_akin(Path(sys.executable)), "torchserve", "--archive", archive, "--gallery", gallery]
    packed_s = perf_counter() - started
    with server.running(command, folder, _has_announced_itself) as ready:
        yield replace(ready, ready_s=packed_s + ready.ready_s)


@contextmanager
def torchserve_torch(model: Model, folder: Path) -> Iterator[server.Server]:
    """`make torchserve RUNTIME=torch`: torch's own int8, which make keeps, so built before the clock runs."""
    store = (folder / "torch").resolve()
    weights = str((model.store / f"{model.name}.safetensors").resolve())
    built = ("--runtime", "torch", "--weights", weights, "--name", model.name, "--out", str(store))
    _akin_verb(folder, "export", *built)
    with torchserve(replace(model, store=store), folder) as ready:
        yield ready


FRONTS: dict[str, Callable[[Model, Path], AbstractContextManager[server.Server]]] = {
    "native": native,
    "torchserve": torchserve,
    "torchserve-torch": torchserve_torch,
}


def _akin_verb(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [*_akin(Path(sys.executable)), *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise server.ServerError(f"akin {words[0]} failed: {done.stdout.strip()}")


def _akin(python: Path) -> Sequence[str]:
    return [str(python), str(ROOT / "akin.py")]


def _has_announced_itself(port: int, log_file: Path) -> bool:
    # TorchServe's own /ping says Healthy while workers die.
    return ANNOUNCEMENT in log_file.read_text(errors="replace")
