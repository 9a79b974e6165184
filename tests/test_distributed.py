"""Several processes that train as one: what they exchange, and that their gradient is that of one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.two_processes import free_port, together
from training.backbone import FEATURES
from training.distributed import agreed, gathered, joined, processes, rank, share, world
from training.methods import build
from training.norms import with_group_norm, with_synchronised_norm
from training.objectives import Batch
from training.objectives.distill import DistillKnobs
from training.objectives.moco import MoCoKnobs
from training.recipes import Pretrain

SMALL = Pretrain(hidden=32, output=16, moco=MoCoKnobs(queue=20, groups=4), temperature_end=0.5)
RECIPES = {
    "simclr": replace(SMALL, decoupled=False),
    "dcl": SMALL,
    **{name: replace(SMALL, method=name) for name in ("moco", "byol", "simsiam", "barlow", "vicreg")},
    "distill": replace(SMALL, method="distill", init="an encoder", head_start=0.0, distill=DistillKnobs(size=12)),
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
    network = with_group_norm(backbone()) if config.norm == "group" else backbone()
    objective = with_synchronised_norm(build(config, network))  # type: ignore[arg-type]
    learning = [p for p in objective.parameters() if p.requires_grad]
    model = joined(objective)
    optimizer = torch.optim.SGD(learning, lr=0.05)
    wanted = len(objective.views(config.view))
    batch = Batch(tuple(share(view) for view in images()[:wanted]), share(torch.arange(IMAGES)))
    for step in range(2):
        objective.before_step(step / 2)
        result = model(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        objective.after_step()
    gradient = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    rows = [len(result.features) / wanted, len(result.projections) / wanted]
    return {"loss": result.loss.detach(), "gradient": gradient, "state": objective.state_dict(), "rows": rows}


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
    assert [process["training"][name]["rows"] for process in both] == [[IMAGES / 2, IMAGES / 2]] * 2


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


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(SystemExit, match=r"process 1 has no GPU .* machine has 1: give --nproc-per-node 1,"),
        processes(),
    ):
        pass
