"""What a number was measured on: CPU, GPU, commit, date, versions."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Those that decide how fast int8 runs: x86 as Linux names them, then ARM.
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimddp", "i8mm", "sve", "sve2"),
)
LIBRARIES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "pillow", "faiss-cpu"),
    *("uvicorn", "uvloop", "httptools"),
)
_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = version(name)
    except PackageNotFoundError: pass
print(json.dumps(found))
"""


def describe(python: Path) -> dict[str, Any]:
    """Machine, commit, date, and the versions that the interpreter `python` runs with."""
    cpu = _cpuinfo()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "gpus": gpus(),
        "system": platform.platform(),
        # Above zero before anything was measured: others use these cores too.
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions(python),
    }


def gpus() -> list[str]:
    """What nvidia-smi lists, such as "Tesla T4, 15360 MiB, 550.54.15": name, memory, driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.strip().splitlines()


def versions(python: Path) -> dict[str, str]:
    """Of LIBRARIES that the interpreter `python` has, and its own."""
    command = [str(python), "-c", _VERSIONS, *LIBRARIES]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _cpuinfo() -> dict[str, str]:
    """The first core of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _commit() -> str:
    """Such as "3f2a9c01d4e5", with "-dirty" behind it where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
