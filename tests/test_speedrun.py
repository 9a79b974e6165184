"""`akin speedrun`: one line, and the same on record."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.small_run import SmallBackbone
from tests.tiny_stl10 import write_tiny_stl10
from training import pretrain, speedrun
from training.augment import Augmentation
from training.monitor import Monitor
from training.recipes import PRESETS, Pretrain

TINY = Pretrain(hidden=8, output=4, batch=20, view=Augmentation(size=16), precision="fp32", log_every=2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("data"), train=60, test=10)


def flags(data: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--out", str(out), "--preset", "tiny", "--size", "16", "--device", "cpu", *more]


def records(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_a_speedrun_prints_one_line_and_adds_it_to_the_records(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for _ in range(2):
        assert speedrun.main(flags(data, tmp_path, "--epochs", "2")) == 0
        lines.append(capsys.readouterr().out)
    assert [line.count("\n") for line in lines] == [1, 1]
    first, second = records(tmp_path)
    assert (first["images"], first["pool"], first["preset"]) == (120, 60, "tiny")
    assert (first["linear"], first["knn20"]) == (second["linear"], second["knn20"])  # of one seed
    assert (
        f"linear {first['linear']:.1f}, 20-NN {first['knn20']:.1f} inside the train labels at 16 px; 120 images"
        in (lines[0])
    )
    for told in (*first["made"].values(), first["date"], f"{first['images_per_second']:,.0f} images/s"):  # type: ignore[attr-defined]
        assert str(told) in lines[0]
    assert (tmp_path / "1" / "checkpoint.pt").exists()
    assert (tmp_path / "2" / "checkpoint.pt").exists()


def test_the_clock_runs_for_the_minutes_asked_for(data: Path, tmp_path: Path) -> None:
    assert speedrun.main(flags(data, tmp_path, "--minutes", "0.005")) == 0
    (record,) = records(tmp_path)
    assert record["minutes"] == pytest.approx(0.005, abs=0.02)
    assert record["knobs"]["minutes"] == 0.005  # type: ignore[index]
    assert record["images"] > 0  # type: ignore[operator]


def test_without_labels_it_says_how_to_get_them_before_it_trains(tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", np.zeros((40, 8, 8, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"no labelled STL-10.*download=True"):
        speedrun.main(flags(tmp_path / "pool.npy", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_labels_may_lie_elsewhere(data: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), np.uint8))
    assert speedrun.main(flags(tmp_path / "pool.npy", tmp_path, "--labels", str(data), "--epochs", "1")) == 0
    (record,) = records(tmp_path)
    assert record["judged"] == {"labels": str(data), "size": 16}
    assert record["pool"] == 40


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"size": 0}])
def test_lengths_that_make_no_run_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        speedrun.Speedrun(**wrong)
