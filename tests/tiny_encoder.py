"""A small real model with the interface of an exported encoder, for tests that need something to run.

    write_tiny_encoder(model_store)      # encoder.json and encoder.int8.onnx, as export would leave them
    Encoder.load(model_store)

Random projections of local contrasts: deterministic, and different images give different vectors.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from encoder.golden import Golden, golden_batch
from encoder.manifest import Artifact, Manifest
from encoder.session import open_session, run
from images.spec import PreprocessSpec

GOLDEN_SEEDS = (0, 1, 2)


def write_tiny_encoder(
    model_store: Path, size: int = 32, dimension: int = 16, classes: Sequence[str] = ("cat", "dog")
) -> Manifest:
    """Write a model of random weights into `model_store`, which is made; returns what was written."""
    model_store.mkdir(parents=True, exist_ok=True)
    model = tiny_graph(size, dimension, len(classes)).SerializeToString()
    (model_store / "encoder.int8.onnx").write_bytes(model)
    digest = hashlib.sha256(model).hexdigest()
    golden = run(open_session(model), golden_batch([Golden(seed, ()) for seed in GOLDEN_SEEDS], size)).vectors
    manifest = Manifest(
        model="tiny",
        model_digest=digest,
        dimension=dimension,
        class_names=tuple(classes),
        preprocess=PreprocessSpec(size=size),
        artifacts=(Artifact("encoder.int8.onnx", digest, "int8", "none", ("CPUExecutionProvider",)),),
        golden=tuple(
            Golden(seed, tuple(round(float(value), 6) for value in vector))
            for seed, vector in zip(GOLDEN_SEEDS, golden, strict=True)
        ),
        provenance={"data": "none: random weights"},
    )
    manifest.write(model_store)
    return manifest


def tiny_graph(size: int, dimension: int, classes: int) -> onnx.ModelProto:
    """image (N, size, size, 3) uint8 -> embedding (N, dimension) of unit norm, logits (N, classes)."""
    random = np.random.RandomState(0)
    channels, stride = 8, 4
    cells = channels * (size // stride) ** 2
    constants = {
        "middle": np.float32(127.5),
        "filters": random.standard_normal((channels, 3, stride, stride)).astype(np.float32) / 127.5,
        "project": random.standard_normal((cells, dimension)).astype(np.float32),
        "probe": 4 * random.standard_normal((dimension, classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "filters"], ["contrasts"], strides=[stride, stride]),
        helper.make_node("Relu", ["contrasts"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "project"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
        helper.make_node("MatMul", ["embedding", "probe"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", dimension]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
