"""The fp32 graph is the torch module, for any number of images, in one file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from encoder.session import open_session, run
from export.graph import Served, fold_batch_norm
from export.to_onnx import to_onnx
from tests.tiny_stl10 import lively_backbone

SIZE = 32
IMAGES = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
STEMS = ("standard", "small")


def served(stem: str) -> Served:
    torch.manual_seed(1)
    return Served(fold_batch_norm(lively_backbone(stem)), nn.Linear(512, 10)).eval()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graph of each stem, each in a folder of its own."""
    paths = {stem: tmp_path_factory.mktemp(stem) / "encoder.fp32.onnx" for stem in STEMS}
    for stem, path in paths.items():
        to_onnx(served(stem), SIZE, path)
    return paths


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_runtime_gives_what_torch_gives_for_any_batch(graphs: dict[str, Path], stem: str, count: int) -> None:
    with torch.no_grad():
        embedding, logits = served(stem)(torch.from_numpy(IMAGES[:count]))
    vectors, scores = run(open_session(graphs[stem]), IMAGES[:count])
    assert vectors == pytest.approx(embedding.numpy(), abs=1e-5)
    assert scores == pytest.approx(logits.numpy(), abs=1e-5)


@pytest.mark.parametrize("stem", STEMS)
def test_names_types_and_shapes_are_those_the_encoder_asks_for(graphs: dict[str, Path], stem: str) -> None:
    session = open_session(graphs[stem])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [SIZE, SIZE, 3])
    assert isinstance(image.shape[0], str), "the batch is free"
    outputs = [(output.name, output.type, output.shape[1]) for output in session.get_outputs()]
    assert outputs == [("embedding", "tensor(float)", 512), ("logits", "tensor(float)", 10)]


@pytest.mark.parametrize("stem", STEMS)
def test_the_graph_is_one_whole_file(graphs: dict[str, Path], stem: str) -> None:
    assert [file.name for file in graphs[stem].parent.iterdir()] == ["encoder.fp32.onnx"]
    model = onnx.load(graphs[stem], load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("stem", STEMS)
def test_nothing_but_plain_convolutions_of_one_opset_is_in_it(graphs: dict[str, Path], stem: str) -> None:
    """A runtime without torch's own operators can run it, and BatchNorm costs nothing."""
    model = onnx.load(graphs[stem])
    assert [opset.domain for opset in model.opset_import if opset.domain] == []
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 20  # ResNet-18: 17 on the main path, 3 shortcuts
    assert "BatchNormalization" not in kinds
