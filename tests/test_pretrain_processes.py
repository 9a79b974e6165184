"""Pretraining by `torchrun`, on generated pictures and with a network of a few weights."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pictures import scene
from tests.small_run import SmallBackbone
from tests.two_processes import ON_CPU, ROOT
from training import knobs, pretrain
from training.monitor import Monitor
from training.recipes import Pretrain

CPU = torch.device("cpu")
FLAGS = [
    *("--batch", "8", "--epochs", "2", "--hidden", "32", "--output", "16", "--temperature-end", "0.5"),
    *("--optimizer", "sgd", "--lr", "0.01", "--momentum", "0.9", "--precision", "fp32", "--device", "cpu"),
    *("--log-every", "1", "--no-tensorboard", "--view-size", "16"),
    # No randomness in the views, which is drawn anew in each process.
    *("--view-scale", "1", "1", "--view-ratio", "1", "1", "--view-flip", "0"),
    *("--view-jitter", "0", "--view-grayscale", "0", "--view-blur", "0"),
]


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that two processes leave behind. Its images are 34 pictures of 24 px: four batches of 8 an epoch."""
    out = tmp_path_factory.mktemp("together") / "run"
    pictures = out.with_name("pictures.npy")
    np.save(pictures, np.stack([np.array(scene(24, 24, seed=seed)) for seed in range(34)]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.small_run", "0", "--data", str(pictures), "--out", str(out), *FLAGS]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ON_CPU, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("34 images, cpu, 2 processes") == 1  # only one of them speaks
    return out


def config_of(out: Path) -> Pretrain:
    """The recipe that two processes trained by."""
    flags = ["--data", str(out.with_name("pictures.npy")), "--out", str(out), *FLAGS]
    return knobs.parse(Pretrain(), flags, "akin pretrain", "", {})


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in Monitor(out, step=10**9).rows()}


def test_two_processes_end_with_the_losses_and_weights_of_one(together: Path, tmp_path: Path) -> None:
    """So they do only if each takes rows of its own, and both together all that one takes."""
    one = pretrain.start(config_of(together), CPU)
    pretrain.train(one, pretrain.pool_of(one.knobs, CPU), tmp_path, quiet=True)
    two = pretrain.resume(together, CPU)
    assert (two.step, two.images, two.knobs) == (8, 64, one.knobs)
    torch.testing.assert_close(losses(together), losses(tmp_path), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.model.state_dict(), one.model.state_dict(), atol=1e-4, rtol=1e-4)


def test_one_of_them_writes_one_checkpoint_and_a_row_for_every_step(together: Path) -> None:
    assert sorted(file.name for file in together.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    assert len((together / "metrics.jsonl").read_text().splitlines()) == 8
    assert list(losses(together)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_process_alone_goes_on_where_two_left_off(together: Path, tmp_path: Path) -> None:
    out = shutil.copytree(together, tmp_path / "run")
    run = pretrain.resume(out, CPU)
    run.knobs = replace(run.knobs, epochs=3)
    pretrain.train(run, pretrain.pool_of(run.knobs, CPU), out, quiet=True)
    assert list(losses(out)) == list(range(1, 13))
    assert pretrain.resume(out, CPU).step == 12


def test_a_batch_that_the_processes_cannot_share_is_refused(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "world", lambda: 2)
    with pytest.raises(SystemExit, match="batch of 7 cannot be shared by 2 processes; set --batch"):
        pretrain.pretrain(replace(config_of(together), batch=7, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
