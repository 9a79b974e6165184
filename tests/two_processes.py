"""Several processes joined by gloo on this machine, for tests:

together(function)                         # what the module-level `function` returned in each, in order of rank
python -m tests.two_processes MODULE FUNCTION FILE      is one of them, with torchrun's environment variables
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from training.distributed import processes

ROOT = Path(__file__).parents[1]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def together(function: Callable[[], Any], count: int = 2, seconds: float = 120) -> list[Any]:
    """Call `function` in `count` processes at once. It returns tensors, numbers and strings in dicts and lists."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [folder / f"{rank}.pt" for rank in range(count)]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
        module = f"tests.{function.__module__.removeprefix('tests.')}"  # pytest leaves the folder out
        arguments = [*("-W", "error", "-m", "tests.two_processes"), module, function.__name__]
        started = []
        for rank, result in enumerate(results):
            environment = os.environ | ON_CPU | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"{rank}.txt").open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, *arguments, str(result)], cwd=ROOT, env=environment, stdout=output, stderr=output
                )
            started.append(process)
        try:
            failed = first_failure(started, time.monotonic() + seconds)
        finally:
            for process in started:
                process.kill()
                process.wait()
        if failed is not None:
            raise AssertionError(f"process {failed}:\n{(folder / f'{failed}.txt').read_text()}")
        return [torch.load(result, weights_only=True) for result in results]


def first_failure(started: list[subprocess.Popen[bytes]], deadline: float) -> int | None:
    """Wait for all to end well (None), or for one to fail or be late (its number)."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code or (code is None and time.monotonic() > deadline):
                return rank
        if None not in codes:
            return None
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main(module: str, function: str, result: str) -> None:
    with processes():
        torch.save(getattr(import_module(module), function)(), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
