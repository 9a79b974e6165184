"""Smaller forms of an fp32 graph, tried in order until one keeps what the graph says: static int8, dynamic int8,
fp16 weights, and the graph itself."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from encoder.session import open_session, run
from export.fidelity import Budget, Closeness, closeness
from export.quantize import DESCRIPTION, QUANTIZED, only_errors_logged, quantize
from export.write import outputs

BATCH = 50
TIMED = 20  # runs that the milliseconds are the median of
PRODUCTS = ("MatMul", "Gemm")
MATRIX = 1024  # numbers from which on a tensor of two or more dimensions is stored as fp16
HALF_MAX = float(np.finfo(np.float16).max)


class Unsuited(Exception):
    """A form that does not suit a graph, and why."""


@dataclass(frozen=True)
class Form:
    """One way to write a graph."""

    kind: str  # the file is NAME.KIND.onnx
    precision: str
    description: str
    write: Callable[[Path, Path, np.ndarray, str], None]  # fp32 graph, new one, calibration images, calibrator


@dataclass(frozen=True)
class Attempt:
    """What became of a form."""

    kind: str
    file: Path  # its graph, which is there if it was kept
    precision: str
    quantization: str
    verdict: str
    bytes: int = 0
    milliseconds: float = math.nan  # of one image, on one thread
    closeness: Closeness | None = None  # None: there is no graph to measure

    @property
    def kept(self) -> bool:
        return self.verdict == "kept"

    def to_json(self) -> dict[str, Any]:
        told = {"kind": self.kind, "quantization": self.quantization, "verdict": self.verdict}
        if self.closeness is None:
            return told
        return told | {"bytes": self.bytes, "ms": round(self.milliseconds, 2)} | self.closeness.to_json()


def attempts(
    fp32: Path, calibration: np.ndarray, held_out: np.ndarray, budget: Budget, calibrator: str
) -> Iterator[Attempt]:
    """One after the other, the last one kept; its graph then lies beside `fp32`, which is NAME.fp32.onnx, those of
    others do not. Images are (N, size, size, 3) uint8."""
    reference = outputs(fp32, held_out, BATCH).vectors
    for form in FORMS:
        small = fp32.with_name(f"{fp32.name.removesuffix('.fp32.onnx')}.{form.kind}.onnx")
        attempt = Attempt(form.kind, small, form.precision, form.description, "kept")
        try:
            form.write(fp32, small, calibration, calibrator)
        except Unsuited as reason:
            yield replace(attempt, verdict=f"not tried: {reason}")
            continue
        found = closeness(reference, outputs(small, held_out, BATCH).vectors)
        broken = [] if small == fp32 else found.beyond(budget)
        yield replace(
            attempt,
            verdict=f"over budget: {'; '.join(broken)}" if broken else "kept",
            bytes=small.stat().st_size,
            milliseconds=milliseconds(small, held_out),
            closeness=found,
        )
        if not broken:
            return
        small.unlink()


def milliseconds(model: Path, images: np.ndarray) -> float:
    """Median over single images, on one thread."""
    session = open_session(model)
    run(session, images[:1])
    seconds = []
    for row in range(TIMED):
        image = images[row % len(images)][None]
        start = time.perf_counter()
        run(session, image)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def write_static(fp32: Path, small: Path, calibration: np.ndarray, calibrator: str) -> None:
    graph = onnx.load(fp32).graph
    quantize(fp32, small, calibration, calibrator=calibrator, operators=operators_for(graph))


def operators_for(graph: onnx.GraphProto) -> Sequence[str]:
    """What to make 8-bit: in a convolutional network also its sums, which otherwise cost a conversion each; not in
    a transformer, whose sums carry the outliers from layer to layer."""
    if any(node.op_type == "LayerNormalization" for node in graph.node):
        return ("Conv", *PRODUCTS)
    return (*QUANTIZED, *PRODUCTS)


def write_dynamic(fp32: Path, small: Path, calibration: np.ndarray, calibrator: str) -> None:
    share = share_in_products(onnx.load(fp32).graph)
    if share < 0.5:
        raise Unsuited(
            f"{100 * share:.0f} % of its weights are in matrix products, and dynamic int8 convolutions are slower "
            "than fp32"
        )
    with only_errors_logged():
        quant_pre_process(fp32, small, skip_symbolic_shape=True)
        model = onnx.load(small)
        model.graph.ClearField("value_info")  # Gemm becomes MatMul, whose shapes the old ones may contradict
        quantize_dynamic(
            model, small, op_types_to_quantize=list(PRODUCTS), per_channel=True, weight_type=QuantType.QInt8
        )


def share_in_products(graph: onnx.GraphProto) -> float:
    """The share of the weights that matrix products multiply by."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    multiplied = {name for node in graph.node if node.op_type in PRODUCTS for name in node.input}
    return sum(size for name, size in sizes.items() if name in multiplied) / max(1, sum(sizes.values()))


def write_half(fp32: Path, small: Path, calibration: np.ndarray, calibrator: str) -> None:
    """Matrices and kernels stored as fp16. They are computed with in float32, as ONNX Runtime would on a CPU anyway;
    so no activation, however large, overflows."""
    model = onnx.load(fp32)
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        weight = numpy_helper.to_array(tensor)
        if weight.dtype != np.float32 or weight.ndim < 2 or weight.size < MATRIX:
            continue
        if (largest := float(np.abs(weight).max())) > HALF_MAX:
            raise Unsuited(f"a weight of {largest:.4g} is beyond fp16's {HALF_MAX:.0f}")
        half = numpy_helper.from_array(weight.astype(np.float16), f"{tensor.name}_fp16")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        graph.initializer.remove(tensor)
        graph.initializer.append(half)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.save(model, small)


def write_nothing(fp32: Path, small: Path, calibration: np.ndarray, calibrator: str) -> None:
    """The last form is the graph itself."""


FORMS = (
    Form("int8", "int8", DESCRIPTION, write_static),
    Form("dynamic-int8", "int8", "dynamic, matrix products per channel, U8S8", write_dynamic),
    Form("fp16", "fp16", "fp16 weights, computed in float32", write_half),
    Form("fp32", "fp32", "none", write_nothing),
)
