"""The encoder: checked before its first answer, and the same for one image, many, and many threads."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from encoder.golden import Golden, GoldenMismatch, golden_input
from encoder.manifest import Artifact, Manifest, ManifestError
from encoder.session import ArtifactError, Encoder, open_session
from images.decode import decode
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder

BATCH = np.stack([golden_input(seed, 32) for seed in range(10, 16)])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_tiny_encoder(tmp_path)
    return tmp_path


def rewrite(store: Path, **changes: object) -> None:
    dataclasses.replace(Manifest.read(store), **changes).write(store)  # type: ignore[arg-type]


def test_vectors_are_unit_float32_and_logits_one_a_class(store: Path) -> None:
    vectors, logits = Encoder.load(store).embed(BATCH)
    assert vectors.shape == (6, 16) and vectors.dtype == np.float32
    assert logits.shape == (6, 2) and logits.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_different_images_give_different_vectors(store: Path) -> None:
    vectors = Encoder.load(store).embed(BATCH).vectors
    assert (vectors @ vectors.T - np.eye(6)).max() < 0.95


def test_an_image_gives_the_same_vector_alone_and_in_a_batch(store: Path) -> None:
    encoder = Encoder.load(store)
    together = encoder.embed(BATCH).vectors
    alone = np.concatenate([encoder.embed(image[None]).vectors for image in BATCH])
    assert np.allclose(alone, together, atol=1e-6)


def test_decoded_files_go_straight_in(store: Path) -> None:
    encoder = Encoder.load(store)
    image = decode(encode(scene(640, 480)), encoder.manifest.preprocess)
    assert encoder.embed(image[None]).vectors.shape == (1, 16)


def test_threads_may_share_an_encoder(store: Path) -> None:
    encoder = Encoder.load(store)
    expected = encoder.embed(BATCH).vectors
    with ThreadPoolExecutor(8) as pool:
        for vectors, _ in pool.map(encoder.embed, [BATCH] * 40):
            assert np.array_equal(vectors, expected)


def test_it_says_where_it_runs(store: Path) -> None:
    encoder = Encoder.load(store, threads=2)
    assert encoder.provider == "CPUExecutionProvider"
    assert encoder.session.get_providers()[0] == "CPUExecutionProvider"
    assert encoder.session.get_session_options().intra_op_num_threads == 2
    assert encoder.artifact.precision == "int8"


def test_a_graph_without_logits_gives_none_an_image(store: Path) -> None:
    expected = Encoder.load(store).embed(BATCH).vectors
    graph = onnx.load(store / "encoder.int8.onnx")
    del graph.graph.node[-1], graph.graph.output[-1]
    replace_graph(store, graph)
    rewrite(store, class_names=())
    vectors, logits = Encoder.load(store, idle_threads=2).embed(BATCH)
    assert np.array_equal(vectors, expected)
    assert logits.shape == (6, 0) and logits.dtype == np.float32


# More threads for a call that is alone


def test_without_idle_threads_there_is_one_session_for_all_calls(store: Path) -> None:
    encoder = Encoder.load(store, threads=2, idle_threads=2)
    assert encoder.wide_session is None
    assert np.array_equal(encoder.embed(BATCH, alone=True).vectors, encoder.embed(BATCH).vectors)


def test_a_call_that_is_alone_runs_on_more_threads_and_says_the_same(store: Path) -> None:
    encoder = Encoder.load(store, idle_threads=3)
    threads = [
        session.get_session_options().intra_op_num_threads for session in (encoder.session, encoder.wide_session)
    ]
    assert threads == [1, 3]
    assert encoder.embed(BATCH, alone=True).vectors == pytest.approx(encoder.embed(BATCH).vectors, abs=1e-6)


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_call_that_is_alone_takes_the_wide_session(alone: bool, store: Path) -> None:
    encoder = Encoder.load(store, idle_threads=2)
    other = write_tiny_encoder(store / "other", classes=("a", "b", "c"))
    (artifact,) = other.artifacts
    wide = open_session(store / "other" / artifact.file)
    logits = dataclasses.replace(encoder, wide_session=wide).embed(BATCH, alone=alone).logits
    assert logits.shape == (6, 3 if alone else 2)


def test_the_wide_session_has_to_agree_with_the_golden_vectors_too(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that computes wrongly on two threads alone."""

    def wrong_on_two(model: bytes, provider: str, threads: int) -> object:
        session = open_session(model, provider, threads)
        return SignFlipped(session) if threads == 2 else session

    monkeypatch.setattr("encoder.session.open_session", wrong_on_two)
    Encoder.load(store, idle_threads=3)
    with pytest.raises(GoldenMismatch, match=r"cosine -1.000000"):
        Encoder.load(store, idle_threads=2)


class SignFlipped:
    def __init__(self, session: Any) -> None:
        self.session = session
        self.get_outputs = session.get_outputs

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [-array for array in self.session.run(outputs, inputs)]


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 96, 96, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
    ],
)
def test_a_batch_of_another_kind_is_refused_with_what_is_taken(batch: np.ndarray, store: Path) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 of shape \('N', 32, 32, 3\)"):
        Encoder.load(store).embed(batch)


def replace_graph(store: Path, graph: onnx.ModelProto) -> None:
    """Make `graph` the artifact of the manifest."""
    model = graph.SerializeToString()
    (store / "encoder.int8.onnx").write_bytes(model)
    (artifact,) = Manifest.read(store).artifacts
    rewrite(store, artifacts=(dataclasses.replace(artifact, sha256=hashlib.sha256(model).hexdigest()),))


# What is refused at start


@pytest.mark.parametrize(
    ("class_names", "counts"),
    [(("cat",), "says 16 and 1 class names"), ((), "says 16 and 0 class names")],
)
def test_class_names_that_are_not_the_graphs_are_refused(
    class_names: tuple[str, ...], counts: str, store: Path
) -> None:
    rewrite(store, class_names=class_names)
    with pytest.raises(ArtifactError, match=rf"gives 16 numbers and 2 logits an image, its manifest {counts}"):
        Encoder.load(store)


def test_a_graph_of_another_dimension_is_refused(store: Path) -> None:
    golden = Manifest.read(store).golden
    rewrite(store, dimension=8, golden=tuple(dataclasses.replace(pair, vector=pair.vector[:8]) for pair in golden))
    with pytest.raises(ArtifactError, match=r"gives 16 numbers .* its manifest says 8"):
        Encoder.load(store)


def test_a_model_store_without_a_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="akin export"):
        Encoder.load(tmp_path)


def test_a_corrupt_artifact_is_refused_by_name_with_both_digests(store: Path) -> None:
    path = store / "encoder.int8.onnx"
    expected = Manifest.read(store).artifacts[0].sha256
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"encoder.int8.onnx .* sha256 is [0-9a-f]{{64}}, expected {expected}"):
        Encoder.load(store)


def test_a_missing_artifact_is_refused_by_name(store: Path) -> None:
    (store / "encoder.int8.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"encoder.int8.onnx cannot be read \(No such file"):
        Encoder.load(store)


def test_an_artifact_that_is_no_graph_is_refused_by_name(store: Path) -> None:
    digest = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"
    (store / "encoder.int8.onnx").write_bytes(b"foo\n")
    rewrite(store, artifacts=(Artifact("encoder.int8.onnx", digest, "int8", "none", ("CPUExecutionProvider",)),))
    with pytest.raises(ArtifactError, match=r"no artifact of tiny@.* runs here.*encoder.int8.onnx"):
        Encoder.load(store)


def test_an_artifact_for_another_kind_of_machine_is_not_run(store: Path) -> None:
    artifact = Manifest.read(store).artifacts[0]
    rewrite(store, artifacts=(dataclasses.replace(artifact, providers=("SomeOtherProvider",)),))
    with pytest.raises(ArtifactError, match=r"they are for SomeOtherProvider, ONNX Runtime offers .*CPU"):
        Encoder.load(store)


def test_the_artifact_for_this_machine_is_picked_among_several(store: Path) -> None:
    cpu = Manifest.read(store).artifacts[0]
    other = Artifact("encoder.gpu.onnx", "0" * 64, "fp16", "none", ("SomeOtherProvider",))
    rewrite(store, artifacts=(other, cpu))
    assert Encoder.load(store).artifact == cpu


def test_a_gpu_that_is_only_listed_is_passed_over(store: Path) -> None:
    """onnxruntime-gpu offers CUDA on machines without a GPU, and says so only in its log."""
    artifact = Manifest.read(store).artifacts[0]
    both = dataclasses.replace(artifact, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    rewrite(store, artifacts=(both,))
    encoder = Encoder.load(store)
    assert encoder.provider == encoder.session.get_providers()[0]
    assert encoder.embed(BATCH).vectors.shape == (6, 16)


def test_a_machine_that_computes_other_vectors_refuses_to_serve(store: Path) -> None:
    golden = Manifest.read(store).golden
    wrong = Golden(golden[1].seed, tuple(-value for value in golden[1].vector))
    rewrite(store, golden=(golden[0], wrong, golden[2]))
    with pytest.raises(GoldenMismatch, match=r"golden vector 1 \(seed 1\) comes out with cosine -1.000000"):
        Encoder.load(store)
