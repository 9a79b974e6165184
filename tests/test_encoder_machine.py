"""The cores that this process may use, whatever the machine has, and what it is called."""

import os
import re
from pathlib import Path

import pytest

from encoder import machine
from encoder.machine import commit, cores, cpu_flags, cpu_name


def test_only_the_cores_that_this_process_may_run_on_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9}, raising=False)
    assert cores() == 3


@pytest.mark.parametrize(("counted", "expected"), [(6, 6), (None, 1)])
def test_where_the_system_knows_no_affinity_all_of_the_machine_count_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, counted: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert cores() == expected


def test_the_cpu_is_the_one_that_linux_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", info)
    assert cpu_name() and cpu_flags() == []  # another system
    core = "processor\t: {}\nmodel name\t: Abacus 9000\nflags\t\t: fpu avx512_vnni\n\n"
    info.write_text(core.format(0) + core.format(1))
    assert cpu_name() == "Abacus 9000" and cpu_flags() == ["fpu", "avx512_vnni"]
    info.write_text("processor\t: 0\nFeatures\t: fp asimddp\n")
    assert cpu_name() and cpu_flags() == ["fp", "asimddp"]


def test_the_commit_is_twelve_digits_and_empty_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"([0-9a-f]{12}(-dirty)?)?", commit())
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() == ""
