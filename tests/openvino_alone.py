"""OpenVINO: the same answers as ONNX Runtime from the same artifact, and only where it is asked for.

Run by tests/test_openvino.py, which says why in a process of its own.
"""

import builtins
import importlib.util
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.session import OPENVINO_PROVIDER, ArtifactError, Encoder
from images.decode import decode
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder

SHIPPED = Path(__file__).parents[1] / "model_store"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_tiny_encoder(tmp_path)
    return tmp_path


def photos(encoder: Encoder, count: int) -> np.ndarray:
    spec = encoder.manifest.preprocess
    return np.stack([decode(encode(scene(120, 90, seed)), spec) for seed in range(count)])


def test_the_shipped_encoder_gives_what_onnx_runtime_gives() -> None:
    """Rounding aside: the two engines' int8 convolutions do not sum in the same order."""
    ours, theirs = Encoder.load(SHIPPED), Encoder.load(SHIPPED, provider=OPENVINO_PROVIDER)
    assert (theirs.provider, theirs.artifact) == (OPENVINO_PROVIDER, ours.artifact)
    batch = photos(ours, 8)
    expected, found = ours.embed(batch), theirs.embed(batch)
    assert (expected.vectors * found.vectors).sum(1).min() > 0.995
    assert np.array_equal(expected.logits.argmax(1), found.logits.argmax(1))


def test_a_batch_gives_what_its_images_give_alone(store: Path) -> None:
    encoder = Encoder.load(store, provider=OPENVINO_PROVIDER)
    batch = photos(encoder, 5)
    together = encoder.embed(batch)
    for row in range(len(batch)):
        assert encoder.embed(batch[row : row + 1]).vectors[0] == pytest.approx(together.vectors[row], abs=1e-6)


def test_calls_side_by_side_do_not_mix(store: Path) -> None:
    encoder = Encoder.load(store, provider=OPENVINO_PROVIDER)
    batch = photos(encoder, 8)
    expected = encoder.embed(batch).vectors
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda row: encoder.embed(batch[row : row + 1]).vectors[0], [*range(8)] * 10))
    assert np.stack(rows) == pytest.approx(np.tile(expected, (10, 1)), abs=1e-6)


def test_an_answer_is_not_overwritten_by_the_next(store: Path) -> None:
    encoder = Encoder.load(store, provider=OPENVINO_PROVIDER)
    batch = photos(encoder, 2)
    first = encoder.embed(batch[:1]).vectors
    kept = first.copy()
    encoder.embed(batch[1:])
    assert np.array_equal(first, kept)


def test_a_call_that_is_alone_may_use_more_threads_here_too(store: Path) -> None:
    encoder = Encoder.load(store, provider=OPENVINO_PROVIDER, idle_threads=2)
    batch = photos(encoder, 3)
    assert encoder.wide_session is not None
    assert encoder.embed(batch, alone=True).vectors == pytest.approx(encoder.embed(batch).vectors, abs=1e-6)


def test_without_its_package_the_error_says_what_to_install(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(ArtifactError, match="make setup-openvino"):
        Encoder.load(store, provider=OPENVINO_PROVIDER)


def test_it_is_not_imported_where_nobody_asks_for_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_openvino(name: str, *arguments: Any, **options: Mapping[str, Any]) -> Any:
        assert name.partition(".")[0] != "openvino" and name != "encoder.openvino_session"
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_openvino)
    assert Encoder.load(store).provider != OPENVINO_PROVIDER
