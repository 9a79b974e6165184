"""In which other ways the native front is started to be measured, and where."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from load_tests import machine
from load_tests.fronts import Model, NativeOptions


class Started(NamedTuple):
    """How."""

    model: Model
    options: tuple[str, ...]


def variants(model: Model, options: NativeOptions, cores: int) -> tuple[dict[str, Started], list[str]]:
    """By name; and a line on each that its server or its environment does not have."""
    found, absent = {}, []
    if idle := options.idle_threads(cores):
        found["idle cores used"] = Started(model, idle)
    else:
        absent.append("idle cores used is left out: akin serve --help has no --idle-threads")
    if not options.openvino:
        absent.append("on OpenVINO is left out: akin serve --help has no --require-provider OpenVINO")
    elif there := next(_with_openvino(model), None):
        found["on OpenVINO"] = Started(there, options.openvino + (options.idle_threads(1) or ()))
    else:
        absent.append("on OpenVINO is left out: openvino is not installed; run make setup-openvino")
    return found, absent


def _with_openvino(model: Model) -> Iterator[Model]:
    """The model in an environment that has OpenVINO: its own, else this interpreter's, which has it for the tests."""
    for environment in (model.environment, Path(sys.prefix)):
        there = replace(model, environment=environment)
        if "openvino" in machine.versions(there.python):
            yield there
