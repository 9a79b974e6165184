"""Where and with what a run is made, for the record."""

import os
import platform

import torch

from encoder.machine import commit, cpu_name
from training import distributed


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU. Of several processes that train
    together each has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.world() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def made_with(device: torch.device) -> dict[str, str]:
    """Machine, library and commit of the code that runs."""
    cpu = f"{os.cpu_count()} cores of {cpu_name()}"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    together = f"{distributed.world()} × " if distributed.world() > 1 else ""
    return {
        "machine": f"{together}{machine}, {platform.machine()}",
        "torch": str(torch.__version__),
        "commit": commit(),
    }
