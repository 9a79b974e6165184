"""`akin ablate`: every run once, whatever happens to the sweep, and nothing else under the same name."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_run import SmallBackbone
from tests.tiny_stl10 import write_tiny_stl10
from training import ablate, comparison, pretrain
from training.augment import Augmentation
from training.comparison import Outcome
from training.monitor import Monitor
from training.recipes import PRESETS, Pretrain

TINY = Pretrain(hidden=8, output=4, batch=20, view=Augmentation(size=16), precision="fp32", log_every=2)
FLAGS = ("--preset", "tiny", "--epochs", "2", "--size", "16", "--device", "cpu")
VALUES = ("0.1", "0.5")


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """A network of a few weights behind a preset of its own, and no pictures but the sweep's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "Backbone", SmallBackbone)
        patch.setattr(Monitor, "draw", lambda self: None)
        patch.setitem(PRESETS, "tiny", TINY)
        yield patch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled images of STL-10's layout: three steps an epoch."""
    return write_tiny_stl10(tmp_path_factory.mktemp("data"), train=60, test=10)


@pytest.fixture(scope="module")
def swept(small: pytest.MonkeyPatch, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole sweep: two temperatures, two seeds."""
    out, draw = tmp_path_factory.mktemp("sweeps") / "temperature", comparison.draw
    whole = len(VALUES) * 2 + 2
    with pytest.MonkeyPatch.context() as patch:  # to draw it takes longer than a run here, so not after each
        patch.setattr(comparison, "draw", lambda *args: draw(*args) if len(args[1]) == whole else None)
        assert sweep(data, out) == 0
    return out


@pytest.fixture
def quick(small: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot: it is drawn after each run, and slower than the run."""
    monkeypatch.setattr(comparison, "draw", lambda *_: None)


def sweep(data: Path, out: Path, *flags: str, name: str = "temperature") -> int:
    values = () if "--values" in flags else ("--values", *VALUES)
    return ablate.main([name, "--data", str(data), "--out", str(out), *FLAGS, *values, *flags])


def results(out: Path) -> dict[str, Outcome]:
    return {file.parent.name: Outcome.read(file) for file in sorted(out.glob("*/result.json"))}


def table_rows(out: Path) -> dict[str, list[str]]:
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row for row in cells}


def nothing_trains(*_: Any, **__: Any) -> None:
    raise AssertionError("a run was started")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Temperature and step of every run that trains, as it begins to."""
    seen: list[tuple[float, int]] = []
    train = pretrain.train

    def watched(run: pretrain.Run, *rest: Any, **how: Any) -> None:
        seen.append((run.knobs.temperature, run.step))
        train(run, *rest, **how)

    monkeypatch.setattr(pretrain, "train", watched)
    return seen


def test_a_sweep_leaves_a_run_for_each_value_and_seed_a_table_a_plot_and_every_number(swept: Path) -> None:
    names = {f"{value}-seed{seed}" for value in ("random", *VALUES) for seed in (0, 1)}
    assert results(swept).keys() == names
    assert list(table_rows(swept))[1:] == ["random", *VALUES]
    assert (swept / "plot.png").stat().st_size > 10_000
    summary = json.loads((swept / "ablation.json").read_text())
    assert {f"{run['value']}-seed{run['seed']}" for run in summary["runs"]} == names


def test_each_run_is_trained_with_its_value_and_seed_and_the_rest_alike(swept: Path) -> None:
    for name, outcome in results(swept).items():
        value, seed = name.split("-seed")
        assert (outcome.value, outcome.seed, outcome.knobs["seed"]) == (value, int(seed), int(seed))
        assert outcome.knobs["temperature"] == (0.1 if value == "random" else float(value))
        assert outcome.knobs["batch"] == 20
        assert outcome.numbers["images"] == (0 if value == "random" else 120)
        assert outcome.numbers["epochs"] == (0 if value == "random" else 2)


def test_gradient_norms_are_those_that_the_run_logged(swept: Path) -> None:
    folder = swept / "0.5-seed1"
    logged = [json.loads(line)["gradient_norm"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 6  # every step: twice as often as the preset's every second
    numbers = results(swept)["0.5-seed1"].numbers
    assert numbers["gradient_norm"] == pytest.approx(np.mean(logged))
    assert numbers["gradient_norm_median"] == pytest.approx(np.median(logged))
    assert "gradient_norm" not in results(swept)["random-seed0"].numbers


def test_the_table_has_mean_and_deviation_over_seeds(swept: Path) -> None:
    runs = [results(swept)[f"0.5-seed{seed}"].numbers["linear"] for seed in (0, 1)]
    row = table_rows(swept)["0.5"]
    assert row[1:3] == ["2", f"{np.mean(runs):.1f} ± {np.std(runs, ddof=1):.1f}"]


def test_the_same_command_again_trains_nothing(
    swept: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (swept / "table.md").read_text()
    monkeypatch.setattr(pretrain, "start", nothing_trains)
    assert sweep(data, swept) == 0
    assert (swept / "table.md").read_text() == before
    printed = capsys.readouterr().out
    assert "values 2, seeds 2, runs 4, to do 0" in printed
    assert before in printed


def test_another_value_joins_those_that_are_there(
    swept: Path, data: Path, quick: None, begun: list[tuple[float, int]]
) -> None:
    assert sweep(data, swept, "--values", "0.2", "--seeds", "1") == 0
    assert begun == [(0.2, 0)]
    assert set(table_rows(swept)) >= {"0.1", "0.2", "0.5"}


def test_a_run_that_was_killed_goes_on_where_its_checkpoint_left_it(
    data: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[tuple[float, int]]
) -> None:
    whole, broken, save = tmp_path / "whole", tmp_path / "broken", pretrain.save
    monkeypatch.setitem(PRESETS, "tiny", replace(TINY, checkpoint_minutes=0))
    assert sweep(data, whole, "--seeds", "1") == 0

    def killed_in_the_second_run(run: pretrain.Run, out: Path) -> None:
        save(run, out)
        if run.step == 4 and run.knobs.temperature == 0.5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "save", killed_in_the_second_run)
        sweep(data, broken, "--seeds", "1")
    assert set(results(broken)) == {"random-seed0", "0.1-seed0"}
    assert list(table_rows(broken))[1:] == ["random", "0.1"]
    begun.clear()
    assert sweep(data, broken, "--seeds", "1") == 0
    assert begun == [(0.5, 4)]
    for name, outcome in results(whole).items():
        expected, found = outcome.numbers, results(broken)[name].numbers
        assert found == pytest.approx(expected | {"seconds": found["seconds"]}, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--epochs", "3"), "is a run with epochs 2, not 3"),
        (("--limit", "50"), "is a run with limit 0, not 50"),
        (("--size", "24"), "is a run with judged.size 16, not 24"),
    ],
)
def test_settings_that_differ_from_what_is_there_are_refused_by_name(
    swept: Path, data: Path, quick: None, flags: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(SystemExit, match=f"{reason}.*another --out"):
        sweep(data, swept, *flags)


def test_an_unfinished_run_with_other_settings_is_refused_too(
    swept: Path, data: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "0.1-seed0"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes((swept / "0.1-seed0" / "checkpoint.pt").read_bytes())
    monkeypatch.setitem(PRESETS, "tiny", replace(TINY, view=replace(TINY.view, blur=0.25)))
    with pytest.raises(SystemExit, match=r"0\.1-seed0 is a run with view\.blur 0\.5, not 0\.25"):
        sweep(data, tmp_path)


def test_another_ablation_does_not_go_into_the_same_folder(swept: Path, data: Path, quick: None) -> None:
    with pytest.raises(SystemExit, match="holds the ablation temperature, not batch"):
        sweep(data, swept, "--values", "10", name="batch")


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(data: Path, quick: None, tmp_path: Path) -> None:
    assert sweep(data, tmp_path, "--values", "1e-40", "0.2", "--seeds", "1") == 0  # similarities / 1e-40 are infinite
    found = results(tmp_path)
    assert "the loss became nan" in found["1e-40-seed0"].diverged
    assert found["1e-40-seed0"].numbers == {}
    assert found["0.2-seed0"].numbers["linear"] > 0
    rows = table_rows(tmp_path)
    assert rows["1e-40"][-1].startswith("diverged: the loss became nan at step 1")
    assert rows["1e-40"][2] == "–"
    assert rows["0.2"][-1] == "–"


def test_a_batch_that_the_images_do_not_fill_is_refused_before_anything_trains(
    data: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "start", nothing_trains)
    with pytest.raises(SystemExit, match="60 images do not fill a batch of 64"):
        sweep(data, tmp_path, "--values", "20", "64", name="batch")


def test_the_estimate_is_of_what_is_left(tmp_path: Path) -> None:
    config = ablate.Ablate(preset="cpu", minutes=6, seeds=2, out=str(tmp_path))
    trials = ablate.trials_of("batch", config, tmp_path)
    assert ablate.estimate("batch", config, trials) == (
        "batch: values 4, seeds 2, runs 8, to do 8; 6 min each, about 53 min with judging"
    )
    trials[1].result.parent.mkdir()
    trials[1].result.touch()
    assert "to do 7; 6 min each, about 46 min" in ablate.estimate("batch", config, trials)


def test_minutes_give_the_length_of_each_run_unless_epochs_do(tmp_path: Path) -> None:
    by_clock = ablate.trials_of("head", ablate.Ablate(minutes=3), tmp_path)
    assert {(trial.config.minutes, trial.config.watch) for trial in by_clock} == {(3, "")}
    by_epochs = ablate.trials_of("head", ablate.Ablate(epochs=2), tmp_path)
    assert {(trial.config.minutes, trial.config.epochs) for trial in by_epochs} == {(0, 2)}


def test_all_values_have_a_seed_before_any_has_the_next(tmp_path: Path) -> None:
    trials = ablate.trials_of("head", ablate.Ablate(seeds=2), tmp_path)
    assert [trial.config.seed for trial in trials] == [0] * 5 + [1] * 5
    assert [trials[0].value, trials[5].value] == ["random", "random"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["everything"], "no ablation 'everything'; there are temperature, augmentation"),
        (["head", "--preset", "none"], "no preset 'none'; take one of"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(flags: list[str], reason: str) -> None:
    with pytest.raises(SystemExit, match=reason):
        ablate.main(flags)


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"minutes": 0}, {"size": 0}])
def test_lengths_that_make_no_sweep_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ablate.Ablate(**wrong)


def test_help_lists_the_sweeps_and_says_how_long_one_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main(["--help"]) == 0
    assert "0.05 0.07 0.1 0.2 0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ablate.main(["temperature", "--help"])
    assert "5 × seeds × minutes, 80 minutes" in " ".join(capsys.readouterr().out.split())
