"""The torch-native int8 artifact: 8-bit kernels in the ONNX artifact's ranges, and nearly its vectors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType
from torch import nn

import akin
from encoder.manifest import Manifest
from encoder.session import Embedded, Encoder, open_session, run
from encoder.torch_runtime import TorchSession, open_torch_session
from export.graph import Served, fold_batch_norm
from export.quantize import Scheme, quantize
from export.to_onnx import to_onnx
from export.to_torch_int8 import Range, RangeError, read_ranges, to_torch_int8
from tests.pictures import scene
from tests.tiny_stl10 import lively_backbone, tinted_scene
from training.backbone import MEAN, STD

ROOT = Path(__file__).parents[1]
SIZE = 32
IMAGES = np.stack([tinted_scene(row % 10, row)[:SIZE, :SIZE] for row in range(60)])
CALIBRATION, FRESH = IMAGES[:40], IMAGES[40:]
PROBE = nn.Linear(512, 10)
Graphs = dict[str, Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = tmp_path_factory.mktemp("graphs")
    paths = {name: folder / name for name in ("fp32.onnx", "int8.onnx", "int8.pt")}
    to_onnx(Served(fold_batch_norm(lively_backbone()), PROBE), SIZE, paths["fp32.onnx"])
    quantize(paths["fp32.onnx"], paths["int8.onnx"], CALIBRATION)
    to_torch_int8(Served(lively_backbone(), PROBE), ranges_of(paths["int8.onnx"]), SIZE, paths["int8.pt"])
    return paths


def ranges_of(path: Path) -> dict[str, Range]:
    return read_ranges(onnx.load(path))


def opened(path: Path) -> TorchSession:
    return open_torch_session(path.read_bytes())


def cosines(one: Embedded, other: Embedded) -> np.ndarray:
    return (one.vectors * other.vectors).sum(axis=1)


def test_the_ranges_are_those_of_the_input_twenty_convolutions_and_eight_sums(graphs: Graphs) -> None:
    ranges = ranges_of(graphs["int8.onnx"])
    sums = {f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)}
    assert len(ranges) == 29
    assert sums | {"input", "conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"} <= ranges.keys()
    normalised = (CALIBRATION / 255 - np.array(MEAN)) / np.array(STD)
    assert ranges["input"].limits == pytest.approx((normalised.min(), normalised.max()), abs=ranges["input"].scale)
    assert ranges["conv1"].limits[0] == ranges["layer4.1"].limits[0] == 0, "behind a ReLU nothing is below zero"


def test_it_says_what_the_onnx_artifact_says_and_both_nearly_what_fp32_says(graphs: Graphs) -> None:
    fp32, onnx_int8 = (run(open_session(graphs[name]), FRESH) for name in ("fp32.onnx", "int8.onnx"))
    torch_int8 = run(opened(graphs["int8.pt"]), FRESH)
    assert cosines(torch_int8, onnx_int8).min() > 0.995
    assert cosines(torch_int8, fp32).min() > 0.99 and cosines(torch_int8, fp32).max() < 1 - 1e-7
    assert np.abs(torch_int8.logits - onnx_int8.logits).max() < 0.05


def test_every_convolution_and_every_residual_sum_runs_in_8_bits(graphs: Graphs) -> None:
    kinds = [node.kind() for node in opened(graphs["int8.pt"]).module.inlined_graph.nodes()]
    assert sum(kind.startswith("quantized::conv2d") for kind in kinds) == 20
    assert kinds.count("quantized::add_relu") == 8
    assert kinds.count("aten::quantize_per_tensor") == 1, "one way in"
    assert kinds.count("aten::dequantize") == 1, "and one way out"


def test_it_takes_a_quarter_of_the_space(graphs: Graphs) -> None:
    assert 3.8 < graphs["fp32.onnx"].stat().st_size / graphs["int8.pt"].stat().st_size < 4.1


def test_the_given_ranges_are_what_it_rounds_to(graphs: Graphs, tmp_path: Path) -> None:
    ranges = ranges_of(graphs["int8.onnx"])
    coarse = {name: Range(64 * scale, round(zero / 64)) for name, (scale, zero) in ranges.items()}
    to_torch_int8(Served(lively_backbone(), PROBE), coarse, SIZE, tmp_path / "coarse.pt")
    right, wrong = run(opened(graphs["int8.pt"]), FRESH), run(opened(tmp_path / "coarse.pt"), FRESH)
    assert cosines(right, wrong).max() < 0.98


def test_the_module_it_was_made_of_is_left_as_it_was(graphs: Graphs, tmp_path: Path) -> None:
    served = Served(lively_backbone(), PROBE)
    before = {name: value.clone() for name, value in served.state_dict().items()}
    to_torch_int8(served, ranges_of(graphs["int8.onnx"]), SIZE, tmp_path / "int8.pt")
    assert all(value.equal(before[name]) for name, value in served.state_dict().items())


def test_ranges_of_another_network_are_refused(graphs: Graphs, tmp_path: Path) -> None:
    ranges = ranges_of(graphs["int8.onnx"])
    del ranges["layer4.1"]
    with pytest.raises(RangeError, match=r"another network: activations \['layer4.1'\]"):
        to_torch_int8(Served(lively_backbone(), PROBE), ranges, SIZE, tmp_path / "int8.pt")


def test_ranges_of_signed_activations_are_refused(graphs: Graphs, tmp_path: Path) -> None:
    quantize(graphs["fp32.onnx"], tmp_path / "s8s8.onnx", CALIBRATION, Scheme(QuantType.QInt8))
    with pytest.raises(RangeError, match=r"is not uint8; export the x86 artifact"):
        ranges_of(tmp_path / "s8s8.onnx")


def test_the_shipped_encoder_becomes_torch_native_without_any_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, nowhere = ROOT / "model_store/encoder.safetensors", tmp_path / "no-data"
    flags = ["--runtime", "torch", "--weights", str(weights), "--data", str(nowhere), "--out", str(tmp_path)]
    assert akin.main(["export", *flags]) == 0
    assert f"no STL-10 at {nowhere}: fidelity is not measured" in capsys.readouterr().out
    shipped, native = Encoder.load(ROOT / "model_store"), Encoder.load(tmp_path)
    assert native.provider == "torch-x86" and native.artifact.runtime == "torch"
    assert native.manifest.model_id == shipped.manifest.model_id, "the same model, so the same gallery"
    assert native.manifest.golden == shipped.manifest.golden
    assert native.manifest.metrics == {}, "the shipped numbers are of another artifact"
    size = shipped.manifest.preprocess.size
    images = np.stack([np.asarray(scene(size, size, seed)) for seed in range(20)])
    cosine = cosines(native.embed(images), shipped.embed(images))
    assert cosine.mean() > 0.998 and cosine.min() > 0.99
    seed = Manifest.read(tmp_path).gallery_seed
    assert seed is not None and (tmp_path / seed["file"]).read_bytes() == (
        ROOT / "model_store" / seed["file"]
    ).read_bytes()
