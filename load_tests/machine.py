"""What a number was measured on: CPU, GPU, commit, date, versions."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from encoder.machine import commit, cores, cpu_flags, cpu_name

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
    flags = cpu_flags()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit() or "unknown",
        "cpu": cpu_name(),
        "cores": cores(),
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
