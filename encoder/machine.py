"""This machine and this code: the cores to share out, and what a number or a message says it was made with."""

import os
import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux only
ROOT = Path(__file__).parents[1]


def cores() -> int:
    """Cores this process may use: by its affinity where the system has one, else all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """As Linux gives it, elsewhere as Python does."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The instruction sets and the like that Linux lists; none elsewhere."""
    info = _cpuinfo()
    return (info.get("flags") or info.get("Features") or "").split()  # x86; ARM


def commit() -> str:
    """Such as "3f2a9c01d4e5", with -dirty behind it where tracked files differ from it; empty without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        return ""


def _cpuinfo() -> dict[str, str]:
    """Of the first core."""
    if not CPUINFO.exists():
        return {}
    lines = (line.partition(":") for line in CPUINFO.read_text().partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
