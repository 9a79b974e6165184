"""How far a run is, and its learning rate there."""

from dataclasses import replace

import pytest

from training.recipes import Pretrain
from training.schedule import head_start, progress, rate, rate_factor, view


@pytest.mark.parametrize(
    "done, warmup, expected",
    [
        *((0, 0, 1), (1 / 3, 0, 0.75), (0.5, 0, 0.5), (1, 0, 0)),
        *((0, 0.1, 0.01), (0.05, 0.1, 0.5), (0.1, 0.1, 1), (0.55, 0.1, 0.5), (1, 0.1, 0)),
    ],
)
def test_the_learning_rate_rises_and_follows_half_a_cosine(done: float, warmup: float, expected: float) -> None:
    assert rate_factor(done, warmup) == pytest.approx(expected, abs=1e-12)


def test_progress_is_by_steps_or_by_the_clock_where_minutes_are_given() -> None:
    assert progress(Pretrain(), 100, step=25, seconds=30) == 0.25
    assert progress(Pretrain(minutes=2), 100, step=99, seconds=30) == 0.25
    assert progress(Pretrain(minutes=2), 100, step=1, seconds=500) == 1


def test_a_run_from_scratch_has_no_head_start() -> None:
    assert not head_start(Pretrain(head_start=0.5), 0.0)
    assert rate(Pretrain(head_start=0.5, warmup=0), 0.5) == pytest.approx(0.5)


def test_a_run_with_init_begins_at_the_full_rate_and_then_follows_the_schedule_over_what_is_left() -> None:
    config = Pretrain(init="earlier.pt", head_start=0.2, warmup=0.1)
    assert [head_start(config, done) for done in (0, 0.19, 0.2, 1)] == [True, True, False, False]
    assert rate(config, 0.1) == 1
    for share in (0, 0.05, 0.5, 1):
        assert rate(config, 0.2 + 0.8 * share) == pytest.approx(rate_factor(share, 0.1), abs=1e-9)
    assert rate(replace(config, head_start=0.0), 0.05) == pytest.approx(0.5)


def test_views_grow_at_the_end_where_that_is_asked_for() -> None:
    config = Pretrain(end_size=120, end_share=0.25)
    assert [view(config, done).size for done in (0, 0.74, 0.75, 1)] == [96, 96, 120, 120]
    assert view(config, 1) == replace(config.view, size=120)
    assert view(Pretrain(), 1) == Pretrain().view
