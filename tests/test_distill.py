"""An encoder that learns to see in a small image what it sees in a larger one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pictures import scene
from tests.small_run import SmallBackbone
from training.augment import Augmentation, Randomness
from training.data import Pixels, views
from training.objectives import Batch
from training.objectives.distill import Distill, DistillKnobs, cosine_distance
from training.recipes import PRESETS, Pretrain


def batch(count: int = 16, size: int = 32) -> Batch:
    pictures = np.stack([np.array(scene(size, size, seed=seed)) for seed in range(count)])
    canvas = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    pixels = Pixels(canvas, torch.full((count,), size), torch.arange(count))
    return Batch(views(pixels, (Augmentation(size=size),), Randomness(0, 0, torch.device("cpu"))), pixels.rows)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [([1.0, 0.0], [5.0, 0.0], 0.0), ([1.0, 0.0], [0.0, 2.0], 1.0), ([1.0, 1.0], [-2.0, -2.0], 2.0)],
)
def test_the_distance_is_that_of_directions(one: list[float], other: list[float], distance: float) -> None:
    assert float(cosine_distance(torch.tensor([one]), torch.tensor([other]))) == pytest.approx(distance, abs=1e-6)


def test_it_asks_for_one_view_an_image() -> None:
    view = Augmentation(size=96)
    assert Distill(SmallBackbone(), DistillKnobs()).views(view) == (view,)


def test_a_student_of_the_same_size_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    objective = Distill(SmallBackbone(), DistillKnobs(size=32))
    objective.backbone.eval()  # both with the same statistics
    assert float(objective(batch()).loss.detach()) == pytest.approx(0, abs=1e-6)


def test_the_teacher_stays_as_it_is_while_the_student_comes_nearer() -> None:
    torch.manual_seed(0)
    objective = Distill(SmallBackbone(), DistillKnobs(size=8))
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 0.003)
    losses = []
    for _ in range(30):
        step = objective.train()(batch())
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())
    assert all(p.grad is not None for p in objective.backbone.parameters())


def test_without_an_encoder_to_begin_with_it_is_refused() -> None:
    with pytest.raises(ValueError, match="name it with --init"):
        Pretrain(method="distill")
    with pytest.raises(ValueError, match=r"head_start 0\.1 is for heads.* --head-start 0"):
        Pretrain(method="distill", init="x.pt")
    with pytest.raises(ValueError, match="size 0 is no side"):
        replace(PRESETS["distill"], distill=DistillKnobs(size=0))
