"""How every export ends: golden vectors that are the graph's own, and a model store that opens."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from encoder.golden import golden_batch
from encoder.session import Encoder, open_session, run
from export.write import GOLDEN_SEEDS, digest_of, golden_of, outputs, publish
from tests.tiny_encoder import write_tiny_encoder


def test_golden_vectors_are_what_the_graph_gives_for_the_generated_pictures(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    golden = golden_of(tmp_path / "encoder.int8.onnx", 32)
    assert [one.seed for one in golden] == list(GOLDEN_SEEDS)
    given = run(open_session(tmp_path / "encoder.int8.onnx"), golden_batch(golden, 32)).vectors
    np.testing.assert_allclose([one.vector for one in golden], given, atol=1e-6)


def test_outputs_are_the_same_however_many_images_the_graph_sees_at_a_time(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    whole, parts = (outputs(tmp_path / "encoder.int8.onnx", images, batch) for batch in (7, 3))
    assert whole.vectors.shape == (7, 16) and whole.logits.shape == (7, 2)
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-5)


def test_what_is_published_is_a_model_store_that_everybody_may_read(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    manifest = write_tiny_encoder(work)
    out.mkdir()
    graph = work / "encoder.int8.onnx"
    graph.chmod(0o600)
    before = digest_of(graph)
    publish([graph], replace(manifest, model="made"), "# A card\n", out, "other")
    assert {file.name for file in out.iterdir()} == {"encoder.int8.onnx", "other.json", "MODEL_CARD.md"}
    assert not graph.exists() and (out / graph.name).stat().st_mode & 0o777 == 0o644
    assert digest_of(out / graph.name) == before == sha256((out / graph.name).read_bytes()).hexdigest()
    assert Encoder.load(out, "other").manifest.model == "made"
