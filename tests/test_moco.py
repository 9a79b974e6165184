"""MoCo: InfoNCE against brute force and known values, the queue, the key encoder and its shuffled BatchNorm."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import mlp
from training.norms import BATCH_NORMS
from training.objectives import Batch
from training.objectives.moco import MoCo, MoCoKnobs, SplitBatchNorm, info_nce, permutation
from training.objectives.temperature import Temperature


def unit_rows(seed: int, count: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn((count, width), generator=generator, dtype=torch.float64), dim=1)


def by_hand(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    """Equation 1, one product at a time."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query @ key) / temperature)
        denominator = positive + sum(math.exp(float(query @ negative) / temperature) for negative in negatives)
        total -= math.log(positive / denominator)
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("negatives", [1, 6, 40])
def test_the_loss_is_the_brute_force_loop(negatives: int, temperature: float) -> None:
    q, k, n = unit_rows(0), unit_rows(1), unit_rows(2, negatives)
    assert float(info_nce(q, k, n, temperature)) == pytest.approx(by_hand(q, k, n, temperature), rel=1e-10)


@pytest.mark.parametrize("negatives", [1, 7, 4096])
def test_keys_that_are_all_equal_give_the_log_of_the_number_of_choices(negatives: int) -> None:
    one = unit_rows(0, 1)
    loss = info_nce(unit_rows(1), one.expand(6, -1), one.expand(negatives, -1), 0.07)
    assert float(loss) == pytest.approx(math.log(negatives + 1), rel=1e-10)


def test_the_lectures_worked_case() -> None:
    """0.9 to the positive, 0.2 and -0.1 to the negatives, τ 0.1, has a loss of 0.00096."""
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    others = torch.tensor([[c, math.sqrt(1 - c**2)] for c in (0.9, 0.2, -0.1)], dtype=torch.float64)
    assert float(info_nce(query, others[:1], others[1:], 0.1)) == pytest.approx(0.00096, abs=5e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    q, k, n = unit_rows(0).requires_grad_(), unit_rows(1), unit_rows(2, 9)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, k, n, 0.2), (q,))


def test_low_temperatures_do_not_overflow() -> None:
    q = unit_rows(0).float()
    assert bool(info_nce(q, -q, q, 0.001).isfinite())


SIDE = 4


def moco(queue: int = 16, groups: int = 1, momentum: float = 0.9, norm: bool = True) -> MoCo:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), mlp((3 * SIDE * SIDE, 24, 24), norm=norm))
    knobs = MoCoKnobs(queue=queue, momentum=momentum, groups=groups)
    return MoCo(backbone, mlp((24, 12, 5), norm=norm), Temperature(0.2, 0.1), knobs)  # type: ignore[arg-type]


def batch(images: int = 6, seed: int = 0) -> Batch:
    first, second = torch.rand((2, images, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return Batch((first, second), torch.arange(images))


def test_the_queue_starts_with_unit_rows_as_wide_as_the_projections() -> None:
    queue = moco(queue=16).queue
    assert queue.shape == (16, 5)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(16))


@pytest.mark.parametrize("count", [1, 5, 16])
def test_new_keys_push_the_oldest_out(count: int) -> None:
    model = moco(queue=16)
    before, keys = model.queue.clone(), unit_rows(3, count).float()
    model.enqueue(keys)
    assert torch.equal(model.queue, torch.cat([before[count:], keys]))


def test_batches_that_do_not_divide_the_queue_leave_the_newest_rows_in_order() -> None:
    model, keys = moco(queue=16), unit_rows(3, 35).float()
    for part in keys.split(7):
        model.enqueue(part)
    assert torch.equal(model.queue, keys[-16:])


def test_of_a_batch_larger_than_the_queue_its_last_rows_stay() -> None:
    model, keys = moco(queue=16), unit_rows(3, 40).float()
    model.enqueue(keys)
    assert torch.equal(model.queue, keys[-16:])


def test_a_forward_pass_compares_queries_with_their_keys_and_the_queue_as_it_was() -> None:
    model = moco(norm=False)
    queue = model.queue.double().clone()
    for parameter in model.key_head.parameters():
        parameter.data += 0.1  # no longer what the query encoder says
    step = model(batch())
    queries, _ = F.normalize(step.projections.detach().double(), dim=1).chunk(2)
    keys = F.normalize(model.key_head(model.key_backbone(batch().views[1])).double(), dim=1)
    assert float(step.loss.detach()) == pytest.approx(by_hand(queries, keys, queue, 0.2), rel=1e-5)
    torch.testing.assert_close(model.queue[-6:].double(), keys, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.queue[:-6].double(), queue[6:])


def test_features_and_projections_are_those_of_both_views_in_the_order_of_the_images() -> None:
    model = moco(norm=False)  # the key encoder is still equal to the query encoder
    step = model(batch())
    features = model.backbone(torch.cat(batch().views))
    torch.testing.assert_close(step.features, features)
    torch.testing.assert_close(step.projections, model.head(features))


def test_the_temperature_is_annealed() -> None:
    losses = []
    for progress in (0.0, 1.0):
        model = moco(norm=False)
        model.before_step(progress)
        losses.append(model(batch()).loss)
    assert losses[1] != losses[0]


def test_no_gradient_reaches_the_key_encoder() -> None:
    model = moco()
    model(batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("key_"), name


def test_the_key_encoder_follows_after_the_step() -> None:
    model = moco(momentum=0.75)
    pairs = [(model.key_backbone, model.backbone), (model.key_head, model.head)]
    parameters = [p for key, query in pairs for p in zip(key.parameters(), query.parameters(), strict=True)]
    for _, query in parameters:
        query.data += 1
    model.after_step()
    for key, query in parameters:
        torch.testing.assert_close(key.data, query.data - 0.75)


# Shuffled BatchNorm


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_a_permutation_holds_every_row_once_and_another_turn_gives_another(count: int) -> None:
    orders = [permutation(count, torch.tensor(turn)).tolist() for turn in range(5)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[3] == permutation(count, torch.tensor(3)).tolist()
    if count > 2:
        assert len({tuple(order) for order in orders}) == 5


def test_a_turn_is_not_the_one_before_moved_by_a_row() -> None:
    places = torch.stack([permutation(256, torch.tensor(turn)).argsort() for turn in range(20)]).float()
    for shift in (0, 1):
        pairs = torch.stack([places[:-1, shift:].flatten(), places[1:, : 256 - shift].flatten()])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.07  # of 4,864 pairs: five standard errors


def test_over_many_turns_every_row_comes_to_every_place_equally_often() -> None:
    turns, rows = 4000, 6
    counts = torch.zeros(rows, rows)
    for turn in range(turns):
        counts[torch.arange(rows), permutation(rows, torch.tensor(turn))] += 1
    expected = turns / rows
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


def test_neighbours_are_parted_as_often_as_any_two_rows() -> None:
    """Rows 0 and 1 of 16 are in the same quarter with a chance of 3 / 15."""
    turns = 3000
    together = 0
    for turn in range(turns):
        place = permutation(16, torch.tensor(turn)).argsort()
        together += int(place[0] // 4 == place[1] // 4)
    assert together / turns == pytest.approx(3 / 15, abs=5 * math.sqrt(0.2 * 0.8 / turns))


def test_a_split_norm_is_a_batch_norm_for_each_part() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(12, 3, 4, 4)
    expected = torch.cat([norm(part) for part in x.split(4)])
    torch.testing.assert_close(SplitBatchNorm(norm, groups=3)(x), expected)
    torch.testing.assert_close(SplitBatchNorm(norm, groups=1)(x), norm(x))


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_part_has_at_least_two_rows_however_small_the_batch(rows: int) -> None:
    y = SplitBatchNorm(nn.BatchNorm1d(4), groups=8)(torch.randn(rows, 4))
    assert bool((y.std(dim=0) > 0.5).all())


def test_the_key_encoder_has_split_norms_alone_and_the_query_encoder_none() -> None:
    model = moco(groups=4)
    keys = [*model.key_backbone.modules(), *model.key_head.modules()]
    queries = [*model.backbone.modules(), *model.head.modules()]
    assert sum(isinstance(module, SplitBatchNorm) for module in keys) == 2
    assert not any(isinstance(module, BATCH_NORMS) for module in keys)
    assert sum(isinstance(module, BATCH_NORMS) for module in queries) == 2
    assert not any(isinstance(module, SplitBatchNorm) for module in queries)


def test_a_key_depends_on_the_images_of_its_group_and_on_no_others() -> None:
    model, images = moco(groups=2), batch(8).views[1]
    order = permutation(8, model.batches).tolist()
    _, keys = model.encode_keys(images)
    model.batches.zero_()
    changed = images.clone()
    changed[order[0]] = 1 - changed[order[0]]
    _, others = model.encode_keys(changed)
    moved = (keys - others).abs().amax(dim=1) > 1e-6
    assert sorted(moved.nonzero().flatten().tolist()) == sorted(order[:4])


def test_the_groups_are_others_at_the_next_step() -> None:
    model, images = moco(groups=2), batch(8).views[1]
    (_, first), (_, second) = model.encode_keys(images), model.encode_keys(images)
    assert int(model.batches) == 2
    assert not torch.allclose(first, second)


def test_a_checkpoint_brings_back_queue_key_encoder_and_turn() -> None:
    model, other = moco(groups=2), moco(groups=2)
    for seed in range(3):
        model(batch(seed=seed))
        for parameter in model.head.parameters():
            parameter.data += 0.1
        model.after_step()
    other.load_state_dict(model.state_dict())
    assert int(other.batches) == 3
    assert torch.equal(model(batch(seed=9)).loss, other(batch(seed=9)).loss)
    assert torch.equal(model.queue, other.queue)


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"queue": 0}, "queue 0 is too little; give at least 1"),
        ({"groups": 0}, "groups 0 is too little; give at least 1"),
        ({"momentum": 1.5}, "momentum 1.5 is no share of the key encoder; give 0 to 1"),
    ],
)
def test_knobs_without_a_meaning_are_refused(knobs: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MoCoKnobs(**knobs)  # type: ignore[arg-type]
