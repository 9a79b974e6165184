"""The torch-native int8 artifact: FX graph mode quantization on the x86 engine, saved as TorchScript.

No image is needed: what calibration finds is the range of each activation, and the int8 ONNX graph holds them all
as scales and zero points. Both artifacts therefore round at the same places in the same steps.

FX graph mode and TorchScript are deprecated and still whole in the torch release that is pinned. Their successor,
torchao's PT2E, compiles at load: it needs a C++ compiler where it serves, and took twice the time (DESIGN.md).
"""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import fx, nn
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver, QConfig, QConfigMapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from encoder.torch_runtime import ENGINE
from export.graph import Served

DESCRIPTION = f"torch FX graph mode, {ENGINE} engine, per channel, U8S8"
# As in the ONNX graph: the whole of 8 bits (the engine's own default leaves one out for CPUs without VNNI).
QCONFIG = QConfig(
    activation=MinMaxObserver.with_args(
        dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255
    ),
    weight=PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    ),
)
FLOAT = ("avgpool", "fc")  # behind the last convolution everything stays in float
INPUT = "input"
WEIGHT = ("backbone.net.", ".weight_quantized")  # around a convolution's name, in the ONNX graph


class RangeError(Exception):
    """An int8 ONNX graph whose activation ranges are not the ones that the network needs."""


class Range(NamedTuple):
    """One activation: value = (step - zero_point) * scale, steps 0 to 255."""

    scale: float
    zero_point: int

    @property
    def limits(self) -> tuple[float, float]:
        return -self.zero_point * self.scale, (255 - self.zero_point) * self.scale


def read_ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """Each quantized activation by who makes it: `input`, a convolution ("layer1.0.conv1"), or a residual sum by
    its block ("layer1.0")."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    quantizers = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}

    def read(quantizer: onnx.NodeProto) -> Range:
        scale, zero = (constants[name] for name in quantizer.input[1:])
        if zero.data_type != TensorProto.UINT8:
            raise RangeError(f"{quantizer.name} is not uint8; export the x86 artifact with `akin export` first")
        return Range(float(numpy_helper.to_array(scale)), int(numpy_helper.to_array(zero)))

    def convolution(node: onnx.NodeProto) -> str:
        before, after = WEIGHT
        return made_by[node.input[1]].input[0].removeprefix(before).removesuffix(after)

    def before_rounding(value: str) -> onnx.NodeProto:
        """The node whose output was quantized and dequantized again into `value`."""
        return made_by[made_by[made_by[value].input[0]].input[0]]

    ranges = {}
    for node in graph.node:
        if node.op_type == "Conv":
            name = convolution(node)
            ranges[name] = read(quantizers[node.output[0]])
            if name == "conv1":
                ranges[INPUT] = read(made_by[made_by[node.input[0]].input[0]])
        elif node.op_type == "Add" and node.output[0] in quantizers:
            block = convolution(before_rounding(node.input[0])).removesuffix(".conv2")
            ranges[block] = read(quantizers[node.output[0]])
    return ranges


def observed(network: fx.GraphModule) -> Iterator[tuple[str, MinMaxObserver]]:
    """The observers of a prepared ResNet, each with the name that `read_ranges` gives its activation."""
    for node in network.graph.nodes:
        if not (node.op == "call_module" and node.target.startswith("activation_post_process")):
            continue
        source = node.args[0]
        if source.op == "placeholder":
            name = INPUT
        else:
            made_in = network.get_submodule(source.target)
            if isinstance(made_in, nn.MaxPool2d):
                continue  # shares the observer of what it picks from
            name = source.target.removesuffix(".relu") if isinstance(made_in, nn.ReLU) else source.target
        observer = network.get_submodule(node.target)
        assert isinstance(observer, MinMaxObserver)
        yield name, observer


def to_torch_int8(served: Served, ranges: dict[str, Range], size: int, path: Path) -> None:
    """Writes `path`, TorchScript: image (N, size, size, 3) uint8 -> embedding, logits. BatchNorm not yet folded."""
    example = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    served = deepcopy(served).eval()
    torch.backends.quantized.engine = ENGINE
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations: see above
        served.backbone.net = quantized(served.backbone.net, ranges, size)
        module = torch.jit.freeze(torch.jit.trace(served, (example,), check_trace=False))
        torch.jit.save(module, str(path))


def quantized(network: nn.Module, ranges: dict[str, Range], size: int) -> fx.GraphModule:
    """The ResNet in int8, its activations in the given ranges."""
    mapping = QConfigMapping().set_global(QCONFIG).set_object_type(torch.flatten, None)
    for name in FLOAT:
        mapping.set_module_name(name, None)
    prepared = prepare_fx(network, mapping, (torch.zeros((1, 3, size, size)),))
    observers = dict(observed(prepared))
    if observers.keys() != ranges.keys():
        raise RangeError(
            f"the int8 ONNX graph is of another network: activations {sorted(observers.keys() ^ ranges.keys())} "
            "are in one of both alone; export both from the same weights"
        )
    for name, observer in observers.items():
        low, high = ranges[name].limits
        observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
    return convert_fx(prepared)
