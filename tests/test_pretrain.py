"""Pretraining: recipes, schedule, data order, kill and resume, and what happens when it goes wrong."""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.pictures import scene
from tests.small_run import SmallBackbone
from training import pretrain
from training.augment import Augmentation
from training.checkpoint import Run
from training.data import Pool, load_pool
from training.monitor import Monitor
from training.pretrain import orders, train
from training.recipes import PRESETS, Pretrain
from training.schedule import rate_factor

ROOT = Path(__file__).parents[1]
REAL_IMAGES = ROOT.parent / "shared" / "data" / "stl10-train.zip"
CPU = torch.device("cpu")
VIEW = Augmentation(size=16)
SMALL = Pretrain(
    hidden=16, output=8, batch=8, view=VIEW, precision="fp32", log_every=1, device="cpu", epochs=15, tensorboard=False
)
KILLED_IN_SAVE = 36


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .npy of 34 generated pictures of 24 px: four batches of eight an epoch, two left over."""
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, np.stack([np.array(scene(24, 24, seed=seed)) for seed in range(34)]))
    return file


@pytest.fixture(scope="module")
def pool(images: Path) -> Pool:
    return load_pool([str(images)], 96, CPU)


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in Monitor(out, step=10**9).rows()}


def trained(config: Pretrain, pool: Pool, out: Path) -> Run:
    run = pretrain.start(config, CPU)
    train(run, pool, out, quiet=True)
    return run


# Recipes


def test_the_literal_preset_is_the_articles_recipe_to_the_number() -> None:
    literal = PRESETS["literal"]
    printed = {
        "stem": "standard",
        "hidden": 2048,
        "output": 512,
        "head_norm": False,
        "temperature": 0.07,
        "decoupled": False,
        "optimizer": "sgd",
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.0,
        "batch": 256,
        "epochs": 100,
        "minutes": 0.0,
        "limit": 0,
    }
    assert {name: value for name, value in asdict(literal).items() if name in printed} == printed
    strengths = asdict(literal.view)
    assert all(
        strengths[name] > 0 for name in ("flip", "jitter", "grayscale", "blur")
    )  # all five of its augmentations
    assert literal.view.scale[0] < 1


@pytest.mark.usefixtures("small_network")
def test_the_literal_preset_steps_everything_with_one_sgd_and_normalises_no_projection() -> None:
    run = pretrain.start(PRESETS["literal"], CPU)
    (optimizer,) = run.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 0.9, 1e-4, False)
    assert len(group["params"]) == len(list(run.model.parameters()))
    assert [type(layer).__name__ for layer in run.model.head] == ["Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
@pytest.mark.usefixtures("small_network")
def test_our_presets_give_matrices_to_muon_and_vectors_to_sgd(preset: str) -> None:
    run = pretrain.start(PRESETS[preset], CPU)
    muon, sgd = run.optimizers
    assert type(muon).__name__ == "Muon"
    assert {p.ndim for p in muon.param_groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in sgd.param_groups[0]["params"]} == {1}
    assert run.peaks == [0.05, 0.06]
    given = sum(len(optimizer.param_groups[0]["params"]) for optimizer in run.optimizers)
    assert given == len(list(run.model.parameters()))


# Schedule


@pytest.mark.usefixtures("small_network")
def test_a_run_of_minutes_ends_by_the_clock_whatever_its_epochs(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count(step=6)  # a clock that a step moves by six seconds
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    run = trained(replace(SMALL, minutes=1, epochs=1, warmup=0), pool, tmp_path)
    assert run.step == 10
    assert run.seconds == 60
    rates = [row["lr"] for row in Monitor(tmp_path, 99).rows()]
    assert rates == pytest.approx([0.05 * rate_factor(step / 10, 0) for step in range(10)])


@pytest.mark.usefixtures("small_network")
def test_a_run_of_epochs_ends_after_whole_batches(pool: Pool, tmp_path: Path) -> None:
    run = trained(replace(SMALL, epochs=2), pool, tmp_path)
    assert (run.step, run.images) == (8, 64)
    rows = Monitor(tmp_path, 99).rows()
    assert [row["images"] for row in rows] == list(range(8, 65, 8))
    assert rows[-1]["lr"] < rows[2]["lr"]


# Data order


@pytest.mark.usefixtures("small_network")
def test_an_epoch_visits_each_image_at_most_once_and_the_next_in_another_order(pool: Pool) -> None:
    run = pretrain.start(SMALL, CPU)
    epochs: list[list[int]] = []
    for step, rows in enumerate(islice(orders(len(pool), run), 12)):
        if step % 4 == 0:
            epochs.append([])
        epochs[-1] += rows.tolist()
    for epoch in epochs:
        assert len(epoch) == 32
        assert len(set(epoch)) == 32
        assert set(epoch) <= set(range(34))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(range(34)) - set(epoch) for epoch in epochs}) > 1  # not the same two are left over


@pytest.mark.usefixtures("small_network")
def test_data_order_goes_on_in_the_middle_of_an_epoch(pool: Pool) -> None:
    run = pretrain.start(SMALL, CPU)
    whole = [rows.tolist() for rows in islice(orders(len(pool), run), 10)]
    run.step = 6
    assert [rows.tolist() for rows in islice(orders(len(pool), run), 4)] == whole[6:]


@pytest.mark.usefixtures("small_network")
def test_too_few_images_for_a_batch_stop_with_the_way_out(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="34 images do not fill a batch of 64; set --batch or add images"):
        trained(replace(SMALL, batch=64), pool, tmp_path)


# Kill and resume


def small_run(saves: int, images: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    flags = ["--hidden", "16", "--output", "8", "--batch", "8", "--view-size", "16", "--precision", "fp32"]
    flags += ["--log-every", "1", "--device", "cpu", "--epochs", "15", "--checkpoint-minutes", "0"]
    flags += ["--no-tensorboard"]
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.small_run",
        str(saves),
        "--data",
        str(images),
        "--out",
        str(out),
    ]
    return subprocess.run(
        [*command, *flags, *more], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def uninterrupted(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Loss by step of a whole run in this process."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "Backbone", SmallBackbone)
        trained(SMALL, pool, out)
    return losses(out)


@pytest.fixture(scope="module")
def killed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that SIGKILL ended inside its 36th checkpoint, one a step."""
    out = tmp_path_factory.mktemp("killed")
    ended = small_run(KILLED_IN_SAVE, images, out)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return out


def test_another_process_with_the_same_seed_has_the_same_losses(
    killed: Path, uninterrupted: dict[int, float]
) -> None:
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()][:KILLED_IN_SAVE]
    assert len(rows) == KILLED_IN_SAVE
    for row in rows:
        assert row["loss"] == pytest.approx(uninterrupted[row["step"]], abs=1e-6)


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(
    killed: Path, images: Path, uninterrupted: dict[int, float]
) -> None:
    assert (killed / "checkpoint.pt.part").exists()  # it died in the middle of writing
    whole = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert whole["progress"]["step"] == KILLED_IN_SAVE - 1
    ended = small_run(0, images, killed, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert f"from step {KILLED_IN_SAVE - 1};" in ended.stdout
    found = losses(killed)
    assert list(found) == list(range(1, 61))
    for step in range(KILLED_IN_SAVE, 61):
        assert found[step] == pytest.approx(uninterrupted[step], abs=1e-4)


@pytest.mark.usefixtures("small_network")
def test_another_seed_has_other_losses(pool: Pool, tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    trained(replace(SMALL, seed=1, epochs=1), pool, tmp_path)
    assert all(abs(loss - uninterrupted[step]) > 1e-4 for step, loss in losses(tmp_path).items())


@pytest.mark.usefixtures("small_network")
def test_a_checkpoint_brings_back_all_that_changes(pool: Pool, tmp_path: Path) -> None:
    run = trained(replace(SMALL, epochs=1), pool, tmp_path)
    again = pretrain.resume(tmp_path, CPU)
    assert (again.knobs, again.step, again.images, again.seconds) == (run.knobs, 4, 32, run.seconds)
    for name, value in run.model.state_dict().items():  # running means and variances too
        assert torch.equal(again.model.state_dict()[name], value), name
    for ours, theirs in zip(run.optimizers, again.optimizers, strict=True):
        for key, state in ours.state_dict()["state"].items():
            for name, value in state.items():
                assert torch.equal(theirs.state_dict()["state"][key][name], value)


@pytest.mark.usefixtures("small_network")
def test_a_compiled_run_writes_the_same_names(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # needs no C++ compiler
    run = trained(replace(SMALL, epochs=1, compile=True), pool, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert list(saved) == list(pretrain.start(SMALL, CPU).model.state_dict())
    assert torch.equal(saved["backbone.net.0.weight"], run.model.backbone.net[0].weight)


@pytest.mark.usefixtures("small_network")
def test_the_record_names_machine_library_and_the_commit_at_the_start(pool: Pool, tmp_path: Path) -> None:
    run = pretrain.start(replace(SMALL, epochs=1), CPU)
    run.made["commit"] = "as it was"
    train(run, pool, tmp_path, quiet=True)
    made = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["made"]
    assert made["commit"] == "as it was"
    assert made["torch"] == torch.__version__
    assert "cores of" in made["machine"]


def test_a_machine_without_git_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert pretrain.made_with(CPU)["commit"] == ""


# The command line


@pytest.fixture
def flags(images: Path, tmp_path: Path, small_network: None) -> list[str]:
    """A command line of one small epoch."""
    return [
        *("--data", str(images), "--out", str(tmp_path / "run"), "--device", "cpu", "--precision", "fp32"),
        *("--hidden", "16", "--output", "8", "--batch", "8", "--view-size", "16", "--epochs", "1"),
        "--no-tensorboard",
    ]


@pytest.fixture
def finished(flags: list[str]) -> list[str]:
    """The same, after it has been run."""
    assert pretrain.main(flags) == 0
    return flags


def test_a_run_says_where_it_is_and_what_it_wrote(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(flags) == 0
    said = capsys.readouterr().out
    assert "34 images, cpu, from step 0" in said
    assert "4 steps, 32 images" in said
    assert "nan" not in said


def test_a_finished_run_is_not_overwritten(finished: list[str]) -> None:
    with pytest.raises(SystemExit, match="already holds a run; add --resume to go on with it, or name another --out"):
        pretrain.main(finished)


def test_a_finished_run_can_be_resumed_and_has_nothing_to_do(
    finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*finished, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 steps, 32 images in 0.0 min")


def test_resuming_with_other_settings_is_refused(finished: list[str]) -> None:
    with pytest.raises(SystemExit, match="epochs 1, not 7: --resume goes on with the run's own settings"):
        pretrain.main([*finished, "--resume", "--epochs", "7"])


def test_there_is_nothing_to_resume_where_no_run_was(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="to go on with; leave out --resume to start a run"):
        pretrain.main(["--resume", "--out", str(tmp_path / "none")])


# Checking


def check(images: Path, **changes: Any) -> int:
    return pretrain.check(replace(SMALL, data=(str(images),), **changes), CPU)


def test_check_passes_with_the_real_network(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(images) == 0
    said = capsys.readouterr().out
    assert said.count("ok  ") == 6
    assert said.endswith("all is well\n")


class Unused(SmallBackbone):
    def __init__(self, stem: str, norm: str) -> None:
        super().__init__(stem, norm)
        self.unused = torch.nn.Linear(2, 2)


class Collapsed(SmallBackbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = super().forward(x)
        return 0 * features + 1 + 1e-6 * features.mean()


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize(
    "network, finding",
    [(Unused, "every parameter gets a gradient"), (Collapsed, "features differ between images")],
)
def test_check_finds_what_is_wrong_with_a_network(
    network: type, finding: str, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain, "Backbone", network)
    monkeypatch.setattr(Monitor, "draw", lambda self: (self.out / "report.png").touch())
    assert check(images) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")] == [f"FAIL {finding}"]


@pytest.mark.usefixtures("small_network")
def test_check_finds_a_checkpoint_that_does_not_bring_the_weights_back(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain, "resume", lambda out, device: pretrain.start(replace(SMALL, seed=9), device))
    assert check(images) == 1
    said = capsys.readouterr().out
    assert "FAIL the checkpoint brings the weights back" in said
    assert "FAIL the report is drawn" in said  # small_network draws none
    assert said.endswith("something is wrong: see FAIL above\n")


# Learning, and failing to


def test_the_loss_falls_on_images(tmp_path: Path, images: Path) -> None:
    """The real network and optimizer on mild views; real images where they are, else generated ones."""
    pool = load_pool([str(REAL_IMAGES if REAL_IMAGES.exists() else images)], 96, CPU, limit=32)
    mild = Augmentation(
        size=32, scale=(0.5, 1.0), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, grayscale=0, blur=0
    )
    trained(
        replace(SMALL, batch=32, epochs=8, lr=0.02, temperature=0.2, hidden=64, output=32, view=mild), pool, tmp_path
    )
    curve = list(losses(tmp_path).values())
    assert len(curve) == 8
    assert np.mean(curve[-3:]) < np.mean(curve[:3]) - 0.1


@pytest.fixture
def diverging(pool: Pool, small_network: None) -> Iterator[Run]:
    run = pretrain.start(SMALL, CPU)
    with torch.no_grad():
        run.model.head[0].weight[0, 0] = float("nan")
    yield run


def test_a_loss_that_is_not_finite_stops_the_run_with_the_way_out(diverging: Run, pool: Pool, tmp_path: Path) -> None:
    message = (
        r"the loss became nan at step 1 .* lower --lr, lengthen --warmup, or raise --temperature.* not written yet"
    )
    with pytest.raises(SystemExit, match=message):
        train(diverging, pool, tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint.pt").exists()
