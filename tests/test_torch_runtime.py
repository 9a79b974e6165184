"""The encoder on torch: the same face, the same checks before the first answer, and torch only where asked for."""

import dataclasses
import hashlib
import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoder.golden import Golden, GoldenMismatch, golden_batch, golden_input
from encoder.manifest import Artifact, Manifest, ManifestError
from encoder.session import ArtifactError, Encoder, run
from encoder.torch_runtime import open_torch_session
from tests.tiny_encoder import write_tiny_encoder

BATCH = np.stack([golden_input(seed, 32) for seed in range(10, 16)])


class Tiny(nn.Module):
    """Pixels to 16 unit features and 2 logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.probe = nn.Linear(48, 16), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.adaptive_avg_pool2d(image.permute(0, 3, 1, 2).float() / 127.5 - 1, 4)
        embedding = nn.functional.normalize(self.project(x.flatten(1)))
        return embedding, self.probe(embedding)


def tiny_torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(Tiny().eval(), torch.zeros((1, 32, 32, 3), dtype=torch.uint8)), buffer)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model store with a torch artifact alone."""
    manifest, model = write_tiny_encoder(tmp_path), tiny_torchscript()
    (tmp_path / "encoder.torch-int8.pt").write_bytes(model)
    digest = hashlib.sha256(model).hexdigest()
    golden = run(open_torch_session(model), golden_batch(manifest.golden, 32)).vectors
    rewrite(
        tmp_path,
        artifacts=(Artifact("encoder.torch-int8.pt", digest, "int8", "none", ("torch-x86",), runtime="torch"),),
        golden=tuple(Golden(seed, tuple(vector.tolist())) for seed, vector in enumerate(golden)),
    )
    return tmp_path


def rewrite(store: Path, **changes: object) -> None:
    dataclasses.replace(Manifest.read(store), **changes).write(store)  # type: ignore[arg-type]


def test_a_manifest_that_asks_for_torch_gets_it(store: Path) -> None:
    encoder = Encoder.load(store)
    assert encoder.provider == "torch-x86" and encoder.artifact.runtime == "torch"
    vectors, logits = encoder.embed(BATCH)
    assert vectors.shape == (6, 16) and logits.shape == (6, 2)
    assert vectors.dtype == logits.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_it_gives_what_the_module_gives(store: Path) -> None:
    with torch.no_grad():
        embedding, logits = Tiny().eval()(torch.from_numpy(BATCH))
    answer = Encoder.load(store).embed(BATCH)
    assert answer.vectors == pytest.approx(embedding.numpy(), abs=1e-6)
    assert answer.logits == pytest.approx(logits.numpy(), abs=1e-6)


def test_the_outputs_asked_for_come_in_the_order_asked_for(store: Path) -> None:
    session = open_torch_session(tiny_torchscript())
    logits, embedding = session.run(("logits", "embedding"), {"image": BATCH})
    assert logits.shape == (6, 2) and embedding.shape == (6, 16)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_uses_as_many_threads_as_it_was_given(store: Path, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        Encoder.load(store, threads=threads)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_threads_may_share_it(store: Path) -> None:
    encoder = Encoder.load(store)
    expected = encoder.embed(BATCH).vectors
    with ThreadPoolExecutor(8) as pool:
        for vectors, _ in pool.map(encoder.embed, [BATCH] * 40):
            assert np.array_equal(vectors, expected)


def test_pixels_that_may_not_be_written_to_are_taken_too(store: Path) -> None:
    encoder, pixels = Encoder.load(store), BATCH[::-1]
    pixels.setflags(write=False)
    assert encoder.embed(pixels).vectors[::-1] == pytest.approx(encoder.embed(BATCH).vectors, abs=1e-6)


def test_of_two_runtimes_the_first_artifacts_is_taken_or_the_one_asked_for(store: Path, tmp_path: Path) -> None:
    onnx = write_tiny_encoder(tmp_path / "onnx")
    (native,) = Manifest.read(store).artifacts
    (store / "encoder.int8.onnx").write_bytes((tmp_path / "onnx/encoder.int8.onnx").read_bytes())
    rewrite(store, artifacts=(native, *onnx.artifacts))
    assert Encoder.load(store).provider == "torch-x86"
    assert Encoder.load(store, runtime="torch").provider == "torch-x86"
    rewrite(store, artifacts=(*onnx.artifacts, native), golden=onnx.golden)
    assert Encoder.load(store).artifact.runtime == "onnx"
    assert Encoder.load(store, runtime="onnx").artifact.runtime == "onnx"


def test_a_runtime_that_no_artifact_is_for_is_refused(store: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact of tiny@\w+ runs here: they are for torch-x86, ONNX"):
        Encoder.load(store, runtime="onnx")


def test_without_torch_it_says_where_to_run_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "encoder.torch_runtime")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArtifactError, match=r"it needs torch, which is not installed here; run it from .venv-full"):
        Encoder.load(store)


def test_a_corrupt_artifact_is_refused_before_torch_reads_it(store: Path) -> None:
    path = store / "encoder.torch-int8.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"encoder.torch-int8.pt is not the file its manifest describes"):
        Encoder.load(store)


def test_a_machine_that_computes_other_vectors_refuses_to_serve(store: Path) -> None:
    first, *rest = Manifest.read(store).golden
    rewrite(store, golden=(dataclasses.replace(first, vector=tuple(-x for x in first.vector)), *rest))
    with pytest.raises(GoldenMismatch, match=r"golden vector 0 .* cosine -1.000000.*torch-x86"):
        Encoder.load(store)


def test_an_artifact_without_a_runtime_is_for_onnx_as_before(store: Path) -> None:
    values = write_tiny_encoder(store).to_json()
    for entry in values["artifacts"]:
        del entry["runtime"]
    assert Manifest.from_json(values).artifacts[0].runtime == "onnx"


def test_an_unknown_runtime_is_refused(store: Path) -> None:
    (artifact,) = Manifest.read(store).artifacts
    with pytest.raises(ManifestError, match=r"runtime 'tflite' is none of onnx, torch"):
        dataclasses.replace(artifact, runtime="tflite")
