"""Artifacts for other machines: the types each is fast at, its provider named, and nearly fp32's vectors."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import akin
from encoder.manifest import Manifest
from encoder.session import ArtifactError, Encoder, open_session, run
from export import __main__ as export_module
from export.__main__ import Export
from export.fidelity import Budget
from export.graph import Served, fold_batch_norm
from export.quantize import quantize
from export.targets import TARGETS, in_half
from export.to_onnx import to_onnx
from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_stl10 import lively_backbone, tinted_scene, write_checkpoint, write_tiny_stl10

ROOT = Path(__file__).parents[1]
SIZE = 32
IMAGES = np.stack([tinted_scene(row % 10, row)[:SIZE, :SIZE] for row in range(60)])
CALIBRATION, FRESH = IMAGES[:40], IMAGES[40:]


def served() -> Served:
    torch.manual_seed(1)
    return Served(fold_batch_norm(lively_backbone()), nn.Linear(512, 10)).eval()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graph of each target, and "fp32"."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", *TARGETS)}
    to_onnx(served(), SIZE, paths["fp32"])
    for name, target in TARGETS.items():
        if target.scheme is None:
            to_onnx(in_half(served()), SIZE, paths[name])
        else:
            quantize(paths["fp32"], paths[name], CALIBRATION, target.scheme)
    return paths


def zero_points(graph: onnx.GraphProto) -> list[np.ndarray]:
    """Of all activations."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return [values[node.input[2]] for node in quantizers if node.input[0] not in values]


@pytest.mark.parametrize("target", TARGETS)
def test_each_says_nearly_what_fp32_says(graphs: dict[str, Path], target: str) -> None:
    fp32, small = (run(open_session(graphs[name]), FRESH) for name in ("fp32", target))
    cosine = (fp32.vectors * small.vectors).sum(axis=1)
    assert cosine.min() > (0.99 if TARGETS[target].scheme else 0.9999)
    assert not np.array_equal(fp32.vectors, small.vectors)
    assert small.vectors.dtype == small.logits.dtype == np.float32


@pytest.mark.parametrize(
    ("target", "kind", "symmetric"), [("x86", np.uint8, False), ("arm", np.int8, False), ("tensorrt", np.int8, True)]
)
def test_activations_have_the_type_the_target_wants(
    graphs: dict[str, Path], target: str, kind: type, symmetric: bool
) -> None:
    found = zero_points(onnx.load(graphs[target]).graph)
    assert len(found) >= 20
    assert {zero.dtype for zero in found} == {np.dtype(kind)}
    assert (not any(zero.any() for zero in found)) is symmetric


@pytest.mark.parametrize(("target", "rounded"), [("x86", True), ("arm", True), ("tensorrt", False)])
def test_biases_are_int32_for_cpus_and_float_for_tensorrt(
    graphs: dict[str, Path], target: str, rounded: bool
) -> None:
    graph = onnx.load(graphs[target]).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            bias = node.input[2]
            assert values[made_by[bias].input[0] if rounded else bias].data_type == (
                TensorProto.INT32 if rounded else TensorProto.FLOAT
            )


def test_the_cuda_graph_has_its_convolutions_in_fp16_and_its_ends_in_float32(graphs: dict[str, Path]) -> None:
    graph = onnx.load(graphs["cuda"]).graph
    values = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [values[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert len(weights) == 20 and set(weights) == {TensorProto.FLOAT16}
    assert {output.type.tensor_type.elem_type for output in graph.output} == {TensorProto.FLOAT}
    assert values["probe.weight"] == TensorProto.FLOAT


def test_a_weight_beyond_fp16_is_refused() -> None:
    module = served()
    with torch.no_grad():
        module.backbone.net.conv1.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"a folded weight of 1e\+05 is beyond fp16's 65504; export int8"):
        in_half(module)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder with STL-10, both tiny."""
    folder = tmp_path_factory.mktemp("export")
    return write_checkpoint(folder / "run"), write_tiny_stl10(folder / "data", 150, 1)


@pytest.mark.parametrize(
    ("target", "file", "provider"),
    [
        ("arm", "encoder.int8.onnx", "CPUExecutionProvider"),
        ("tensorrt", "encoder.int8.onnx", "TensorrtExecutionProvider"),
        ("cuda", "encoder.fp16.onnx", "CUDAExecutionProvider"),
    ],
)
def test_an_export_for_a_target_names_its_provider_and_records_its_own_fidelity(
    tiny: tuple[Path, Path],
    target: str,
    file: str,
    provider: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export_module, "HELD_OUT", 60)
    monkeypatch.setattr(export_module, "Budget", lambda: Budget(cosine_mean=0.9, probe_loss=100, overlap=0))
    weights, data = tiny
    flags = ["--weights", str(weights), "--data", str(data), "--size", str(SIZE), "--calibration", "40"]
    assert akin.main(["export", *flags, "--target", target, "--out", str(tmp_path)]) == 0
    manifest = Manifest.read(tmp_path)
    (artifact,) = manifest.artifacts
    assert (artifact.file, artifact.providers, artifact.runtime) == (file, (provider,), "onnx")
    assert artifact.precision == file.split(".")[1]
    assert {f"probe_{artifact.precision}", "cosine_mean"} <= manifest.metrics["fidelity"].keys()
    said = capsys.readouterr().out
    assert "cosine_mean" in said
    assert (f"simulates {provider}; there it is unmeasured" in said) is not TARGETS[target].measured_here
    assert f"{artifact.precision} against fp32" in (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_only_what_ships_goes_into_model_store_unless_told() -> None:
    assert Export().folder == Path("model_store")
    assert Export(target="cuda").folder == Path("var/cuda")
    assert Export(runtime="torch").folder == Path("var/torch")
    assert Export(target="arm", out="elsewhere").folder == Path("elsewhere")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--runtime", "torch", "--target", "arm"], "--runtime torch is for x86; for arm leave it out"),
        (["--target", "cuda", "--test"], "--test is for the artifact that ships"),
        (["--runtime", "torch", "--test"], "--test is for the artifact that ships"),
    ],
)
def test_what_cannot_go_together_is_refused(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        akin.main(["export", *flags])
    assert reason in capsys.readouterr().err


def test_a_required_provider_runs_it_or_nothing_does(tmp_path: Path) -> None:
    manifest = write_tiny_encoder(tmp_path)
    assert Encoder.load(tmp_path, provider="CPUExecutionProvider").provider == "CPUExecutionProvider"
    with pytest.raises(ArtifactError, match=r"runs here on CUDAExecutionProvider, which is required: they"):
        Encoder.load(tmp_path, provider="CUDAExecutionProvider")
    both = dataclasses.replace(manifest.artifacts[0], providers=("NoSuchProvider", "CPUExecutionProvider"))
    dataclasses.replace(manifest, artifacts=(both,)).write(tmp_path)
    assert Encoder.load(tmp_path).provider == "CPUExecutionProvider"
    with pytest.raises(ArtifactError, match=r"or require no provider"):
        Encoder.load(tmp_path, provider="NoSuchProvider")


def test_serve_refuses_to_fall_back(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    places = ["--port", "0", "--model-store", str(tmp_path), "--gallery", str(tmp_path / "gallery")]
    command = [sys.executable, "akin.py", "serve", *places, "--require-provider", "CUDAExecutionProvider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "on CUDAExecutionProvider, which is required: they are for CPUExecutionProvider" in done.stderr


def test_serve_names_the_providers_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        akin.main(["serve", "--require-provider", "cuda"])
    assert "invalid choice: 'cuda'" in capsys.readouterr().err
