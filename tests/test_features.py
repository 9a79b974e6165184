"""Unit vectors of a frozen encoder, and a digest that notices any change of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_stl10 import lively_backbone, tinted_scene, write_tiny_stl10
from training import features
from training.features import Labelled, embed_images, embed_split, state_digest, torch_embedder
from training.labelled import read_split

SIZE = 32
CPU = torch.device("cpu")


def test_batches_join_in_order_and_the_last_one_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 50)
    data = write_tiny_stl10(tmp_path)
    sizes: list[int] = []

    def first_pixels(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch[:, 0, 0].astype(np.float32)

    vectors, labels = embed_split(first_pixels, data, "train", 96)
    assert sizes == [50, 50, 20]
    assert np.array_equal(vectors, read_split(data, "train", 96).images[:, 0, 0])
    assert labels.tolist() == [row % 10 for row in range(120)]


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch() -> None:
    embed = torch_embedder(lively_backbone(), CPU)
    batch = np.stack([tinted_scene(row, row)[:SIZE, :SIZE] for row in range(4)])
    vectors = embed(batch)
    assert vectors.shape == (4, 512) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.concatenate([embed(image[None]) for image in batch]) == pytest.approx(vectors, abs=1e-5)


def test_rows_keep_vectors_and_labels_together() -> None:
    part = Labelled(np.arange(6.0)[:, None], np.arange(6) * 10).rows(np.array([4, 1]))
    assert part.vectors[:, 0].tolist() == [4, 1] and part.labels.tolist() == [40, 10]


def test_embedding_a_backbone_fresh_from_training_leaves_its_digest() -> None:
    backbone = lively_backbone().train()
    before = state_digest(backbone)
    images = np.stack([tinted_scene(row, row)[:SIZE, :SIZE] for row in range(8)])
    embed_images(torch_embedder(backbone, CPU), images)
    assert state_digest(backbone) == before
    assert not any(value.requires_grad and value.grad is not None for value in backbone.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "net.layer4.1.conv2.weight",
        "net.bn1.bias",
        "net.layer2.0.bn1.running_mean",
        "net.layer3.1.bn2.running_var",
        "net.bn1.num_batches_tracked",
        "mean",  # in no state_dict, and it decides what the network sees
    ],
)
def test_the_digest_changes_with_any_single_number(name: str) -> None:
    backbone = lively_backbone()
    before = state_digest(backbone)
    value = dict([*backbone.named_parameters(), *backbone.named_buffers()])[name]
    with torch.no_grad():
        kept = value.flatten()[0].clone()
        value.view(-1)[0] += 1
        assert state_digest(backbone) != before
        value.view(-1)[0] = kept
    assert state_digest(backbone) == before


def test_a_single_forward_pass_in_training_mode_changes_the_digest() -> None:
    backbone = lively_backbone()
    before = state_digest(backbone)
    with torch.no_grad():
        backbone.train()(torch.rand(2, 3, SIZE, SIZE))
    assert state_digest(backbone) != before


def test_the_digest_does_not_depend_on_memory_format() -> None:
    backbone = lively_backbone()
    before = state_digest(backbone)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert backbone.net.conv1.weight.stride() != torch.empty(64, 3, 7, 7).stride()
    assert state_digest(backbone) == before
    assert state_digest(lively_backbone(seed=1)) != before
