"""Every method as `pretrain` drives it: shapes, gradients, some steps on real images, checkpoints, precision.
Methods of other shapes, with several crops or with a target for each image, fit the same protocol.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pictures import scene
from tests.small_run import SmallBackbone
from training.augment import Augmentation, Randomness
from training.backbone import FEATURES, mlp
from training.data import Pixels, Pool, load_pool, views
from training.health import LEAST_RANK, LEAST_SPREAD, health
from training.methods import build
from training.norms import with_group_norm
from training.objectives import Batch, Objective, Step
from training.objectives.byol import BYOLKnobs
from training.objectives.moco import MoCoKnobs
from training.objectives.simsiam import SimSiamKnobs, negative_cosine
from training.recipes import Method, Pretrain

REAL_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "stl10-train.zip"
CPU = torch.device("cpu")
VIEW = Augmentation(size=24, scale=(0.5, 1.0), blur=0.0)
CONFIG = Pretrain(
    hidden=32,
    output=16,
    temperature=0.2,
    moco=MoCoKnobs(queue=60, momentum=0.9, groups=4),
    byol=BYOLKnobs(momentum=0.9),
    simsiam=SimSiamKnobs(bottleneck=16),
)
IMAGES, STEPS, DRAWS = 48, 28, 4
# Without distill, which begins with an encoder that has learned.
every_method = pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "distill"])


@cache
def pixels() -> Pixels:
    """Real images where there are any, at 32 pixels."""
    if REAL_IMAGES.exists():
        pool = load_pool((str(REAL_IMAGES),), 32, CPU, IMAGES)
    else:
        scenes = np.stack([np.asarray(scene(32, 32, seed)) for seed in range(IMAGES)])
        pool = Pool(torch.from_numpy(scenes).permute(0, 3, 1, 2), torch.full((IMAGES,), 32))
    return pool.pixels(torch.arange(IMAGES))


@cache
def drawn(wanted: tuple[Augmentation, ...], step: int) -> tuple[Tensor, ...]:
    return views(pixels(), wanted, Randomness(0, step, CPU))


def batch(model: Objective, step: int = 0) -> Batch:
    """Views take turns, so that the losses of two rounds are of the same views."""
    return Batch(drawn(model.views(VIEW), step % DRAWS), pixels().rows)


def objective(method: Method, norm: str = "batch", seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    backbone = SmallBackbone(norm=norm)
    if norm == "group":
        backbone = with_group_norm(backbone)
    return build(replace(CONFIG, method=method, norm=norm), backbone)  # type: ignore[arg-type]


def trained(model: Objective, steps: int = STEPS) -> list[Step]:
    """What `pretrain` does in a step, with Adam."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3, foreach=True)
    results = []
    for step in range(steps):
        model.before_step(step / steps)
        results.append(model(batch(model, step)))
        optimizer.zero_grad()
        results[-1].loss.backward()
        optimizer.step()
        model.after_step()
    return results


def losses(results: Sequence[Step]) -> list[float]:
    return [float(result.loss.detach()) for result in results]


def assert_fallen(results: Sequence[Step]) -> None:
    """From the second round of views to the last; in the first, MoCo's queue is still noise."""
    values = losses(results)
    early, late = sum(values[DRAWS : 2 * DRAWS]) / DRAWS, sum(values[-DRAWS:]) / DRAWS
    assert late < early - 0.04 * abs(early)


@every_method
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_step_gives_a_finite_loss_and_everything_that_learns_a_gradient(method: Method, norm: str) -> None:
    model = objective(method, norm)
    result = model(batch(model))
    assert result.loss.shape == () and bool(result.loss.isfinite())
    assert result.features.shape == (2 * IMAGES, FEATURES)
    assert result.projections.shape == (2 * IMAGES, CONFIG.output)
    result.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@every_method
def test_the_loss_falls_on_real_images_and_nothing_collapses(method: Method) -> None:
    model = objective(method)
    results = trained(model)
    assert_fallen(results)
    assert_lively(model, results[-1])


def assert_lively(model: Objective, result: Step) -> None:
    numbers = health(model, result)
    assert numbers["feature_spread"] > 2 * LEAST_SPREAD / FEATURES**0.5
    assert numbers["projection_spread"] > 2 * LEAST_SPREAD
    assert numbers["effective_rank"] > LEAST_RANK


class Agreement(Objective):
    """What SimSiam is without its predictor and its stop-gradient: nothing holds views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = SmallBackbone(), mlp((FEATURES, 32, 16))  # type: ignore[assignment]

    def forward(self, batch: Batch) -> Step:
        features = self.backbone(torch.cat(batch.views))
        projections = self.head(features)
        first, second = projections.chunk(2)
        return Step(-F.cosine_similarity(first, second).mean(), features, projections)


def test_agreement_alone_does_collapse_in_as_many_steps() -> None:
    torch.manual_seed(0)
    model = Agreement()
    results = trained(model)
    assert losses(results)[-1] < -0.99
    with pytest.raises(AssertionError):
        assert_lively(model, results[-1])


@every_method
def test_a_checkpoint_brings_back_all_that_the_next_step_depends_on(method: Method) -> None:
    model, other = objective(method), objective(method, seed=1)
    trained(model, steps=3)
    other.load_state_dict(model.state_dict())
    went_on, resumed = trained(model, steps=2), trained(other, steps=2)
    assert losses(went_on) == losses(resumed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@every_method
def test_bfloat16_gives_nearly_the_loss_of_float32_and_all_of_its_digits(method: Method) -> None:
    model, same = objective(method), objective(method)
    seen = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(seen)
    assert result.projections.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32
    assert float(result.loss.detach()) == pytest.approx(float(same(seen).loss.detach()), rel=0.05, abs=0.02)
    result.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@every_method
def test_with_group_norm_no_batch_norm_is_left_and_a_step_moves_all_that_learns(method: Method) -> None:
    """Whether it goes well is another matter: BYOL and SimSiam need BatchNorm in their heads."""
    model = objective(method, norm="group")
    kinds = {type(module).__name__ for module in model.modules()}
    assert "GroupNorm" in kinds and not any("BatchNorm" in kind for kind in kinds)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    results = trained(model, steps=3)
    assert all(bool(result.loss.isfinite()) for result in results)
    for name, parameter in model.named_parameters():
        assert name not in before or not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
def test_a_compiled_step_is_one_graph_that_later_steps_use_again(method: Method) -> None:
    """The queue, the temperature and the target change from step to step; nothing is compiled anew for that."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model, plain = objective(method), objective(method)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for step in range(3):
        for each, call in ((model, compiled), (plain, plain)):
            each.before_step(step / 3)
            result = call(batch(each, step))
            if call is compiled:
                loss = result.loss
            each.after_step()
        torch.testing.assert_close(loss, result.loss)
    assert len(graphs) == 1


class MultiCrop(Objective):
    """As SwAV (arXiv 2006.09882, section 3.2) and DINO have it: large crops teach, all crops learn."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.predictor = SmallBackbone(), mlp((FEATURES, 16, FEATURES))  # type: ignore[assignment]

    def views(self, view: Augmentation) -> tuple[Augmentation, ...]:
        return view, view, replace(view, size=12, scale=(0.2, 0.5))

    def forward(self, batch: Batch) -> Step:
        crops = [self.backbone(view) for view in batch.views]
        teacher = (crops[0] + crops[1]) / 2
        loss = torch.stack([negative_cosine(self.predictor(crop), teacher) for crop in crops]).mean()
        return Step(loss, torch.cat(crops), torch.cat(crops))


class Exemplar(Objective):
    """Each image its own class (arXiv 1406.6909): a single view, and a target that its number in the pool names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.classes = SmallBackbone(), nn.Embedding(IMAGES, FEATURES)  # type: ignore[assignment]

    def views(self, view: Augmentation) -> tuple[Augmentation, ...]:
        return (view,)

    def forward(self, batch: Batch) -> Step:
        (view,) = batch.views
        features = self.backbone(view)
        return Step(F.cross_entropy(features @ self.classes.weight.T, batch.rows), features, features)


@pytest.mark.parametrize(("kind", "crops"), [(MultiCrop, 3), (Exemplar, 1)])
def test_methods_with_more_crops_or_a_target_for_each_image_fit_the_protocol(
    kind: type[Objective], crops: int
) -> None:
    torch.manual_seed(0)
    model = kind()
    assert [view.shape[2] for view in batch(model).views] == [24, 24, 12][:crops]
    results = trained(model)
    assert results[0].features.shape == (crops * IMAGES, FEATURES)
    assert_fallen(results)
