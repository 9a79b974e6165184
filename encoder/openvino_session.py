"""The ONNX artifact on OpenVINO behind the face of an ONNX Runtime session. Imported only when OpenVINO is asked for:
it is a package of its own (`make setup-openvino`)."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import openvino as ov

from encoder.machine import cores


class _Output(NamedTuple):
    name: str
    width: int  # numbers an image


class OpenVinoSession:
    """A compiled graph. `run` may be called from any number of threads at once."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        """compiled: a graph of one image."""
        self._compiled = compiled
        self._outputs = {port.any_name: _Output(port.any_name, port.shape[1]) for port in compiled.outputs}
        self._idle: deque[ov.InferRequest] = deque()  # a request has its own buffers and serves one call at a time

    def get_outputs(self) -> Sequence[_Output]:
        """What `run` can be asked for."""
        return list(self._outputs.values())

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs asked for, float32. inputs: {"image": (N, size, size, 3) uint8}."""
        batch = inputs["image"]
        results = [np.empty((len(batch), self._outputs[name].width), np.float32) for name in outputs]
        try:
            request = self._idle.pop()
        except IndexError:  # more calls at once than ever before
            request = self._compiled.create_infer_request()
        for row in range(len(batch)):
            request.infer({"image": batch[row : row + 1]})
            for name, result in zip(outputs, results, strict=True):
                result[row] = request.get_tensor(name).data[0]
        self._idle.append(request)
        return results


def open_openvino_session(model: bytes, threads: int = 1) -> OpenVinoSession:
    """`model`: an ONNX graph with the interface of an exported encoder. `threads`: those of a single call.

    The graph is fixed to one image a run. With a dynamic number of them OpenVINO 2026.4.1 computes the shipped
    int8 graph wrongly (cosine 0.25 to 0.36 to the golden vectors, 0.9995 and more with a fixed one).
    """
    core = ov.Core()
    graph = core.read_model(model, b"")
    graph.reshape({"image": [1, *list(graph.input("image").partial_shape)[1:]]})
    # A stream is what one call runs on. With a single one, calls from several threads wait for each other.
    streams = max(1, cores() // threads)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        "ENABLE_CPU_PINNING": False,  # decoding and other processes share the cores
        "INFERENCE_PRECISION_HINT": "f32",  # what is not int8; the default rounds to bf16 where the CPU has it
    }
    return OpenVinoSession(core.compile_model(graph, "CPU", settings))
