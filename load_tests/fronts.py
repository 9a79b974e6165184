"""The fronts that can be started to be measured, each as its make target runs it, on a free port."""

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


@contextmanager
def native(model: Model, folder: Path) -> Iterator[server.Server]:
    """`make serve`, with its gallery in `folder`."""
    with server.running([*_akin(model.python), "serve", *model.arguments], folder) as started:
        yield started


@contextmanager
def torchserve(model: Model, folder: Path) -> Iterator[server.Server]:
    """`make torchserve`, in this interpreter's environment, with archive and gallery in `folder`.

    Its start includes packing the archive, as users wait for that too.
    """
    started = perf_counter()
    akin, archive = _akin(Path(sys.executable)), str((folder / "encoder.mar").resolve())
    packed = [*akin, "archive", *model.arguments, "--out", archive]
    done = subprocess.run(
        packed, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise server.ServerError(f"the archive could not be made: {done.stdout.strip()}")
    command = [*akin, "torchserve", "--archive", archive, "--gallery", str((folder / "gallery").resolve())]
    packed_s = perf_counter() - started
    with server.running(command, folder, _has_announced_itself) as ready:
        yield replace(ready, ready_s=packed_s + ready.ready_s)


FRONTS: dict[str, Callable[[Model, Path], AbstractContextManager[server.Server]]] = {
    "native": native,
    "torchserve": torchserve,
}


def _akin(python: Path) -> Sequence[str]:
    return [str(python), str(ROOT / "akin.py")]


def _has_announced_itself(port: int, log_file: Path) -> bool:
    # TorchServe's own /ping says Healthy while workers die.
    return ANNOUNCEMENT in log_file.read_text(errors="replace")
