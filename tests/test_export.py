"""Export from a run's checkpoint to a model store that loads, and to the same model again from what it wrote."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import akin
from encoder.manifest import Manifest, model_digest
from encoder.session import Encoder
from export import __main__ as export_module
from export.__main__ import Export, digest_of, export, held_out_and_calibration
from export.card import model_card
from export.fidelity import Budget
from export.quantize import quantize
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from index.gallery import Gallery
from index.seed import seed_gallery
from tests.tiny_stl10 import CLASSES, write_checkpoint, write_tiny_stl10
from training import probe
from training.checkpoint import load_backbone
from training.features import embed_split
from training.labelled import read_split

SIZE, TRAIN, TEST, HELD_OUT = 32, 150, 40, 60
SHIPPED = {"encoder.safetensors", "encoder.int8.onnx", "encoder.json", "gallery.npz", "MODEL_CARD.md"}
# Random features lie close together, so that rounding swaps neighbours that trained ones keep.
LENIENT = Budget(cosine_mean=0.9, probe_loss=100, overlap=0)


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Counts that fit a tiny STL-10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "HELD_OUT", HELD_OUT)
        patch.setattr(export_module, "Budget", lambda: LENIENT)
        patch.setattr(probe, "few_label_accuracy", partial(probe.few_label_accuracy, share=0.5, draws=2))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, small: None) -> Export:
    folder = tmp_path_factory.mktemp("export")
    return Export(
        weights=str(write_checkpoint(folder / "run")),
        data=str(write_tiny_stl10(folder / "data", TRAIN, TEST)),
        out=str(folder / "model_store"),
        size=SIZE,
        calibration=40,
        test=True,
        trained_on="generated scenes",
    )


@pytest.fixture(scope="module")
def store(config: Export) -> Path:
    """The model store that the export of a checkpoint writes; not to be changed."""
    export(config)
    return Path(config.out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_writes_what_ships_and_nothing_else(store: Path) -> None:
    assert {path.name for path in store.iterdir()} == SHIPPED
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in store.iterdir()), "others may read all of it"


def test_the_manifest_describes_the_files_beside_it(store: Path) -> None:
    manifest = Manifest.read(store)
    (artifact,) = manifest.artifacts
    assert artifact.sha256 == digest_of(store / "encoder.int8.onnx")
    assert artifact.precision == "int8" and artifact.providers == ("CPUExecutionProvider",)
    assert manifest.model_digest == model_digest(store / "encoder.safetensors", PreprocessSpec(size=SIZE))
    assert manifest.gallery_seed is not None
    assert manifest.gallery_seed["sha256"] == digest_of(store / "gallery.npz")
    assert manifest.class_names == CLASS_NAMES
    assert len(manifest.golden) == 8
    assert (store / "MODEL_CARD.md").read_text(encoding="utf-8") == model_card(manifest)


def test_what_it_wrote_loads_and_embeds(store: Path, config: Export) -> None:
    encoder = Encoder.load(store)
    vectors, logits = encoder.embed(read_split(Path(config.data), "test", SIZE).images)
    assert vectors.shape == (TEST, 512) and logits.shape == (TEST, CLASSES)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_served_logits_reach_the_accuracy_the_manifest_reports(store: Path, config: Export) -> None:
    test = read_split(Path(config.data), "test", SIZE)
    logits = Encoder.load(store).embed(test.images).logits
    metrics = Manifest.read(store).metrics["test"]
    assert metrics["served_logits"] == pytest.approx(100 * (logits.argmax(axis=1) == test.labels).mean(), abs=0.01)
    assert metrics["served_logits"] > 60, "the classes have colours of their own; chance is 10"


def test_fidelity_is_reported_on_held_out_train_images_and_on_test(store: Path) -> None:
    metrics = Manifest.read(store).metrics
    assert metrics["fidelity"]["images"] == HELD_OUT
    assert metrics["test"]["fidelity"]["images"] == TEST
    assert metrics["fidelity"].keys() == metrics["test"]["fidelity"].keys()
    assert 0.98 < metrics["test"]["fidelity"]["cosine_mean"] < 1


def test_the_provenance_tells_how_the_weights_came_to_be(store: Path) -> None:
    story = Manifest.read(store).provenance
    assert story["data"] == "generated scenes"
    assert story["initialisation"] == "random" and story["step"] == 0
    assert story["recipe"]["batch"] == 256 and "out" not in story["recipe"]


def test_no_path_of_this_machine_is_in_it(store: Path, config: Export) -> None:
    for name in ("encoder.json", "MODEL_CARD.md", "encoder.int8.onnx"):
        assert str(Path(config.out).parent).encode() not in (store / name).read_bytes()


def test_the_gallery_seed_holds_the_served_vectors_of_train_and_no_pixels(store: Path, config: Export) -> None:
    served = Encoder.load(store)
    vectors, labels = embed_split(lambda batch: served.embed(batch).vectors, Path(config.data), "train", SIZE)
    with np.load(store / "gallery.npz", allow_pickle=False) as seed:
        assert set(seed.files) == {"ids", "labels", "vectors"}
        assert seed["vectors"].shape == (TRAIN, 512) and seed["vectors"].dtype == np.float16
        assert seed["vectors"].astype(np.float32) == pytest.approx(vectors, abs=1e-3)
        assert seed["labels"].tolist() == [CLASS_NAMES[label] for label in labels]
        assert len(set(seed["ids"].tolist())) == TRAIN


def test_the_gallery_seed_seeds_and_a_train_image_finds_itself(store: Path, config: Export, tmp_path: Path) -> None:
    manifest = Manifest.read(store)
    assert seed_gallery(store, manifest, tmp_path) == TRAIN
    vectors = Encoder.load(store).embed(read_split(Path(config.data), "train", SIZE).images[:5]).vectors
    with Gallery.open(tmp_path, manifest.model_digest, manifest.dimension) as gallery:
        found = [neighbors[0] for neighbors in gallery.search(vectors, 1)]
    assert [neighbor.id for neighbor in found] == [f"stl10-train-{row:05d}" for row in range(5)]
    assert all(neighbor.score > 0.999 for neighbor in found)


def test_calibration_sees_the_servers_pixels_and_none_that_are_held_out(
    config: Export, tmp_path: Path, small: None
) -> None:
    seen: list[np.ndarray] = []

    class Enough(Exception):
        pass

    def remember(fp32: Path, int8: Path, calibration: np.ndarray, *how: object) -> None:
        seen.append(calibration)
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(export_module, "quantize", remember)
        patch.setattr(export_module, "to_onnx", lambda *_: None)
        export(replace(config, out=str(tmp_path / "out")))
    rows = {image.tobytes(): row for row, image in enumerate(read_split(Path(config.data), "train", SIZE).images)}
    held_out, _ = held_out_and_calibration(TRAIN, config.calibration)
    calibration = [rows[image.tobytes()] for image in seen[0]]
    assert len(set(calibration)) == config.calibration
    assert held_out.sum() == HELD_OUT and not held_out[calibration].any()
    assert list((tmp_path / "out").iterdir()) == [], "an export that fails leaves nothing behind"


def test_too_few_train_images_are_refused_with_value_limit_and_way_out(small: None) -> None:
    with pytest.raises(SystemExit, match=r"99 train images are too few: 60 are held out .* asks for 40 others; give"):
        held_out_and_calibration(99, 40)
    assert len(held_out_and_calibration(100, 40)[1]) == 40


def test_an_export_from_what_it_wrote_is_the_same_model_to_the_last_byte(
    store: Path, config: Export, tmp_path: Path
) -> None:
    """Size and provenance come from the manifest beside the weights; only where the test split is left out, its
    numbers are too."""
    manifest = export(Export(str(store / "encoder.safetensors"), config.data, str(tmp_path), calibration=40))
    first = Manifest.read(store)
    assert manifest.model_digest == first.model_digest
    assert manifest.preprocess == first.preprocess and manifest.provenance == first.provenance
    assert manifest.metrics["fidelity"] == first.metrics["fidelity"]
    assert "test" not in manifest.metrics
    for name in ("encoder.safetensors", "encoder.int8.onnx", "gallery.npz"):
        assert (tmp_path / name).read_bytes() == (store / name).read_bytes(), name


def test_the_provenance_of_other_weights_is_not_borrowed(store: Path, tmp_path: Path) -> None:
    for name in ("encoder.json", "encoder.safetensors"):
        shutil.copy(store / name, tmp_path)
    assert export_module.described(tmp_path / "encoder.safetensors") == Manifest.read(store)
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert export_module.described(weights) is None
    assert export_module.provenance(weights, None, "") == {"weights": "encoder.safetensors"}


def test_an_int8_graph_gone_wrong_is_over_budget_and_the_store_stays_as_it_was(
    store: Path, config: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store, tmp_path / "model_store")
    before = contents(tmp_path / "model_store")
    flags = ["--data", config.data, "--out", str(tmp_path / "model_store"), "--calibration", "40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "Budget", Budget)
        patch.setattr(export_module, "quantize", calibrated_on_black)
        assert akin.main(["export", "--weights", config.weights, "--size", str(SIZE), *flags]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"akin: int8 is too far from fp32 ({HELD_OUT} held-out images): mean cosine is 0.")
    assert "the budget is >= 0.998" in message
    assert contents(tmp_path / "model_store") == before


def calibrated_on_black(fp32: Path, int8: Path, calibration: np.ndarray, *how: Any) -> None:
    quantize(fp32, int8, np.zeros_like(calibration), *how)


def test_exported_weights_load_as_the_backbone_they_were(store: Path, config: Export) -> None:
    exported, trained = load_backbone(str(store / "encoder.safetensors")), load_backbone(config.weights)
    for (name, one), other in zip(exported.named_parameters(), trained.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6), name
