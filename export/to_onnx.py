"""A served module as an fp32 ONNX graph with a dynamic batch."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

OPSET = 18


def to_onnx(served: nn.Module, size: int, path: Path, outputs: Sequence[str] = ("embedding", "logits")) -> None:
    """Writes `path`: image (N, size, size, 3) uint8 -> what `served` gives, named `outputs`."""
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own insides
        torch.onnx.export(
            served.eval(),
            (example,),
            str(path),
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1, max=4096)}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
