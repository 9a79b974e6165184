"""The benchmark as a whole: what a run writes, what it needs, and that it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from load_tests import bench, photos
from load_tests.pictures import encode, scene
from tests.test_visit import ENCODED, TARGETS
from tests.test_wrk import summary

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wrk_there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """wrk itself where it is installed; otherwise something that prints what it would."""
    with pytest.MonkeyPatch.context() as patch:
        if shutil.which("wrk") is None:
            stand_in = tmp_path_factory.mktemp("bin") / "wrk"
            stand_in.write_text(f"#!/bin/sh\ncat <<'END'\n{summary()}END\n")
            stand_in.chmod(0o755)
            patch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def result(wrk_there: None, seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole short run of the fronts that a model without weights has; a smaller photo stands in."""
    folder = tmp_path_factory.mktemp("bench")
    photo = photos.Photo(encode(scene(800, 600), quality=92), "a small stand-in")
    quick = ["--rounds", "1", "--seconds", "1", "--warm-up", "1", "--fronts", "native", "torchserve"]
    arguments = [*quick, "--model-store", str(seeded_store), "--environment", sys.prefix]
    written = ["--out", str(folder / "bench.json"), "--markdown", str(folder / "bench.md")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "camera_photo", lambda: photo)
        patch.setattr(bench.overload, "WARM_UP_SECONDS", 0.1)
        assert bench.main([*arguments, *written]) == 0
    return folder


def test_a_run_writes_every_row_with_its_rounds_target_and_machine(result: Path) -> None:
    written = json.loads((result / "bench.json").read_text(encoding="utf-8"))
    rows = written.pop("rows")
    assert {row["name"]: row["target"] for row in rows if row["target"]} == TARGETS
    for row in rows:
        assert row.keys() == {"name", "unit", "median", "lowest", "highest", "rounds", "target", "met"}
        assert row["median"] == row["lowest"] == row["highest"] == row["rounds"][0]
        assert row["median"] > 0 or row["name"].endswith((": failed", ": refused"))
        assert type(row["met"]) is (bool if row["target"] else type(None))
    assert written.keys() >= {"date", "commit", "cpu", "cores", "instruction_sets", "versions", "load_average", "wrk"}
    assert written["model"].startswith("tiny@")
    assert written["camera_photo"].startswith("a small stand-in, ")
    assert written["fronts"] == ["native", "torchserve"]
    assert (written["rounds"], written["seconds"], written["warm_up"]) == (1, 1, 1)


def test_a_single_part_is_measured_alone(wrk_there: None, seeded_store: Path, tmp_path: Path) -> None:
    quick = ["--rounds", "1", "--seconds", "1", "--warm-up", "1", "--fronts", "native", "--parts", "encodings"]
    arguments = [*quick, "--model-store", str(seeded_store), "--environment", sys.prefix]
    assert bench.main([*arguments, "--out", str(tmp_path / "bench.json")]) == 0
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    named = [row["name"] for row in written["rows"]]
    assert ENCODED.format("base64") in named and not [name for name in named if "floor" in name or "crowd" in name]
    assert written["parts"] == ["encodings"]


def test_the_markdown_of_a_run_has_its_rows_and_says_what_was_measured(result: Path) -> None:
    text = (result / "bench.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == len(json.loads((result / "bench.json").read_text(encoding="utf-8"))["rows"]) + 1
    assert "96 × 96 JPEG q90" in text and "tiny@" in text and "medians of 1 round" in text


def test_a_run_leaves_nothing_but_its_results(result: Path) -> None:
    assert sorted(file.name for file in result.iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_server_and_cleans_up(
    wrk_there: None, seeded_store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    environment, pid_file = tmp_path / "environment/bin", tmp_path / "pid"
    environment.mkdir(parents=True)
    python = environment / "python"  # serves by sleeping, and never becomes ready
    python.write_text(
        f'#!/bin/sh\n[ "$2" = serve ] && [ "$3" != --help ] || exec {sys.executable} "$@"\n'
        f"echo $$ >{pid_file}.new && mv {pid_file}.new {pid_file} && exec sleep 600\n"
    )
    python.chmod(0o755)
    options = ["--model-store", str(seeded_store), "--environment", str(environment.parent)]
    running = subprocess.Popen(
        [sys.executable, "-m", "load_tests.bench", *options, "--out", str(tmp_path / "out/bench.json")], cwd=ROOT
    )
    try:
        while not pid_file.exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
    finally:
        running.kill()
        running.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("", [], "wrk is not installed; on Debian and Ubuntu: apt-get install wrk"),
        (None, ["--environment", "nowhere"], "nowhere is not an environment to serve from; run make setup"),
        (None, ["--environment", sys.prefix, "--model-store", "nowhere"], "no model at nowhere"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(
    wrk_there: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str | None,
    arguments: list[str],
    words: str,
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    assert bench.main(arguments) == 1
    assert words in capsys.readouterr().err
