"""What a benchmark says of the machine that it ran on."""

import os
import sys
from pathlib import Path

from PIL import Image

from load_tests import machine


def test_versions_are_those_of_the_interpreter_that_serves() -> None:
    described = machine.describe(Path(sys.executable))
    assert described["versions"]["python"] == sys.version.split()[0]
    assert described["versions"]["pillow"] == Image.__version__
    assert described["cores"] == len(os.sched_getaffinity(0))
