"""The fronts that can be started to be measured, each by the command of its make target, on a free port."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from encoder.session import OPENVINO_PROVIDER
from load_tests import machine, server

ROOT = Path(__file__).parents[1]
ANNOUNCEMENT = "akin serves "  # the first words that either front prints once it is ready
ONE_THREAD = ("--idle-threads", "1")  # for a request, as the floor has


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


class Started(NamedTuple):
    """In which way the native front is started."""

    model: Model
    options: tuple[str, ...]


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


def variants(model: Model) -> tuple[dict[str, Started], list[str]]:
    """Other ways to start the native front, by name; and a line on each that no environment here has."""
    found, absent = {"idle cores used, the default": Started(model, ())}, []
    if there := next(_with_openvino(model), None):
        found["on OpenVINO"] = Started(there, ("--require-provider", OPENVINO_PROVIDER, *ONE_THREAD))
    else:
        absent.append("on OpenVINO is left out: openvino is not installed; run make setup-openvino")
    return found, absent


def _with_openvino(model: Model) -> Iterator[Model]:
    """The model in an environment that has OpenVINO: its own, else this interpreter's, which has it for the tests."""
    for environment in (model.environment, Path(sys.prefix)):
        there = replace(model, environment=environment)
        if "openvino" in machine.versions(there.python):
            yield there


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
