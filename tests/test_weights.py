"""encoder.safetensors gives back exactly what is served, and names it by its bytes."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from encoder.manifest import model_digest
from export.weights import half_precision, write_weights
from images.spec import PreprocessSpec
from tests.tiny_stl10 import lively_backbone
from training.backbone import Backbone
from training.checkpoint import load_backbone


def probe() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(512, 10)


def written(path: Path, backbone: Backbone) -> Path:
    write_weights(path, backbone, probe())
    return path


def test_the_file_gives_back_every_weight_and_the_stem(tmp_path: Path) -> None:
    backbone = half_precision(lively_backbone("small"))
    loaded = load_backbone(str(written(tmp_path / "encoder.safetensors", backbone)))
    assert loaded.stem == "small"
    for name, value in backbone.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_half_precision_moves_no_weight_by_more_than_a_thousandth() -> None:
    exact, rounded = lively_backbone().state_dict(), half_precision(lively_backbone()).state_dict()
    change = {name: (rounded[name] - exact[name]).abs().max() for name in exact if exact[name].is_floating_point()}
    assert all(change[name] <= 1e-3 * exact[name].abs().max() for name in change)
    assert any(moved > 0 for moved in change.values())
    assert all(value.dtype == torch.float32 for value in rounded.values() if value.is_floating_point())


def test_the_backbone_is_fp16_the_probe_exact_and_nothing_else_is_there(tmp_path: Path) -> None:
    file = written(tmp_path / "encoder.safetensors", half_precision(lively_backbone()))
    tensors = load_file(file)
    assert {value.dtype for name, value in tensors.items() if name.startswith("backbone.")} == {torch.float16}
    assert torch.equal(tensors["probe.weight"], probe().weight)
    assert torch.equal(tensors["probe.bias"], probe().bias)
    assert {name.partition(".")[0] for name in tensors} == {"backbone", "probe"}
    assert file.stat().st_size < 23e6
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"stem": "standard"}


def test_the_same_weights_give_the_same_bytes_whatever_their_memory_format(tmp_path: Path) -> None:
    backbone = half_precision(lively_backbone())
    first = written(tmp_path / "one.safetensors", backbone)
    channels_last = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    second = written(tmp_path / "two.safetensors", channels_last)
    assert first.read_bytes() == second.read_bytes()


def test_weights_written_again_from_their_file_keep_the_model_digest(tmp_path: Path) -> None:
    first = written(tmp_path / "one.safetensors", half_precision(lively_backbone()))
    second = written(tmp_path / "two.safetensors", half_precision(load_backbone(str(first))))
    other = written(tmp_path / "other.safetensors", half_precision(lively_backbone(seed=1)))
    digests = [model_digest(file, PreprocessSpec()) for file in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
