"""The floor that everything is held to."""

from pathlib import Path

import pytest

from encoder.session import Encoder
from load_tests import floor
from tests.serving import JPEG
from tests.tiny_encoder import write_tiny_encoder


def test_the_floor_is_the_median_latency_and_the_images_of_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_encoder(tmp_path)
    ticks = iter([100.0, 100.010, 100.030, 100.040])  # 10, 20 and 10 ms
    monkeypatch.setattr(floor, "perf_counter", lambda: next(ticks))
    measured = floor.measure(Encoder.load(tmp_path), JPEG, seconds=0.035)
    assert measured.p50_ms == pytest.approx(10) and measured.images_per_s == pytest.approx(75)
