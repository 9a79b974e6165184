"""The temperature on its way from start to end."""

import math

import pytest
import torch

from training.objectives.temperature import Temperature


def test_it_goes_from_start_to_end_along_half_a_cosine() -> None:
    temperature = Temperature(0.5, 0.1)
    assert float(temperature.value) == pytest.approx(0.5)
    for progress, value in ((0.0, 0.5), (0.25, 0.3 + 0.2 * math.sqrt(0.5)), (0.5, 0.3), (1.0, 0.1)):
        temperature.anneal(progress)
        assert float(temperature.value) == pytest.approx(value, rel=1e-6)


def test_it_may_rise() -> None:
    temperature = Temperature(0.1, 0.5)
    temperature.anneal(0.75)
    assert float(temperature.value) == pytest.approx(0.3 + 0.2 * math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_without_an_end_it_stays(progress: float) -> None:
    temperature = Temperature(0.2)
    temperature.anneal(progress)
    assert float(temperature.value) == pytest.approx(0.2, rel=1e-6)


def test_it_changes_in_place_so_that_a_compiled_step_sees_it() -> None:
    temperature = Temperature(0.2, 0.1)
    seen = temperature.value
    temperature.anneal(1.0)
    assert float(seen) == pytest.approx(0.1)


def test_checkpoints_do_not_hold_it_since_the_schedule_gives_it_back() -> None:
    assert not Temperature(0.2).state_dict()
    assert Temperature(0.2).value.dtype == torch.float32
