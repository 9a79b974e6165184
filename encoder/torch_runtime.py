"""The torch-native int8 artifact behind the face of an ONNX Runtime session. The only module outside training and
export that imports torch, and itself imported only for a manifest that asks for torch."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

OUTPUTS = ("embedding", "logits")  # in the order in which the module returns them
ENGINE = "x86"  # oneDNN where the CPU has VNNI, FBGEMM elsewhere


class _Output(NamedTuple):
    name: str


class TorchSession:
    """A TorchScript module. `run` may be called from any number of threads at once."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    def get_outputs(self) -> Sequence[_Output]:
        """What `run` can be asked for."""
        return [_Output(name) for name in OUTPUTS]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs asked for, float32. inputs: {"image": (N, size, size, 3) uint8}."""
        image = np.require(inputs["image"], requirements=("C", "W"))  # what torch can share memory with
        with torch.inference_mode():  # belongs to the thread, so it stands here
            results = dict(zip(OUTPUTS, self.module(torch.from_numpy(image)), strict=True))
        return [results[name].numpy() for name in outputs]


def open_torch_session(model: bytes, threads: int = 1) -> TorchSession:
    """`model`: what export.to_torch_int8 wrote. `threads` a call; torch keeps that number for the whole process."""
    if ENGINE not in torch.backends.quantized.supported_engines:
        offered = ", ".join(torch.backends.quantized.supported_engines)
        raise RuntimeError(f"torch's quantized engine {ENGINE} is needed, this machine offers {offered}; use ONNX")
    torch.backends.quantized.engine = ENGINE
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated: see export.to_torch_int8
        return TorchSession(torch.jit.load(io.BytesIO(model), map_location="cpu").eval())
