"""OpenVINO's tests, tests/openvino_alone.py, in a process of their own.

Three times pytest died of SIGSEGV right after they had run in its own process, at the first SIGCHLD; a small script
did not do so. Our guess, and no more than that: OpenVINO leaves the AMX tiles of its thread in use, which makes the
frame of a signal 8 KB larger, and the alternate stack that another library has set up is too small for it.
"""

import subprocess
import sys

from tests.server import ROOT


def test_openvino_gives_what_onnx_runtime_gives_where_it_is_asked_for() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/openvino_alone.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "7 passed" in done.stdout, done.stdout + done.stderr
