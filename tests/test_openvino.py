"""OpenVINO's tests, tests/openvino_alone.py, in a process of their own.

It leaves the AMX tiles of the thread that it ran on in use, and so the frame of a signal is 8 KB larger from then on.
Other libraries that all tests load between them handle SIGCHLD on a stack that is too small for that: the next server
that a test ended took pytest with it.
"""

import subprocess
import sys

from tests.server import ROOT


def test_openvino_gives_what_onnx_runtime_gives_where_it_is_asked_for() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/openvino_alone.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "7 passed" in done.stdout, done.stdout + done.stderr
