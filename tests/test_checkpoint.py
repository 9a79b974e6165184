"""A run on disk: whole after any kill, never of broken weights, and a backbone that comes back from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.small_run import SmallBackbone
from tests.tiny_stl10 import lively_backbone, write_checkpoint
from training import pretrain
from training.checkpoint import Run, load_backbone, read, require_finite, restore, save
from training.recipes import Pretrain

CPU = torch.device("cpu")
SMALL = Pretrain(hidden=16, output=8, device="cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    return pretrain.start(SMALL, CPU)


@pytest.mark.parametrize("stem", ["standard", "small"])
def test_a_checkpoint_gives_back_the_backbone_of_its_run(tmp_path: Path, stem: str) -> None:
    loaded, expected = load_backbone(str(write_checkpoint(tmp_path, stem))), lively_backbone(stem)
    assert loaded.stem == stem
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_where_a_run_kept_a_moving_average_that_is_its_backbone(tmp_path: Path) -> None:
    run = pretrain.start(replace(SMALL, ema=0.9), CPU)
    assert run.average is not None
    kept = lively_backbone(seed=3).state_dict()
    run.average.load_state_dict(kept)
    save(run, tmp_path)
    loaded = load_backbone(str(tmp_path / "checkpoint.pt"))
    for name, value in kept.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not torch.equal(run.model.backbone.net.conv1.weight, loaded.net.conv1.weight)


def test_a_backbone_with_group_norm_comes_back_as_one(tmp_path: Path) -> None:
    run = pretrain.start(replace(SMALL, norm="group"), CPU)
    save(run, tmp_path)
    loaded = load_backbone(str(tmp_path / "checkpoint.pt"))
    assert loaded.norm == "group"
    assert torch.equal(loaded.net.layer4[1].bn2.weight, run.model.backbone.net.layer4[1].bn2.weight)


def test_weights_that_lack_a_layer_are_refused_by_its_name(tmp_path: Path) -> None:
    state = torch.load(write_checkpoint(tmp_path / "run"), weights_only=True)
    del state["model"]["backbone.net.layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"missing \['net\.layer2\.0\.conv1\.weight'\]"):
        load_backbone(str(tmp_path / "checkpoint.pt"))


def test_missing_weights_are_refused_with_the_way_out() -> None:
    with pytest.raises(SystemExit, match=r"no weights at nowhere\.pt; name a run's checkpoint\.pt or an exported"):
        load_backbone("nowhere.pt")


def test_random_weights_are_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = load_backbone("random", "small").net.conv1.weight
    torch.rand(1000)
    assert torch.equal(load_backbone("random", "small").net.conv1.weight, first)


def test_a_checkpoint_needs_none_of_pickles_powers(run: Run, tmp_path: Path) -> None:
    run.begun_with = {"objective": "BYOL", "images": 3, "recipe": {"batch": 8}}
    save(run, tmp_path)
    assert read(tmp_path, CPU)["begun_with"] == run.begun_with  # read with weights_only


def test_what_is_restored_goes_on_where_it_stood(run: Run, tmp_path: Path) -> None:
    run.step, run.seconds, run.images, run.begun_with = 7, 8.5, 9, {"objective": "BYOL"}
    save(run, tmp_path)
    again = pretrain.start(replace(SMALL, seed=1), CPU)
    restore(again, read(tmp_path, CPU))
    assert (again.step, again.seconds, again.images, again.begun_with) == (7, 8.5, 9, {"objective": "BYOL"})
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(run: Run, tmp_path: Path) -> None:
    save(run, tmp_path)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        run.model.head[0].weight[0, 0] = float("nan")
    with pytest.raises(SystemExit, match=r"weights are no longer finite .* holds the last good state"):
        save(run, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_a_loss_that_is_not_finite_names_step_rate_and_the_last_good_checkpoint(run: Run, tmp_path: Path) -> None:
    require_finite(run, tmp_path, 3.0)
    run.step = 12
    with pytest.raises(SystemExit, match=r"the loss became inf at step 12 \(learning rate 0\.05\); .*written yet"):
        require_finite(run, tmp_path, float("inf"))


def test_there_is_nothing_to_go_on_with_where_no_run_was(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"to go on with; leave out --resume to start a run"):
        read(tmp_path, CPU)


def test_files_that_are_not_ours_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    for name in ("foreign.safetensors", "foreign.pt"):
        with pytest.raises(SystemExit, match=f"{name} is not from akin: it does not say which backbone it holds"):
            load_backbone(str(tmp_path / name))
    with pytest.raises(SystemExit, match=r"there are no weights at .*; name a run's checkpoint"):
        load_backbone(str(tmp_path))
