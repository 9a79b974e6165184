"""What machines take: the form of the model that each kind of hardware is fast at."""

from dataclasses import dataclass

import torch
from onnxruntime.quantization import QuantType
from torch import Tensor, nn

from export.graph import Served
from export.quantize import DESCRIPTION, U8S8, Scheme


@dataclass(frozen=True)
class Target:
    """One kind of machine and its artifact."""

    provider: str  # of ONNX Runtime
    description: str
    scheme: Scheme | None  # None: fp16
    measured_here: bool  # whether a CPU computes what the target does; elsewhere its fidelity is a simulation

    @property
    def precision(self) -> str:
        return "int8" if self.scheme else "fp16"


TARGETS = {
    "x86": Target("CPUExecutionProvider", DESCRIPTION, U8S8, True),
    # ARM's kernels want signed activations. The bias stays int32: with a float one ONNX Runtime would not see a
    # convolution that it can run in 8 bits.
    "arm": Target(
        "CPUExecutionProvider", "static QDQ per channel, S8S8", Scheme(activation=QuantType.QInt8), True
    ),
    # TensorRT knows no zero points and adds biases in float.
    "tensorrt": Target(
        "TensorrtExecutionProvider",
        "static QDQ per channel, S8S8 symmetric, float bias",
        Scheme(QuantType.QInt8, {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}),
        False,
    ),
    # The CUDA provider has no 8-bit convolution: it would run a QDQ graph as simulated float.
    "cuda": Target("CUDAExecutionProvider", "fp16 network, float32 ends", None, False),
}


class InHalf(nn.Module):
    """A network computed in fp16 between float32 ends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


def in_half(served: Served) -> Served:
    """The module with its ResNet in fp16, which it is changed to. BatchNorm is folded before, in float32."""
    largest = max(float(weight.detach().abs().max()) for weight in served.backbone.net.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"a folded weight of {largest:.4g} is beyond fp16's 65504; export int8")
    served.backbone.net = InHalf(served.backbone.net)
    return served
