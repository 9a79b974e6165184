"""The served module as an fp32 ONNX graph with a dynamic batch."""

import logging
import warnings
from pathlib import Path

import torch

from export.graph import Served

OPSET = 18


def to_onnx(served: Served, size: int, path: Path) -> None:
    """Writes `path`: image (N, size, size, 3) uint8 -> embedding, logits."""
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own insides
        torch.onnx.export(
            served.eval(),
            (example,),
            str(path),
            input_names=["image"],
            output_names=["embedding", "logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1, max=4096)}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
