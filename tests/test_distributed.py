"""Several processes that train as one: what they exchange, and that their gradient is that of one process."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.pictures import scene
from tests.small_run import SmallBackbone
from tests.two_processes import ON_CPU, ROOT, free_port, together
from training import pretrain
from training.augment import Augmentation
from training.backbone import FEATURES
from training.distributed import agreed, gathered, joined, processes, rank, share, world
from training.methods import build
from training.monitor import Monitor
from training.norms import with_synchronised_norm
from training.objectives import Batch
from training.objectives.moco import MoCoKnobs
from training.recipes import Pretrain

SMALL = Pretrain(hidden=32, output=16, moco=MoCoKnobs(queue=20, groups=4), temperature_end=0.5)
RECIPES = {
    "simclr": replace(SMALL, decoupled=False),
    "dcl": SMALL,
    **{name: replace(SMALL, method=name) for name in ("moco", "byol", "simsiam", "barlow", "vicreg")},
    "simclr, group": replace(SMALL, norm="group"),
    "moco, group": replace(SMALL, method="moco", norm="group"),
}
IMAGES = 16


# What the processes do. Two of them run once; each test below looks at some of what they returned.


def everything() -> dict[str, Any]:
    """What each of two processes returns."""
    return {
        "place": [rank(), world()],
        "agreed": agreed(rank() + 0.1),
        "indivisible": refusal(torch.zeros(IMAGES + 1)),
        "share": share(images()[0]),
        "gathered": {name: gathered(share(rows)) for name, rows in SHAPES.items()},
        "gradients": gradients(share(SHAPES["matrix"]), 1 + rank()),
        "uneven run": refused_run(replace(SMALL, batch=7)),
        "training": {name: two_steps(config) for name, config in RECIPES.items()},
    }


SHAPES = {
    "vector": torch.arange(6),
    "matrix": torch.linspace(-2, 2, 24, dtype=torch.float64).view(6, 4),
    "transposed": torch.linspace(-2, 2, 24).view(4, 6).T,
    "images": torch.linspace(0, 1, 2 * 3 * 4 * 4, dtype=torch.bfloat16).view(2, 3, 4, 4),
}


def refusal(rows: Tensor) -> str:
    try:
        share(rows)
    except ValueError as error:
        return str(error)
    return ""


def refused_run(config: Pretrain) -> str:
    pretrain.Backbone = SmallBackbone  # type: ignore[assignment,misc]
    with tempfile.TemporaryDirectory() as folder:
        try:
            pretrain.pretrain(replace(config, data=(write_images(Path(folder)),), out=folder, device="cpu"))
        except SystemExit as error:
            return str(error)
    return ""


def write_images(folder: Path) -> str:
    """A .npy of 34 generated pictures of 24 px: four batches of eight an epoch, two left over."""
    file = folder / "images.npy"
    np.save(file, np.stack([np.array(scene(24, 24, seed=seed)) for seed in range(34)]))
    return str(file)


def gradients(rows: Tensor, weight: float) -> dict[str, Tensor]:
    """Of `weight` · Σ (gathered + 2 other)³. Both terms are handed the same gradient, the gathered one first."""
    rows = rows.clone().requires_grad_()
    other = torch.ones_like(SHAPES["matrix"]).requires_grad_()
    doubled = 2 * other
    (weight * (gathered(rows) + doubled) ** 3).sum().backward()
    assert rows.grad is not None and other.grad is not None
    return {"rows": rows.grad, "other": other.grad}


def backbone() -> nn.Module:
    """Few weights, and convolutions with BatchNorm as the real one has."""
    convolutions = [
        layer
        for wide, narrow in ((3, 8), (8, 16))
        for layer in (nn.Conv2d(wide, narrow, 3, stride=2, bias=False), nn.BatchNorm2d(narrow), nn.ReLU())
    ]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 2 * 2, FEATURES, bias=False))


def images() -> Tensor:
    """(2, 16, 3, 12, 12): two views, the second with noise of its own."""
    generator = torch.Generator().manual_seed(1)
    first = torch.rand((IMAGES, 3, 12, 12), generator=generator)
    return torch.stack([first, (first + torch.rand(first.shape, generator=generator)) / 2])


def two_steps(config: Pretrain) -> dict[str, Any]:
    """The second step's loss and gradients, and all that is left: momentum encoders and queues have moved by then."""
    torch.manual_seed(0)
    objective = with_synchronised_norm(build(config, backbone()))  # type: ignore[arg-type]
    learning = [p for p in objective.parameters() if p.requires_grad]
    model = joined(objective)
    optimizer = torch.optim.SGD(learning, lr=0.05)
    first, second = (share(view) for view in images())
    for step in range(2):
        objective.before_step(step / 2)
        result = model(Batch((first, second), share(torch.arange(IMAGES))))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        objective.after_step()
    gradient = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    sizes = [len(result.features), len(result.projections)]
    return {"loss": result.loss.detach(), "gradient": gradient, "state": objective.state_dict(), "rows": sizes}


# What is to be seen


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    return together(everything)


def test_each_process_knows_its_place(both: list[Any]) -> None:
    assert [process["place"] for process in both] == [[0, 2], [1, 2]]


def test_all_agree_on_the_first_ones_value(both: list[Any]) -> None:
    assert [process["agreed"] for process in both] == [0.1, 0.1]


def test_the_shares_in_order_are_the_whole(both: list[Any]) -> None:
    assert torch.equal(torch.cat([process["share"] for process in both]), images()[0])


def test_a_batch_that_cannot_be_shared_evenly_is_refused(both: list[Any]) -> None:
    assert {process["indivisible"] for process in both} == {
        "17 rows cannot be shared by 2 processes; give a multiple of 2"
    }


def test_a_run_with_such_a_batch_says_so(both: list[Any]) -> None:
    assert {process["uneven run"] for process in both} == {
        "a batch of 7 cannot be shared by 2 processes; set --batch"
    }


@pytest.mark.parametrize("name", SHAPES)
def test_gathered_rows_are_those_of_all_in_order(both: list[Any], name: str) -> None:
    for process in both:
        assert torch.equal(process["gathered"][name], SHAPES[name])


def test_the_gradient_of_a_gathered_row_is_the_sum_of_what_every_process_makes_of_it(both: list[Any]) -> None:
    one = gradients(SHAPES["matrix"], weight=1 + 2)
    torch.testing.assert_close(torch.cat([process["gradients"]["rows"] for process in both]), one["rows"])


def test_the_gradient_of_what_was_not_gathered_stays_each_ones_own(both: list[Any]) -> None:
    for weight, process in enumerate(both, start=1):
        torch.testing.assert_close(process["gradients"]["other"], gradients(SHAPES["matrix"], weight)["other"])


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(both: list[Any], name: str) -> None:
    one = two_steps(RECIPES[name])["gradient"]
    assert min(gradient.abs().max() for gradient in one.values() if gradient.ndim > 1) > 1e-3  # some to compare
    for process in both:
        torch.testing.assert_close(process["training"][name]["gradient"], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_they_report_its_loss_and_end_with_its_weights_statistics_and_queue(both: list[Any], name: str) -> None:
    one = two_steps(RECIPES[name])
    for process in both:
        theirs = process["training"][name]
        torch.testing.assert_close(theirs["loss"], one["loss"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs["state"], one["state"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_each_hands_the_monitor_its_own_images_only(both: list[Any], name: str) -> None:
    assert [process["training"][name]["rows"] for process in both] == [[IMAGES, IMAGES]] * 2  # two views of half


# A run of its own


STILL = Augmentation(size=16, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)  # nothing random
RUN = replace(SMALL, batch=8, epochs=2, view=STILL, optimizer="sgd", lr=0.01, momentum=0.9, precision="fp32")
RUN = replace(RUN, device="cpu", log_every=1, tensorboard=False)
FLAGS = (
    *("--batch", "8", "--epochs", "2", "--hidden", "32", "--output", "16", "--temperature-end", "0.5"),
    *("--moco-queue", "20", "--moco-groups", "4", "--optimizer", "sgd", "--lr", "0.01", "--momentum", "0.9"),
    *("--view-size", "16", "--view-scale", "1", "1", "--view-ratio", "1", "1", "--view-flip", "0"),
    *("--view-jitter", "0", "--view-grayscale", "0", "--view-blur", "0", "--precision", "fp32"),
    *("--device", "cpu", "--log-every", "1", "--no-tensorboard"),
)


@pytest.fixture(scope="module")
def images_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def torchruns(tmp_path_factory: pytest.TempPathFactory, images_file: str) -> Path:
    """What `torchrun --nproc-per-node 2` leaves behind."""
    out = tmp_path_factory.mktemp("torchrun") / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.small_run", "0", "--data", images_file, "--out", str(out), *FLAGS]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ON_CPU, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("34 images, cpu, 2 processes") == 1  # one of them speaks
    return out


def test_torchrun_trains_as_one_process_does(
    torchruns: Path, images_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without randomness in the views both see the same, if each process takes other rows and none is left out."""
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)
    one = pretrain.start(replace(RUN, data=(images_file,), out=str(torchruns)), torch.device("cpu"))
    pretrain.train(one, pretrain.pool_of(one.knobs, torch.device("cpu")), tmp_path, quiet=True)
    theirs = pretrain.resume(torchruns, torch.device("cpu"))
    assert (theirs.step, theirs.images, theirs.knobs) == (8, 64, one.knobs)
    torch.testing.assert_close(losses(torchruns), losses(tmp_path), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.model.state_dict(), one.model.state_dict(), atol=1e-4, rtol=1e-4)


def test_the_first_process_alone_writes_and_one_process_goes_on(
    torchruns: Path, images_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "Backbone", SmallBackbone)
    monkeypatch.setattr(Monitor, "draw", lambda self: None)
    assert sorted(file.name for file in torchruns.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    assert list(losses(torchruns)) == list(range(1, 9))
    assert len((torchruns / "metrics.jsonl").read_text().splitlines()) == 8
    run = pretrain.resume(torchruns, torch.device("cpu"))
    run.knobs = replace(run.knobs, epochs=3)
    pretrain.train(run, pretrain.pool_of(run.knobs, torch.device("cpu")), torchruns, quiet=True)
    assert list(losses(torchruns)) == list(range(1, 13))
    assert pretrain.resume(torchruns, torch.device("cpu")).step == 12


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in Monitor(out, step=10**9).rows()}


# One process


def test_alone_everything_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    rows = torch.arange(5)
    with processes():
        assert not dist.is_initialized()
        assert (rank(), world(), agreed(0.3)) == (0, 1, 0.3)
        assert share(rows) is not None and torch.equal(share(rows), rows)
        assert gathered(rows) is rows


def test_the_processes_part_when_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    torchruns = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (torchruns | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="no images"), processes():
        assert dist.is_initialized()
        raise SystemExit("no images")
    assert not dist.is_initialized()
