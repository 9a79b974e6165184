"""Golden inputs are the same everywhere, and a machine that computes otherwise is told."""

import hashlib

import numpy as np
import pytest

from encoder.golden import Golden, GoldenMismatch, check_golden, golden_batch, golden_input

GOLDEN = [Golden(0, (1.0, 0.0)), Golden(1, (0.0, 1.0)), Golden(2, (0.6, 0.8))]
RIGHT = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)


def test_golden_inputs_are_the_same_bytes_on_every_machine() -> None:
    digests = [hashlib.sha256(golden_input(seed, 96).tobytes()).hexdigest()[:16] for seed in (0, 1)]
    assert digests == ["f01544d2b5e6529e", "0dfaece6442c9f68"]


def test_golden_inputs_use_the_whole_range_of_every_channel() -> None:
    image = golden_input(3, 96)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert image.min(axis=(0, 1)).tolist() == [0, 0, 0] and image.max(axis=(0, 1)).tolist() == [255, 255, 255]


def test_golden_inputs_are_smooth_and_differ_by_seed() -> None:
    one, other = golden_input(0, 96).astype(int), golden_input(1, 96).astype(int)
    assert np.abs(np.diff(one, axis=1)).max() < 40
    assert np.abs(one - other).mean() > 30


def test_golden_inputs_of_two_sizes_show_the_same_scene() -> None:
    assert np.abs(golden_input(0, 192)[::2, ::2].astype(int) - golden_input(0, 96)).mean() < 3


def test_a_golden_batch_is_one_picture_a_vector() -> None:
    batch = golden_batch(GOLDEN, 32)
    assert batch.shape == (3, 32, 32, 3)
    assert np.array_equal(batch[1], golden_input(1, 32))


def test_vectors_that_agree_pass() -> None:
    check_golden(GOLDEN, RIGHT, 0.999, "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("wrong", "cosine"),
    [((1, 0), "0.000000"), ((0.7, 0.7), "0.707107"), ((0, np.nan), "-1.000000"), ((0, 0), "-1.000000")],
)
def test_a_vector_that_differs_is_named_with_what_to_do(wrong: tuple[float, float], cosine: str) -> None:
    vectors = RIGHT.copy()
    vectors[1] = wrong
    with pytest.raises(GoldenMismatch) as caught:
        check_golden(GOLDEN, vectors, 0.999, "CPUExecutionProvider")
    message = str(caught.value)
    assert f"golden vector 1 (seed 1) comes out with cosine {cosine}, the limit is 0.999" in message
    assert "2 of 3 agree" in message and "CPUExecutionProvider" in message
    assert "Update onnxruntime" in message and "reduce_range" in message
