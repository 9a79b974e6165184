"""What a run may be asked for besides: an earlier encoder to begin with, a moving average, any method, a watch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pictures import scene
from tests.small_run import SmallBackbone
from tests.tiny_stl10 import write_tiny_stl10
from training import checkpoint, pretrain
from training.augment import Augmentation
from training.checkpoint import Run, load_backbone, save
from training.data import Pool, load_pool
from training.monitor import Monitor
from training.objectives import Batch, Objective, Step
from training.pretrain import train
from training.recipes import Pretrain

CPU = torch.device("cpu")
VIEW = Augmentation(size=16)
SMALL = Pretrain(
    hidden=16, output=8, batch=8, epochs=1, view=VIEW, precision="fp32", device="cpu", log_every=1, tensorboard=False
)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pretrain, checkpoint):
        monkeypatch.setattr(module, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """34 generated pictures of 24 px: four batches of eight an epoch, two left over."""
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, np.stack([np.array(scene(24, 24, seed=seed)) for seed in range(34)]))
    return load_pool([str(file)], 96, CPU)


def trained(config: Pretrain, pool: Pool, out: Path) -> Run:
    out.mkdir(exist_ok=True)
    run = pretrain.start(config, CPU)
    train(run, pool, out, quiet=True)
    return run


def rows(out: Path) -> list[dict[str, Any]]:
    return Monitor(out, 10**9).rows()


@pytest.fixture
def around_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Run], Any]], list[tuple[Any, Any]]]:
    """Has `look(run)` called before and after each training step; what it gave comes in pairs."""

    def install(look: Callable[[Run], Any]) -> list[tuple[Any, Any]]:
        seen: list[tuple[Any, Any]] = []
        step = pretrain.train_step

        def watched(run: Run, *rest: Any) -> Step:
            before = look(run)
            result = step(run, *rest)
            seen.append((before, look(run)))
            return result

        monkeypatch.setattr(pretrain, "train_step", watched)
        return seen

    return install


# Beginning with an earlier encoder


@pytest.fixture
def earlier(pool: Pool, tmp_path: Path) -> str:
    """A checkpoint of one epoch."""
    trained(replace(SMALL, seed=5), pool, tmp_path / "earlier")
    return str(tmp_path / "earlier" / "checkpoint.pt")


def test_a_run_with_init_begins_with_those_weights_and_heads_of_its_own(earlier: str) -> None:
    run = pretrain.start(replace(SMALL, init=earlier), CPU)
    for name, value in load_backbone(earlier).state_dict().items():
        assert torch.equal(run.model.backbone.state_dict()[name], value), name
    state = torch.load(earlier, weights_only=True)["model"]
    assert not torch.equal(run.model.head[0].weight, state["head.0.weight"])
    assert (run.step, run.images) == (0, 0)
    assert run.begun_with["images"] == 32


def test_in_the_head_start_only_the_heads_learn_and_then_everything_does(
    earlier: str, pool: Pool, tmp_path: Path, around_steps: Any
) -> None:
    seen = around_steps(
        lambda run: [w.detach().clone() for w in (run.model.backbone.net[0].weight, run.model.head[0].weight)]
    )
    trained(replace(SMALL, init=earlier, epochs=2, head_start=0.5), pool, tmp_path / "run")
    moved = [tuple(not torch.equal(*pair) for pair in zip(*both, strict=True)) for both in seen]
    assert moved == [(False, True)] * 4 + [(True, True)] * 4


def test_a_run_with_init_is_resumed_without_the_earlier_file(earlier: str, pool: Pool, tmp_path: Path) -> None:
    trained(replace(SMALL, init=earlier), pool, tmp_path / "run")
    Path(earlier).unlink()
    again = pretrain.resume(tmp_path / "run", CPU)
    assert again.knobs.init == earlier
    assert again.begun_with["objective"] == "SimCLR, decoupled (DCL)"


def test_weights_of_another_kind_are_refused_with_the_flag_that_fits(tmp_path: Path) -> None:
    save(pretrain.start(replace(SMALL, stem="small"), CPU), tmp_path)
    with pytest.raises(SystemExit, match="holds a backbone with stem small, not standard; add --stem small"):
        pretrain.start(replace(SMALL, init=str(tmp_path / "checkpoint.pt")), CPU)


def test_a_run_of_another_version_is_refused_by_the_knobs_that_differ(pool: Pool, tmp_path: Path) -> None:
    trained(SMALL, pool, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    saved = json.loads(state["knobs"])
    del saved["method"], saved["view"]["rotate"]
    torch.save(state | {"knobs": json.dumps(saved)}, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"of akin: method, view.rotate differ; .* --init .*checkpoint\.pt"):
        pretrain.resume(tmp_path, CPU)


def test_a_run_of_another_method_is_refused_by_name(pool: Pool, tmp_path: Path) -> None:
    trained(replace(SMALL, method="byol"), pool, tmp_path)
    run = pretrain.resume(tmp_path, CPU)
    with pytest.raises(SystemExit, match="is a run with method byol, not moco: --resume goes on with the run's own"):
        pretrain.refuse_other_settings(replace(SMALL, method="moco"), run, ())


@pytest.mark.parametrize(("typed", "name"), [("method", "method byol, not simclr"), ("batch", "batch 4, not 8")])
def test_a_flag_that_asks_for_the_default_is_a_wish_too(typed: str, name: str) -> None:
    run = pretrain.start(replace(SMALL, method="byol", batch=4), CPU)
    pretrain.refuse_other_settings(Pretrain(), run, ())
    with pytest.raises(SystemExit, match=f"is a run with {name}"):
        pretrain.refuse_other_settings(replace(Pretrain(), batch=8), run, {typed})


def test_a_flag_of_a_view_that_agrees_with_the_run_is_no_other_setting() -> None:
    run = pretrain.start(SMALL, CPU)
    pretrain.refuse_other_settings(Pretrain(view=Augmentation(size=16)), run, {"view.size"})
    with pytest.raises(SystemExit, match=r"with view\.size 16, not 32"):
        pretrain.refuse_other_settings(Pretrain(view=Augmentation(size=32)), run, {"view.size"})


# The moving average


def test_the_moving_average_is_that_of_the_weights_after_each_step(
    pool: Pool, tmp_path: Path, around_steps: Any
) -> None:
    seen = around_steps(lambda run: run.model.backbone.net[0].weight.detach().clone())
    run = trained(replace(SMALL, ema=0.75), pool, tmp_path)
    expected = seen[0][0]
    for _, weight in seen:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(run.kept.net[0].weight, expected)
    again = pretrain.resume(tmp_path, CPU)
    assert torch.equal(again.kept.net[0].weight, run.kept.net[0].weight)
    assert again.average is not None


# What a method may ask for, without a word in pretrain


class Targets(Objective):
    """Three views of two sizes, a target for every image, and a norm kept after each step."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Linear(512, 4, bias=False)
        self.register_buffer("targets", torch.arange(34.0)[:, None].expand(34, 4).contiguous())
        self.seen: list[list[int]] = []
        self.progress: list[float] = []

    def views(self, view: Augmentation) -> tuple[Augmentation, ...]:
        return view, view, replace(view, size=8)

    def before_step(self, progress: float) -> None:
        self.progress.append(progress)

    def forward(self, batch: Batch) -> Step:
        self.seen.append([len(batch.rows), *(view.shape[-1] for view in batch.views)])
        features = torch.cat([self.backbone(view) for view in batch.views])
        projections = self.head(features)
        loss = (projections - self.targets[batch.rows].repeat(3, 1)).square().mean()
        return Step(loss, features, projections)

    def after_step(self) -> None:
        with torch.no_grad():
            self.head.weight /= self.head.weight.norm()


def test_views_of_several_sizes_targets_of_images_and_hooks_reach_a_method(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "build", lambda config, backbone: Targets(backbone))
    run = trained(SMALL, pool, tmp_path)
    assert isinstance(run.model, Targets)
    assert run.model.seen == [[8, 16, 16, 8]] * 4
    assert run.model.progress == [0, 0.25, 0.5, 0.75]
    assert run.model.head.weight.norm().item() == pytest.approx(1)
    assert all("alignment" not in row for row in rows(tmp_path)), "three views are no pairs"


def test_the_temperature_follows_the_schedule(pool: Pool, tmp_path: Path) -> None:
    run = trained(replace(SMALL, epochs=2, temperature=0.5, temperature_end=0.1), pool, tmp_path)
    expected = 0.1 + 0.4 * 0.5 * (1 + np.cos(np.pi * 7 / 8))  # as of the last step
    assert float(run.model.temperature.value) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["moco", "byol", "simsiam", "barlow", "vicreg"])
def test_a_killed_run_of_any_method_goes_on_as_if_it_had_not_been(
    method: Any, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, method=method, epochs=2, ema=0.9)
    whole = trained(config, pool, tmp_path / "whole")
    out, step = tmp_path / "killed", pretrain.train_step

    class Killed(Exception):
        pass

    def killed(run: Run, *rest: Any) -> Step:
        if run.step == 3:
            save(run, out)
            raise Killed
        return step(run, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretrain, "train_step", killed)
        trained(config, pool, out)
    again = pretrain.resume(out, CPU)
    train(again, pool, out, quiet=True)
    assert again.step == 8
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)


# What is said on the way


class Collapsed(SmallBackbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = super().forward(x)
        return 0 * features + 1 + 1e-6 * features.mean()


def test_a_collapse_is_said_once_and_the_run_goes_on(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain, "Backbone", Collapsed)
    assert trained(replace(SMALL, epochs=4), pool, tmp_path).step == 16
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if "--stop-on-collapse would end the run here" in line]) == 1


def test_a_collapse_stops_the_run_where_that_is_asked_for(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "Backbone", Collapsed)
    with pytest.raises(SystemExit, match=r"collapse.* stopped at step \d+, as --stop-on-collapse asks"):
        trained(replace(SMALL, epochs=4, stop_on_collapse=True), pool, tmp_path)


def test_neighbours_are_watched_on_the_way_and_at_the_end(pool: Pool, tmp_path: Path) -> None:
    labelled = write_tiny_stl10(tmp_path / "labelled")
    trained(replace(SMALL, watch=str(labelled), watch_minutes=60), pool, tmp_path / "run")
    assert ["knn20" in row for row in rows(tmp_path / "run")] == [False, False, False, True]
    assert 0 <= rows(tmp_path / "run")[-1]["knn20"] <= 100
