"""What a run says it was made with."""

import re

import pytest
import torch

from training import machine
from training.machine import made_with, pick_device


def test_the_record_names_machine_library_and_commit() -> None:
    made = made_with(torch.device("cpu"))
    assert re.fullmatch(r"\d+ cores of .+, \w+", made["machine"])
    assert made["torch"] == torch.__version__
    assert re.fullmatch(r"([0-9a-f]{12}(-dirty)?)?", made["commit"])


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cuda") == torch.device("cuda")


def test_of_several_processes_each_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.distributed, "world", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert pick_device("auto") == torch.device("cuda", 3)
