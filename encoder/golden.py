"""Golden vectors: known inputs with known outputs, compared on the machine that serves.

int8 can go wrong by machine: without VNNI the usual U8S8 kernels saturate, and single ONNX Runtime
releases have been wrong on single kinds of CPU. So the exporting machine writes down what some
generated pictures give, and every machine that loads the artifact must agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoder.machine import cpu_flags, cpu_name

WAVES = 8
CYCLE = 512  # of the triangle waves, in 1/256 of the picture's side


@dataclass(frozen=True)
class Golden:
    """What the picture of `golden_input(seed, size)` gives: a unit vector of D floats, 6 decimals."""

    seed: int
    vector: tuple[float, ...]


class GoldenMismatch(Exception):
    """This machine does not reproduce the vectors that the model was exported with."""


def golden_input(seed: int, size: int) -> np.ndarray:
    """A smooth coloured scene, (size, size, 3) uint8: the same bytes on every machine and NumPy.

    Triangle waves of random direction and colour, in integer arithmetic on raw generator output
    alone: floating-point sines and NumPy's distributions may both change between versions.
    """
    raw = np.random.Philox(key=seed).random_raw(WAVES * 6).reshape(WAVES, 6)
    draws = (raw >> np.uint64(40)).astype(np.int64)  # 24 bits each
    position = np.arange(size, dtype=np.int64) * 256 // size  # 0..255 whatever the size
    scene = np.zeros((size, size, 3), np.int64)
    for across, down, phase, *amplitudes in draws.tolist():
        slope_x, slope_y = across % 13 - 6, down % 13 - 6
        angle = slope_x * position[None, :] + slope_y * position[:, None] + phase % CYCLE
        triangle = np.abs(angle % CYCLE - CYCLE // 2)  # 0..256
        scene += triangle[:, :, None] * (np.array(amplitudes, np.int64) % 256)
    low = scene.min(axis=(0, 1))
    span = np.maximum(scene.max(axis=(0, 1)) - low, 1)
    return ((scene - low) * 255 // span).astype(np.uint8)


def golden_batch(golden: Sequence[Golden], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8, one generated picture for each golden vector."""
    return np.stack([golden_input(pair.seed, size) for pair in golden])


def check_golden(golden: Sequence[Golden], vectors: np.ndarray, min_cosine: float, provider: str) -> None:
    """Raise GoldenMismatch unless every row of `vectors` (N, D) float32 agrees with its golden vector."""
    expected = np.array([pair.vector for pair in golden], np.float32)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.nan_to_num(np.einsum("nd,nd->n", vectors, expected) / norms, nan=-1.0)
    worst = int(np.argmin(cosines))
    if cosines[worst] < min_cosine:
        agreeing = int((cosines >= min_cosine).sum())
        raise GoldenMismatch(
            f"golden vector {worst} (seed {golden[worst].seed}) comes out with cosine "
            f"{cosines[worst]:.6f}, the limit is {min_cosine}; {agreeing} of {len(golden)} agree. "
            f"This machine ({cpu_description()}, {provider}) computes the model wrongly, so it is not "
            "served. Update onnxruntime (on OpenVINO: go back to it), or, on a CPU without VNNI, where 8-bit "
            "products saturate, export again with reduce_range"
        )


def cpu_description() -> str:
    """Name of the CPU and the int8 instructions it has, for messages."""
    instructions = [flag for flag in cpu_flags() if "vnni" in flag or flag == "amx_int8"]
    return f"{cpu_name()}, {' '.join(instructions) or 'no VNNI seen'}"
