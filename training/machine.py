"""Where and with what a run is made, for the record."""

import os
import platform
import subprocess
from pathlib import Path

import torch

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
    cpu = f"{os.cpu_count()} cores of {processor()}"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    together = f"{distributed.world()} × " if distributed.world() > 1 else ""
    return {
        "machine": f"{together}{machine}, {platform.machine()}",
        "torch": str(torch.__version__),
        "commit": commit(),
    }


def commit() -> str:
    """12 hex of the commit, with -dirty where the checkout differs from it; empty without git."""
    options = ("--always", "--dirty", "--exclude=*", "--abbrev=12")
    command = ["git", "-C", str(Path(__file__).parent), "describe", *options]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        return ""


def processor() -> str:
    """The CPU's name as Linux gives it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unnamed CPU"
