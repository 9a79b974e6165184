"""Numbers that tell a representation from a collapsed one, where they are known, and who looks at them."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from training.health import (
    FIRST_LOGS,
    LEAST_RANK,
    LEAST_SPREAD,
    LOGS_IN_A_ROW,
    Collapse,
    alignment,
    effective_rank,
    health,
    uniformity,
)
from training.objectives import Step
from training.objectives.simclr import nt_xent


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def directions(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


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


def squared_distance(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def test_alignment_is_the_mean_squared_distance_of_the_pairs() -> None:
    first, second = directions(7, 5, seed=1), directions(7, 5, seed=2)
    pairs = zip(first.double().tolist(), second.double().tolist(), strict=True)
    distances = [squared_distance(x, y) for x, y in pairs]
    assert float(alignment(first, second)) == pytest.approx(sum(distances) / 7, rel=1e-6)


def test_uniformity_is_the_log_of_the_mean_gaussian_potential_of_all_pairs() -> None:
    rows = directions(9, 5)
    listed = rows.double().tolist()
    potentials = [math.exp(-2 * squared_distance(listed[i], listed[j])) for i in range(9) for j in range(9) if i != j]
    assert float(uniformity(rows)) == pytest.approx(math.log(sum(potentials) / 72), rel=1e-6)


def test_identical_features_are_aligned_and_not_uniform_at_all() -> None:
    same = directions(1, 8).expand(6, 8)
    assert float(alignment(same, same)) == 0
    assert float(uniformity(same)) == pytest.approx(0, abs=1e-6)


def test_antipodes_are_two_apart_and_orthogonal_directions_the_root_of_two() -> None:
    x = directions(4, 8)
    assert float(alignment(x, -x)) == pytest.approx(4)
    assert float(uniformity(torch.cat([x[:1], -x[:1]]))) == pytest.approx(-8)
    assert float(uniformity(torch.eye(8))) == pytest.approx(-4)


def test_directions_at_random_in_many_dimensions_have_a_uniformity_near_minus_four() -> None:
    assert float(uniformity(directions(300, 512))) == pytest.approx(-4, abs=0.05)


def numbers_of(features: Tensor, projections: Tensor | None = None, views: int = 2) -> dict[str, float]:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    projections = 2 * torch.eye(4) if projections is None else projections
    return health(model, Step(torch.tensor(1.0), features, projections), views)


def test_collapsed_features_have_no_spread_and_even_ones_one_over_the_root_of_d() -> None:
    assert numbers_of(normal(1, 64).expand(50, 64))["feature_spread"] == pytest.approx(0, abs=1e-6)
    assert numbers_of(normal(4000, 64))["feature_spread"] == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_spread_does_not_depend_on_the_size_of_features() -> None:
    large, small = numbers_of(1000 * normal(50, 16)), numbers_of(normal(50, 16))
    assert large["feature_spread"] == pytest.approx(small["feature_spread"], rel=1e-4)


def test_projections_that_meet_have_no_spread_and_even_ones_one_whatever_their_width() -> None:
    features = normal(50, 16)
    assert numbers_of(features, 1 + 1e-6 * normal(50, 8))["projection_spread"] == pytest.approx(0, abs=1e-4)
    for width in (8, 128):
        assert numbers_of(features, normal(4000, width))["projection_spread"] == pytest.approx(1, rel=0.01)


def test_projections_on_a_line_are_told_by_their_rank() -> None:
    line = numbers_of(normal(50, 16), normal(50, 1) * normal(1, 8, seed=1))
    assert line["projection_rank"] == pytest.approx(1, abs=1e-3)
    assert line["projection_spread"] > 0.5


def test_rows_n_and_b_plus_n_are_the_pairs() -> None:
    first = normal(6, 16)
    same, swapped = numbers_of(torch.cat([first, 3 * first])), numbers_of(torch.cat([first, first.flip(0)]))
    assert same["alignment"] == pytest.approx(0, abs=1e-6)
    unit = F.normalize(first, dim=1)
    assert swapped["alignment"] == pytest.approx(float(alignment(unit, unit.flip(0))), rel=1e-5)


def test_uniformity_is_of_different_images_and_not_of_two_views_of_one() -> None:
    first = normal(6, 16)
    alone = float(uniformity(F.normalize(first, dim=1)))
    assert numbers_of(torch.cat([first, first]))["uniformity"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("views", [1, 3])
def test_only_two_views_have_an_alignment(views: int) -> None:
    numbers = numbers_of(normal(12, 16), views=views)
    assert "alignment" not in numbers
    assert "uniformity" in numbers


def test_what_a_batch_cannot_say_is_left_out_of_its_json() -> None:
    numbers = numbers_of(normal(2, 16))  # one image: no pair of different ones
    assert "uniformity" not in numbers
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_norms_are_those_of_the_projections_and_of_all_gradients_together() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(3, 3)])  # nothing has asked the second for a gradient
    model[0].weight.grad, model[0].bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    numbers = health(model, Step(torch.tensor(1.0), normal(10, 8), 2 * torch.eye(4)))
    assert numbers["projection_norm"] == pytest.approx(2)
    assert numbers["gradient_norm"] == pytest.approx(5)


class Reads(TorchDispatchMode):
    """Counts numbers that leave their tensor: on a GPU each of them waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_a_larger_model_is_not_waited_for_more_often() -> None:
    counts = []
    for layers in (1, 40):
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
        model(torch.ones(1, 2)).sum().backward()
        with Reads() as reads:
            health(model, Step(torch.tensor(1.0), normal(10, 8), 2 * torch.eye(4)))
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


HEALTHY = {"feature_spread": 0.02, "effective_rank": 40.0, "projection_spread": 0.9, "projection_rank": 30.0}
COLLAPSED = {
    "feature_spread": 0.9 * LEAST_SPREAD / math.sqrt(512),
    "effective_rank": 0.9 * LEAST_RANK,
    "projection_spread": 0.9 * LEAST_SPREAD,
    "projection_rank": 0.9 * LEAST_RANK,
}


def signs(rows: list[dict[str, float]]) -> list[str | None]:
    collapse = Collapse()
    return [collapse.sign(row) for row in rows]


def test_healthy_rows_are_never_called_collapsed() -> None:
    assert not any(signs([HEALTHY] * 100))


@pytest.mark.parametrize("key", COLLAPSED)
def test_collapse_is_noticed_in_the_third_log_and_said_once(key: str) -> None:
    heard = signs([HEALTHY] * 20 + [HEALTHY | {key: COLLAPSED[key]}] * 30)
    assert [row for row, sign in enumerate(heard) if sign] == [20 + LOGS_IN_A_ROW - 1]


def test_the_first_logs_of_a_run_are_not_judged() -> None:
    heard = signs([COLLAPSED] * 30)
    assert [row for row, sign in enumerate(heard) if sign] == [FIRST_LOGS + LOGS_IN_A_ROW - 1]
    assert not any(signs([COLLAPSED] * (FIRST_LOGS + LOGS_IN_A_ROW - 1) + [HEALTHY] * 30))


def test_odd_batches_between_healthy_ones_are_no_collapse() -> None:
    assert not any(signs([HEALTHY] * 5 + ([COLLAPSED] * (LOGS_IN_A_ROW - 1) + [HEALTHY]) * 20))


def test_the_warning_says_what_was_found_what_would_be_well_and_what_to_do() -> None:
    said = next(sign for sign in signs([HEALTHY | {"projection_spread": 0.0123}] * 30) if sign)
    for part in ("projection spread 0.012 < 0.1", "3 logs in a row", "--temperature", "--lr", "--view-"):
        assert part in said
    assert "\n" not in said
    assert "rank" not in said


def test_the_limit_of_the_spread_follows_the_width_of_the_features() -> None:
    narrow, wide = Collapse(16), Collapse(512)
    rows = [HEALTHY | {"feature_spread": 0.02}] * 30
    assert any(narrow.sign(row) for row in rows)  # a tenth of 1/√16 is 0.025
    assert not any(wide.sign(row) for row in rows)


def test_rows_without_the_numbers_are_passed_over() -> None:
    assert not any(signs([{"loss": 1.0}] * 30))


@pytest.mark.parametrize("repel", [True, False])
def test_a_loss_of_agreement_alone_collapses_and_a_contrastive_one_does_not(repel: bool) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    model = nn.Sequential(backbone, nn.Linear(16, 16))
    optimizer, collapse, heard = torch.optim.SGD(model.parameters(), 0.05, 0.9), Collapse(16), []
    for step in range(150):
        images = normal(32, 8, seed=step)
        noise = 0.3 * normal(64, 8, seed=1000 + step)
        features = backbone(images.repeat(2, 1) + noise)
        projections = model[1](features)
        first, second = projections.chunk(2)
        loss = nt_xent(projections, 0.2) if repel else -F.cosine_similarity(first, second).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        heard.append(collapse.sign(health(model, Step(loss, features, projections))))
    assert sum(sign is not None for sign in heard) == (0 if repel else 1)
