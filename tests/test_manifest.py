"""The manifest: what is written comes back, and a wrong one is refused with the reason."""

import json
from pathlib import Path

import pytest

from encoder.manifest import FORMAT, Manifest, ManifestError, model_digest
from images.spec import PreprocessSpec
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_tiny_encoder(tmp_path)
    return tmp_path


def edit(store: Path, **changes: object) -> None:
    path = store / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = write_tiny_encoder(tmp_path, size=40, dimension=8, classes=("a", "b", "c"))
    read = Manifest.read(tmp_path)
    assert read == written
    assert (read.dimension, read.class_names, read.preprocess.size) == (8, ("a", "b", "c"), 40)


def test_a_model_without_a_probe_has_no_class_names(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path, classes=())
    assert Manifest.read(tmp_path).class_names == ()


def test_a_gallery_seed_comes_back_too(store: Path) -> None:
    edit(store, gallery_seed={"file": "gallery.npz", "sha256": "0" * 64, "rows": 5000})
    assert Manifest.read(store).gallery_seed == {"file": "gallery.npz", "sha256": "0" * 64, "rows": 5000}


def test_the_model_id_is_the_name_and_twelve_digits_of_the_digest(store: Path) -> None:
    edit(store, model="simclr-resnet18", model_digest="3f2a9c01d4e5" + "0" * 52)
    assert Manifest.read(store).model_id == "simclr-resnet18@3f2a9c01d4e5"


def test_a_model_of_another_name_is_read_from_its_own_file(store: Path) -> None:
    Manifest.read(store).write(store, "other")
    assert Manifest.read(store, "other") == Manifest.read(store)


def test_a_missing_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"encoder.json: write one with `akin export`"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]"])
def test_a_manifest_that_is_no_json_object_is_refused_by_name(content: bytes, store: Path) -> None:
    (store / "encoder.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"encoder\.json .*akin export"):
        Manifest.read(store)


ARTIFACT = {
    "file": "encoder.onnx",
    "sha256": "0" * 64,
    "precision": "int8",
    "quantization": "none",
    "providers": ["CPUExecutionProvider"],
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": FORMAT + 1}, "format 2 is not 1"),
        ({"colour": "red"}, r"unknown fields \['colour'\]"),
        ({"model_digest": "abc"}, "model_digest 'abc' is not 64 hexadecimal digits"),
        ({"model_digest": 7}, "model_digest 7 is not"),
        ({"dimension": 0}, "dimension 0 is not a positive whole number"),
        ({"dimension": 512}, "golden vector 0 has 16 numbers, the dimension is 512"),
        ({"artifacts": []}, "artifacts and golden must each have at least one entry"),
        ({"golden": []}, "artifacts and golden must each have at least one entry"),
        ({"golden": [{"seed": 0}]}, "field 'vector' is missing"),
        ({"golden_min_cosine": 1.5}, r"golden_min_cosine 1.5 is not in \(0, 1\]"),
        ({"preprocess": {"size": 96}}, "preprocess fields do not match"),
        ({"preprocess": PreprocessSpec().to_json() | {"size": 0}}, "preprocess size 0"),
        ({"artifacts": [ARTIFACT | {"file": "../elsewhere.onnx"}]}, "must be a plain name"),
        ({"artifacts": [ARTIFACT | {"precision": "int4"}]}, "precision 'int4' is none of int8, fp16, fp32"),
        ({"artifacts": [ARTIFACT | {"sha256": "00"}]}, "sha256 '00' is not"),
        ({"artifacts": [ARTIFACT | {"providers": []}]}, "names no execution provider"),
        ({"gallery_seed": {"file": "gallery.npz"}}, "field 'sha256' is missing"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_reason(changes: dict[str, object], reason: str, store: Path) -> None:
    edit(store, **changes)
    with pytest.raises(ManifestError, match=reason) as caught:
        Manifest.read(store)
    assert "encoder.json" in str(caught.value) and "akin export" in str(caught.value)


def test_the_model_digest_depends_on_weights_and_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"weights")
    (tmp_path / "two").write_bytes(b"weightz")
    digests = {
        model_digest(tmp_path / "one", PreprocessSpec()),
        model_digest(tmp_path / "two", PreprocessSpec()),
        model_digest(tmp_path / "one", PreprocessSpec(size=80)),
    }
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)
    assert model_digest(tmp_path / "one", PreprocessSpec()) in digests
