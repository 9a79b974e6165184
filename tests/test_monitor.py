"""Numbers that tell a representation from a collapsed one, and the record of a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from training.monitor import PANELS, Monitor, effective_rank, health
from training.objectives import Step


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_features_on_a_line_have_effective_rank_one() -> None:
    assert effective_rank(normal(200, 1) * normal(1, 32) + 5) == pytest.approx(1, abs=1e-3)


def test_isotropic_features_have_nearly_the_rank_of_their_dimension() -> None:
    assert 31 < effective_rank(normal(5000, 32)) <= 32.001


@pytest.mark.parametrize("dimensions", [2, 5])
def test_effective_rank_counts_the_directions_that_are_filled_evenly(dimensions: int) -> None:
    axes = torch.eye(16)[:dimensions]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(dimensions, abs=1e-3)


def test_effective_rank_of_a_known_spectrum() -> None:
    """Singular values 3 : 1 are shares of 3/4 and 1/4."""
    features = torch.tensor([[3.0, 0], [-3.0, 0], [0, 1.0], [0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(features) == pytest.approx(math.exp(entropy), abs=1e-5)


def step_with(features: Tensor) -> Step:
    return Step(torch.tensor(1.0), features, 2 * torch.eye(4))


def spread(features: Tensor) -> float:
    weight = nn.Linear(2, 1)
    weight(torch.ones(1, 2)).sum().backward()
    return health(weight, step_with(features))["feature_spread"]


def test_collapsed_features_have_no_spread_and_even_ones_one_over_the_root_of_d() -> None:
    assert spread(normal(1, 64).expand(50, 64)) == pytest.approx(0, abs=1e-6)
    assert spread(normal(4000, 64)) == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_spread_does_not_depend_on_the_size_of_features() -> None:
    assert spread(1000 * normal(50, 16)) == pytest.approx(spread(normal(50, 16)), rel=1e-4)


def test_norms_are_those_of_the_projections_and_of_all_gradients_together() -> None:
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    numbers = health(model, step_with(normal(10, 8)))
    assert numbers["projection_norm"] == pytest.approx(2)
    assert numbers["gradient_norm"] == pytest.approx(5)


def row(step: int) -> dict[str, float]:
    return dict.fromkeys(PANELS, 1.0 / step) | {"step": step, "images": 8 * step, "images_per_second": 10.0}


def test_rows_are_kept_one_a_line(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for step in (1, 2):
        monitor.log(row(step), "")
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [row(1), row(2)]
    assert monitor.rows() == [row(1), row(2)]


def test_rows_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    killed = Monitor(tmp_path)
    for step in range(1, 8):
        killed.log(row(step), "")
    assert [kept["step"] for kept in Monitor(tmp_path, step=5).rows()] == [1, 2, 3, 4, 5]


def test_a_line_that_a_kill_cut_is_dropped(tmp_path: Path) -> None:
    killed = Monitor(tmp_path)
    killed.log(row(1), "")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    again = Monitor(tmp_path, step=9)
    again.log(row(2), "")
    assert again.rows() == [row(1), row(2)]


def test_the_report_is_one_picture_of_the_whole_run(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for step in range(1, 20):
        monitor.log(row(step), "")
    monitor.draw()
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10  # something is drawn


def test_a_remark_puts_a_line_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path)
    monitor.log(row(1), "")
    assert capsys.readouterr().out == ""
    monitor.log(row(2), "3.0 min left")
    line = capsys.readouterr().out
    assert "loss 0.5000" in line
    assert "10 images/s" in line
    assert "3.0 min left" in line
