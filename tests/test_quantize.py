"""The int8 graph: 8-bit where the time goes, in the types x86 is fast at, a quarter of the size."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from encoder.session import open_session, run
from export.graph import Served, fold_batch_norm
from export.quantize import Batches, quantize
from export.to_onnx import to_onnx
from tests.tiny_stl10 import lively_backbone, tinted_scene
from training.backbone import MEAN, STD

SIZE = 32
IMAGES = np.stack([tinted_scene(row % 10, row)[:SIZE, :SIZE] for row in range(60)])
CALIBRATION, FRESH = IMAGES[:40], IMAGES[40:]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "encoder.fp32.onnx"
    torch.manual_seed(1)
    to_onnx(Served(fold_batch_norm(lively_backbone()), nn.Linear(512, 10)), SIZE, path)
    return path


@pytest.fixture(scope="module")
def int8(fp32: Path) -> Path:
    path = fp32.with_name("encoder.int8.onnx")
    quantize(fp32, path, CALIBRATION)
    return path


@pytest.fixture(scope="module")
def graph(int8: Path) -> onnx.GraphProto:
    return onnx.load(int8).graph


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def made_by(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Name of a value -> the node that makes it."""
    return {output: node for node in graph.node for output in node.output}


def test_convolution_weights_are_symmetric_int8_with_a_scale_of_their_own_for_each_channel(
    graph: onnx.GraphProto,
) -> None:
    values, source = constants(graph), made_by(graph)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        dequantize = source[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        weight, scale, zero = (values[name] for name in dequantize.input)
        assert weight.dtype == zero.dtype == np.int8
        assert scale.shape == (len(weight),) and len(set(scale.tolist())) > 1
        assert not zero.any()


def test_every_activation_is_uint8(graph: onnx.GraphProto) -> None:
    values = constants(graph)
    zero_points = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(zero_points) >= 20
    assert {zero.dtype for zero in zero_points} == {np.dtype(np.uint8)}
    assert {zero.shape for zero in zero_points} == {()}


def test_every_convolution_and_sum_reads_8_bit_values(graph: onnx.GraphProto) -> None:
    source = made_by(graph)
    for node in graph.node:
        if node.op_type in ("Conv", "Add"):
            assert {source[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}, node.name


def test_it_takes_a_quarter_of_the_space(fp32: Path, int8: Path) -> None:
    assert 3.8 < fp32.stat().st_size / int8.stat().st_size < 4.1


def test_it_says_nearly_the_same_of_images_it_was_not_calibrated_on(fp32: Path, int8: Path) -> None:
    exact, rounded = (run(open_session(path), FRESH) for path in (fp32, int8))
    cosine = (exact.vectors * rounded.vectors).sum(axis=1)
    assert cosine.min() > 0.99 and cosine.max() < 1 - 1e-7, "equal vectors would mean that nothing was quantized"
    assert np.linalg.norm(rounded.vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_calibration_gives_the_same_file(fp32: Path, int8: Path, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "again.onnx", CALIBRATION)
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_the_calibration_images_set_the_ranges(graph: onnx.GraphProto) -> None:
    """Of the input, for one: 255 steps from the least to the greatest normalised pixel that calibration saw."""
    values, source = constants(graph), made_by(graph)
    first = next(node for node in graph.node if node.op_type == "Conv")
    _, scale, zero = source[first.input[0]].input
    normalised = (CALIBRATION / 255 - np.array(MEAN)) / np.array(STD)
    assert float(values[scale]) == pytest.approx((normalised.max() - normalised.min()) / 255, rel=1e-4)
    assert int(values[zero]) == round(-normalised.min() / float(values[scale]))


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (49, 1), (120, 3), (300, 6), (53, 53)])
def test_the_calibrator_sees_each_image_once_in_batches_of_one_size(count: int, batches: int) -> None:
    images = np.arange(count, dtype=np.int64).reshape(count, 1, 1, 1)
    reader = Batches(images)
    seen = []
    while (batch := reader.get_next()) is not None:
        seen.append(batch["image"])
    assert len(seen) == batches and len({len(batch) for batch in seen}) == 1
    assert np.array_equal(np.concatenate(seen), images)


def test_the_log_level_of_the_process_is_left_alone(int8: Path) -> None:
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_other_calibrators_take_any_number_of_images_and_give_narrower_ranges(
    calibrator: str, fp32: Path, graph: onnx.GraphProto, tmp_path: Path
) -> None:
    quantize(fp32, tmp_path / "other.onnx", CALIBRATION[:23], calibrator=calibrator)
    assert total_range(onnx.load(tmp_path / "other.onnx").graph) < total_range(graph)


def total_range(graph: onnx.GraphProto) -> float:
    """Sum of the scales of all activations."""
    values = constants(graph)
    return sum(float(values[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear")


class Attention(nn.Module):
    """One head over the image's rows, and a projection behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(3 * SIZE, 64) for _ in range(3))
        self.out = nn.Linear(64, 32)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = image.float().flatten(2) / 255
        weights = (self.query(rows) @ self.key(rows).transpose(1, 2)).softmax(dim=-1)
        return nn.functional.normalize(self.out(weights @ self.value(rows)).mean(dim=1), dim=1)


def test_products_of_activations_stay_in_float_and_those_with_weights_do_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    to_onnx(Attention(), SIZE, tmp_path / "fp32.onnx", outputs=("embedding",))
    quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", CALIBRATION, operators=("MatMul", "Gemm"))
    graph = onnx.load(tmp_path / "int8.onnx").graph
    source = made_by(graph)
    inputs = [
        {source[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in source}
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
    ]
    assert sorted(inputs, key=str).count({False}) == 2, "queries with keys, and weights with values"
    assert inputs.count({True}) == 4
    exact, rounded = (run(open_session(tmp_path / f"{kind}.onnx"), FRESH).vectors for kind in ("fp32", "int8"))
    assert (exact * rounded).sum(axis=1).min() > 0.999
