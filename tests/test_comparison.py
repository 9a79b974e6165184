"""The table, the plot and the correlation that a sweep's runs come to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import comparison
from training.ablations import SWEEPS
from training.comparison import COLUMNS, RANDOM, Outcome

MADE = {"machine": "2 cores of a test", "torch": "2", "commit": "abc"}


def outcome(value: str, seed: int = 0, linear: float = 50.0, norm: float = 1.0, diverged: str = "") -> Outcome:
    numbers = dict.fromkeys(COLUMNS, 1.0) | {"linear": linear, "gradient_norm": norm, "images": 2000}
    if value == RANDOM:
        del numbers["gradient_norm"], numbers["gradient_norm_median"]
    knobs = {"minutes": 8.0, "epochs": 100}
    judged = {"labels": "data", "size": 64}
    return Outcome(value, seed, {} if diverged else numbers, diverged, knobs, judged, MADE, "2026-11-24")


def whole_sweep(name: str) -> list[Outcome]:
    """Two seeds of every value, and of random weights."""
    rng = np.random.default_rng(0)
    return [
        outcome(value, seed, float(rng.uniform(40, 60)), float(rng.uniform(0.1, 9)))
        for seed in (0, 1)
        for value in (RANDOM, *SWEEPS[name].values)
    ]


def cells(table: str) -> dict[str, list[str]]:
    """First cell -> the others, of the lines of the table."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_table_has_random_weights_first_and_then_every_value(name: str) -> None:
    rows = list(cells(comparison.table(SWEEPS[name], whole_sweep(name))))
    assert rows == [SWEEPS[name].axis, RANDOM, *SWEEPS[name].values]


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds() -> None:
    found = comparison.table(SWEEPS["head"], [outcome("1024-128", seed, x) for seed, x in enumerate((50, 53, 54))])
    assert cells(found)["1024-128"][:2] == ["3", "52.3 ± 2.1"]


def test_numbers_are_in_their_order_in_whatever_order_they_were_run() -> None:
    runs = [outcome(value) for value in ("128", RANDOM, "64", "1024")]
    assert list(cells(comparison.table(SWEEPS["batch"], runs)))[1:] == [RANDOM, "64", "128", "1024"]


def test_a_single_run_has_no_deviation() -> None:
    assert cells(comparison.table(SWEEPS["head"], [outcome("256-64", linear=51.26)]))["256-64"][:2] == ["1", "51.3"]


def test_random_weights_have_no_gradients() -> None:
    row = cells(comparison.table(SWEEPS["batch"], whole_sweep("batch")))[RANDOM]
    headings = [heading for heading, _ in COLUMNS.values()]
    assert row[1 + headings.index("gradient norm, mean")] == "–"
    assert row[1 + headings.index("linear %")] != "–"


def test_the_table_says_how_short_the_runs_were_and_where_they_ran() -> None:
    text = comparison.table(SWEEPS["batch"], [outcome(RANDOM), outcome("64"), outcome("128")])
    assert "Short runs: 8 minutes of training each, 2,000 images seen (1 epochs)." in text
    assert "2 cores of a test, torch 2, commit abc; 2026-11-24" in text
    assert "inside the train labels of data, at 64 px" in text
    of_epochs = replace(outcome("64"), knobs={"minutes": 0.0, "epochs": 3})
    assert "Short runs: 3 epochs each" in comparison.table(SWEEPS["batch"], [outcome(RANDOM), of_epochs])


def test_a_diverged_run_is_in_its_values_row_and_not_in_its_mean() -> None:
    runs = [outcome("64", 0, 50.0), outcome("64", 1, diverged="the loss became nan | at once"), outcome("128")]
    row = cells(comparison.table(SWEEPS["batch"], runs))
    assert row["64"][:2] == ["2", "50.0"]
    assert row["64"][-1] == "diverged: the loss became nan \\| at once"
    assert row["128"][-1] == "–"


def test_a_sweep_that_diverged_in_every_run_still_has_its_table_and_plot(tmp_path: Path) -> None:
    runs = [outcome(RANDOM), outcome("64", diverged="the loss became nan")]
    assert "No run has come to its end yet." in comparison.table(SWEEPS["batch"], runs)
    comparison.draw(SWEEPS["batch"], runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_correlation_is_of_logarithms_and_of_ranks() -> None:
    runs = whole_sweep("augmentation")
    trained = [run.numbers for run in runs if run.value != RANDOM]
    logs = np.log([numbers["gradient_norm"] for numbers in trained])
    linear = np.array([numbers["linear"] for numbers in trained])
    found = comparison.correlation(runs)
    assert found is not None
    ranks = [values.argsort().argsort() for values in (logs, linear)]
    assert found.pearson == pytest.approx(np.corrcoef(logs, linear)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.runs == 12


def test_accuracy_that_grows_with_every_factor_of_ten_correlates_fully() -> None:
    runs = [outcome("crop", seed, linear=40 + 5 * seed, norm=10.0**seed) for seed in range(4)]
    assert comparison.correlation(runs) == pytest.approx((1, 1, 4))


@pytest.mark.parametrize("runs", [[], [outcome("crop")] * 2, [outcome("crop")] * 5])
def test_where_nothing_differs_nothing_correlates(runs: list[Outcome]) -> None:
    assert comparison.correlation(runs) is None


def test_only_the_augmentation_table_tells_of_gradients_and_accuracy() -> None:
    texts = {name: comparison.table(SWEEPS[name], whole_sweep(name)) for name in SWEEPS}
    assert [name for name, text in texts.items() if "Pearson" in text] == ["augmentation"]
    assert "over 12 runs" in texts["augmentation"]


@pytest.mark.parametrize(("name", "panels"), [("temperature", 3), ("augmentation", 2), ("head", 1)])
def test_the_plot_has_its_panels(name: str, panels: int, tmp_path: Path) -> None:
    comparison.draw(SWEEPS[name], whole_sweep(name), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == pytest.approx(panels * 5.5 * 110, abs=2)


@pytest.mark.parametrize("name", ["temperature", "augmentation"])
def test_a_sweep_that_has_only_begun_is_drawn_too(name: str, tmp_path: Path) -> None:
    comparison.draw(SWEEPS[name], [outcome(RANDOM)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_summary_holds_every_number_as_json() -> None:
    found = json.loads(
        json.dumps(comparison.summary("temperature", SWEEPS["temperature"], whole_sweep("temperature")))
    )
    assert found["ablation"] == "temperature"
    assert [row["value"] for row in found["rows"]] == [RANDOM, *SWEEPS["temperature"].values]
    values = [run["numbers"]["linear"] for run in found["runs"] if run["value"] == "0.1"]
    row = next(row for row in found["rows"] if row["value"] == "0.1")
    assert row["linear"]["mean"] == pytest.approx(np.mean(values))
    assert row["linear"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert {run["made"]["machine"] for run in found["runs"]} == {MADE["machine"]}


def test_an_outcome_comes_back_from_its_file(tmp_path: Path) -> None:
    for run in (outcome("0.1"), outcome("0.5", diverged="too hot")):
        run.write(tmp_path / "result.json")
        assert Outcome.read(tmp_path / "result.json") == run
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
