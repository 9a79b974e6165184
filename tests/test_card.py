"""The card says what the manifest says, and what the encoder is not."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from encoder.manifest import Manifest
from export.card import brief, model_card
from tests.tiny_encoder import write_tiny_encoder

FIDELITY = {
    "images": 1000,
    "cosine_mean": 0.99944,
    "cosine_p1": 0.99797,
    "top1_agreement": 98.8,
    "probe_fp32": 79.6,
    "probe_int8": 79.7,
    "overlap": 0.9372,
}
ROW = {"linear": 77.36, "knn20": 75.7, "linear_5_percent": [68.3, 0.92], "knn20_5_percent": [66.93, 1.04]}
TEST = {
    "served_logits": 77.31,
    "fp32_logits": 77.5,
    "fidelity": FIDELITY | {"images": 8000, "cosine_mean": 0.99933},
    "int8": ROW,
    "random": ROW | {"linear": 40.54},
}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return replace(
        write_tiny_encoder(tmp_path),
        provenance={"data": "forty cats; research use", "images": 19_961_856, "recipe": {"lr": 0.05, "batch": 1024}},
        metrics={"train_cross_validated": 79.5, "fidelity": FIDELITY, "test": TEST},
    )


def test_it_names_the_model_its_size_its_classes_and_where_it_comes_from(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert card.startswith(f"# {manifest.model_id}\n")
    assert "16-d unit embeddings" in card and "32×32 images" in card and "cat, dog" in card
    assert "- data: forty cats; research use" in card
    assert "- images: 19,961,856" in card
    assert "- recipe: batch 1024, lr 0.05" in card or "- recipe: lr 0.05, batch 1024" in card


def test_it_tells_what_the_encoder_began_with_below_its_own_story(manifest: Manifest) -> None:
    earlier = manifest.provenance | {"data": "nine dogs"}
    card = model_card(replace(manifest, provenance={"images": 12_345, "begun_with": earlier}))
    own, _, before = card.partition("The earlier encoder that it began with:")
    assert "- images: 12,345" in own and "cats" not in own
    assert "- data: nine dogs" in before and "- images: 19,961,856" in before and "batch 1024" in before


def test_it_gives_the_test_numbers_beside_the_random_line(manifest: Manifest) -> None:
    lines = model_card(manifest).splitlines()
    assert "| served int8 | 77.36 | 75.7 | 68.3 ± 0.92 | 66.93 ± 1.04 |" in lines
    assert "| random weights | 40.54 | 75.7 | 68.3 ± 0.92 | 66.93 ± 1.04 |" in lines
    assert any("the logits as served: 77.31" in line for line in lines)


def test_it_gives_fidelity_on_both_splits(manifest: Manifest) -> None:
    lines = model_card(manifest).splitlines()
    assert "| | held-out train | test split |" in lines
    assert "| cosine mean | 0.99944 | 0.99933 |" in lines
    assert "| images | 1000 | 8000 |" in lines


def test_without_the_test_split_it_says_so(manifest: Manifest) -> None:
    metrics = deepcopy(manifest.metrics)
    del metrics["test"]
    lines = model_card(replace(manifest, metrics=metrics)).splitlines()
    assert "- test split: not measured" in lines
    assert "| cosine mean | 0.99944 |" in lines
    assert not any("random weights" in line for line in lines)


def test_it_says_licence_and_limits(manifest: Manifest) -> None:
    card = model_card(manifest)
    for words in ("ImageNet", "research use", "not a calibrated probability", "Not for decisions about people"):
        assert words in card


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (19_961_856, "19,961,856"),
        (1024, "1024"),
        (True, "True"),
        (0.05, "0.05"),
        (0.99944, "0.99944"),
        ([0.2, 1.0], "[0.2, 1.0]"),
        ({"size": 64, "flip": 0.5}, "size 64, flip 0.5"),
    ],
)
def test_values_are_short_and_exact(value: object, text: str) -> None:
    assert brief(value) == text
