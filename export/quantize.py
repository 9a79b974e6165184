"""Static int8 in QDQ form, per channel: by default uint8 activations and int8 weights (U8S8), which is what x86 CPUs
are fast at: four times faster there than int8 activations, which ARM and TensorRT want (see DESIGN.md)."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

BATCH = 50
# What is left in float is a rounding error of the time: pixel scaling before the first convolution, and the
# normalisation and the probe behind the last.
QUANTIZED = ("Conv", "Add", "MaxPool", "GlobalAveragePool", "Relu")
DESCRIPTION = "static QDQ per channel, U8S8"
CALIBRATORS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


@dataclass(frozen=True)
class Scheme:
    """How activations are rounded; weights are always symmetric int8, with a scale for each output channel."""

    activation: QuantType
    options: dict[str, Any] = field(default_factory=dict)  # the quantizer's extra options


U8S8 = Scheme(activation=QuantType.QUInt8)


class Batches(CalibrationDataReader):
    """Feeds images (N, size, size, 3) uint8 to the calibrator."""

    def __init__(self, images: np.ndarray) -> None:
        # The histograms of percentile and entropy want batches of one size.
        size = max(size for size in range(1, BATCH + 1) if len(images) % size == 0)
        self.rest: Iterator[np.ndarray] = iter(np.split(images, len(images) // size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.rest, None)
        return None if batch is None else {"image": batch}


@contextmanager
def only_errors_logged() -> Iterator[None]:
    """The quantizer advises through the root logger to do what is done here already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def products_of_activations(graph: onnx.GraphProto) -> list[str]:
    """Names of the MatMul nodes without a weight, as in attention. ONNX Runtime 1.31.1 computes them wrongly in 8
    bits at its default optimisation level (a ViT comes out with cosine 0.16; at the basic level, 0.999)."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]


def quantize(
    fp32: Path,
    int8: Path,
    calibration: np.ndarray,
    scheme: Scheme = U8S8,
    calibrator: str = "minmax",
    operators: Sequence[str] = QUANTIZED,
) -> None:
    """Reads the graph `fp32`, writes `int8`. calibration: (N, size, size, 3) uint8, real training images;
    calibrator: one of CALIBRATORS, how their activations become ranges; operators: the kinds that become 8-bit."""
    with tempfile.TemporaryDirectory() as folder, only_errors_logged():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            int8,
            Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=CALIBRATORS[calibrator],
            activation_type=scheme.activation,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=products_of_activations(onnx.load(prepared).graph),
            extra_options=dict(scheme.options),
        )
    onnx.checker.check_model(str(int8))
