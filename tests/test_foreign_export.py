"""Encoders of other libraries exported, held against fp32 and loaded as the server loads them: real architectures
with random weights, since no trained ones are to be had offline."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import akin
from encoder.manifest import Manifest, model_digest
from encoder.session import Encoder, run
from export import attempts as attempts_module
from export.fidelity import Budget
from export.foreign import Weights, load
from export.foreign_card import foreign_card
from export.foreign_error import ForeignError
from export.foreign_export import Adopt, adopt
from export.graph import ServedForeign
from export.quantize import quantize
from export.unlabelled import read_unlabelled
from images.sources import SourceError
from images.spec import PreprocessSpec
from tests.foreign_networks import dinov2, pictures, with_outliers, write_dinov2, write_pictures

# Random features of few layers lie close together, so that rounding swaps neighbours that trained ones keep.
LENIENT = Budget(cosine_mean=0.99, overlap=0.5)
FRESH = 1000  # the number of a picture that no export has seen

Export = Callable[..., Manifest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def dinov2_folder(folder: Path) -> Path:
    return write_dinov2(folder / "dinov2-small")


@pytest.fixture(scope="module")
def calibrate(folder: Path) -> Path:
    return write_pictures(folder / "pictures.npy")


@pytest.fixture
def asked(dinov2_folder: Path, calibrate: Path, tmp_path: Path) -> Adopt:
    return Adopt(f"hf:{dinov2_folder}", calibrate, tmp_path / "store")


@pytest.fixture(scope="module")
def shipped(dinov2_folder: Path, calibrate: Path, folder: Path) -> Path:
    """The model store of the DINOv2 folder, as the command line writes it; not to be changed."""
    out = folder / "shipped"
    flags = ["--calibrate", str(calibrate), "--out", str(out), "--calibration", "50"]
    assert akin.main(["export", "--from", f"hf:{dinov2_folder}", *flags]) == 0
    return out


@pytest.fixture(scope="module")
def planted(dinov2_folder: Path, calibrate: Path, folder: Path) -> Path:
    """The same encoder with outliers planted, which change nothing that fp32 says."""
    save_file(with_outliers(dinov2().state_dict(), magnitude=1000), folder / "outliers.safetensors")
    out = folder / "planted"
    adopt(Adopt(f"hf:{dinov2_folder}", calibrate, out, weights=str(folder / "outliers.safetensors")), Budget())
    return out


def in_torch(source: str, weights: Weights, size: int, images: np.ndarray) -> np.ndarray:
    """(N, D) float32: what is to be served, computed by its own library."""
    foreign = load(source, weights, size)
    pixels = foreign.pixels
    served = ServedForeign(foreign.encoder, pixels.mean, pixels.std, pixels.resize, pixels.crop)
    with torch.no_grad():
        return served(torch.from_numpy(images)).numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1)


def verdicts(manifest: Manifest) -> dict[str, str]:
    return {attempt["kind"]: attempt["verdict"] for attempt in manifest.metrics["attempts"]}


# -- real architectures


@pytest.mark.parametrize(
    ("source", "dimension"),
    [
        ("torchvision:resnet18", 512),
        ("timm:vit_tiny_patch16_224", 192),
        pytest.param("torchvision:mobilenet_v3_small", 1024, marks=pytest.mark.long),
        pytest.param("torchvision:vit_b_32", 768, marks=pytest.mark.long),
        pytest.param("timm:convnext_atto", 320, marks=pytest.mark.long),
        pytest.param("timm:swin_tiny_patch4_window7_224", 768, marks=pytest.mark.long),
    ],
)
def test_a_real_architecture_in_int8_loads_and_says_what_it_says_in_torch(
    source: str, dimension: int, calibrate: Path, tmp_path: Path
) -> None:
    manifest = adopt(Adopt(source, calibrate, tmp_path, random=True, size=32), LENIENT)
    assert verdicts(manifest) == {"int8": "kept"} and manifest.dimension == dimension
    images = pictures(20, 32, FRESH)
    vectors, logits = Encoder.load(tmp_path).embed(images)
    assert vectors.shape == (20, dimension) and logits.shape == (20, 0)
    expected = in_torch(source, Weights(random=True), 32, images)
    assert cosine(vectors, expected).min() > 0.98
    assert cosine(vectors, expected).mean() > 0.99
    assert (tmp_path / "encoder.int8.onnx").stat().st_size < 0.5 * (tmp_path / "encoder.safetensors").stat().st_size


def test_a_dinov2_folder_in_int8_says_what_it_says_in_torch(shipped: Path, dinov2_folder: Path) -> None:
    images = pictures(20, 36, FRESH)
    vectors = Encoder.load(shipped).embed(images).vectors
    assert cosine(vectors, in_torch(f"hf:{dinov2_folder}", Weights(), 0, images)).min() > 0.999
    assert cosine(vectors, vectors[::-1]).mean() < 0.99, "not all images look alike to it"


def test_what_is_written_is_described_by_the_manifest(shipped: Path) -> None:
    manifest = Manifest.read(shipped)
    names = {"encoder.safetensors", "encoder.int8.onnx", "encoder.json", "MODEL_CARD.md"}
    assert {path.name for path in shipped.iterdir()} == names
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in shipped.iterdir()), "others may read all of it"
    (artifact,) = manifest.artifacts
    assert artifact.sha256 == sha256((shipped / "encoder.int8.onnx").read_bytes()).hexdigest()
    assert (artifact.precision, artifact.quantization) == ("int8", "static QDQ per channel, U8S8")
    assert manifest.model == "dinov2-small" and manifest.class_names == () and manifest.gallery_seed is None
    assert manifest.model_digest == model_digest(shipped / "encoder.safetensors", PreprocessSpec(size=36))
    assert len(manifest.golden) == 8 and manifest.golden_min_cosine == 0.999
    fidelity = manifest.metrics["fidelity"]
    assert fidelity["images"] == 70 and fidelity["cosine_mean"] > 0.998 and fidelity["overlap"] > 0.9
    assert manifest.metrics["attempts"][0]["bytes"] == (shipped / "encoder.int8.onnx").stat().st_size


def test_no_path_of_this_machine_is_in_it(shipped: Path) -> None:
    for path in shipped.iterdir():
        assert str(shipped.parent).encode() not in path.read_bytes(), path.name


def test_the_card_tells_where_it_is_from_and_how_near_to_fp32(shipped: Path) -> None:
    card = (shipped / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == foreign_card(Manifest.read(shipped), "encoder")
    assert "- from: hf:dinov2-small (transformers " in card
    assert "36 pixels a side the graph sees the middle 32" in card
    assert "resizes to 36 pixels (bicubic)" in card and "antialiased bilinear" in card
    assert "| int8: static QDQ per channel, U8S8 |" in card and "| kept |" in card
    assert "Random" not in card


def test_what_was_written_is_exported_again_as_the_same_model(shipped: Path, asked: Adopt) -> None:
    again = adopt(replace(asked, weights=str(shipped / "encoder.safetensors"), calibration=50), Budget())
    assert again.model_digest == Manifest.read(shipped).model_digest
    for name in ("encoder.safetensors", "encoder.int8.onnx"):
        assert (asked.out / name).read_bytes() == (shipped / name).read_bytes(), name


def test_random_weights_are_called_so_wherever_the_model_is_named(asked: Adopt) -> None:
    manifest = adopt(replace(asked, random=True, name="trial"), LENIENT)
    assert manifest.model_id.startswith("dinov2-small-random@")
    assert manifest.provenance["weights"] == "random, seed 0"
    assert "Random weights, for trying out" in (asked.out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert Encoder.load(asked.out, "trial").manifest.model_id == manifest.model_id


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_a_name_may_have_dots_as_those_of_timm_have(kind: str, asked: Adopt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "FORMS", [form for form in attempts_module.FORMS if form.kind == kind])
    manifest = adopt(replace(asked, random=True, name="vit.augreg"), LENIENT)
    graph = f"vit.augreg.{kind}.onnx"
    names = {graph, "vit.augreg.safetensors", "vit.augreg.json", "MODEL_CARD.md"}
    assert manifest.artifacts[0].file == graph and {path.name for path in asked.out.iterdir()} == names
    assert Encoder.load(asked.out, "vit.augreg").manifest.model_id == manifest.model_id


# -- where int8 does not survive


def test_outliers_change_nothing_in_fp32(planted: Path, shipped: Path, dinov2_folder: Path) -> None:
    images = pictures(20, 36, FRESH)
    with_them = in_torch(f"hf:{dinov2_folder}", Weights(str(planted / "encoder.safetensors")), 0, images)
    assert cosine(with_them, in_torch(f"hf:{dinov2_folder}", Weights(), 0, images)).min() > 0.99999
    assert verdicts(Manifest.read(shipped)) == {"int8": "kept"}


def test_where_outliers_ruin_int8_of_both_kinds_fp16_is_served(planted: Path, dinov2_folder: Path) -> None:
    manifest = Manifest.read(planted)
    told = verdicts(manifest)
    assert list(told) == ["int8", "dynamic-int8", "fp16"] and told["fp16"] == "kept"
    for kind in ("int8", "dynamic-int8"):
        assert told[kind].startswith("over budget: mean cosine is 0.") and "the budget is >= 0.998" in told[kind]
    (artifact,) = manifest.artifacts
    assert (artifact.file, artifact.precision) == ("encoder.fp16.onnx", "fp16")
    assert sorted(path.name for path in planted.glob("*.onnx")) == ["encoder.fp16.onnx"]
    images = pictures(20, 36, FRESH)
    vectors = Encoder.load(planted).embed(images).vectors
    assert cosine(vectors, in_torch(f"hf:{dinov2_folder}", Weights(), 0, images)).min() > 0.9999


def test_the_card_shows_every_attempt_with_its_numbers(planted: Path) -> None:
    manifest, card = Manifest.read(planted), (planted / "MODEL_CARD.md").read_text(encoding="utf-8")
    for attempt in manifest.metrics["attempts"]:
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {attempt['kind']}: ")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{attempt['bytes']:,}" and float(cells[2]) == attempt["ms"] > 0
        assert float(cells[3]) == pytest.approx(attempt["cosine_mean"], abs=1e-5)
        assert cells[-1] == attempt["verdict"]
    assert f"| fp32, the reference | {manifest.metrics['fp32']['bytes']:,} |" in card


def calibrated_on_black(fp32: Path, small: Path, calibration: np.ndarray, *how: object, **more: object) -> None:
    quantize(fp32, small, np.zeros_like(calibration), *how, **more)  # type: ignore[arg-type]


def test_where_static_ranges_are_wrong_dynamic_ones_are_served_image_by_image(
    asked: Adopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "quantize", calibrated_on_black)
    manifest = adopt(asked, Budget())
    told = verdicts(manifest)
    assert told["int8"].startswith("over budget") and told["dynamic-int8"] == "kept" and len(told) == 2
    assert manifest.artifacts[0].file == "encoder.dynamic-int8.onnx" and manifest.artifacts[0].precision == "int8"
    assert "Dynamic ranges are those of the batch" in (asked.out / "MODEL_CARD.md").read_text(encoding="utf-8")
    images = pictures(20, 36, FRESH)
    encoder = Encoder.load(asked.out)
    vectors = encoder.embed(images).vectors
    assert cosine(vectors, in_torch(asked.source, Weights(), 0, images)).min() > 0.999
    assert not np.array_equal(run(encoder.session, images).vectors, vectors)  # as they come out together
    for image, vector in zip(images, vectors, strict=True):
        np.testing.assert_array_equal(encoder.embed(image[None]).vectors[0], vector)


def test_for_convolutions_dynamic_int8_is_not_tried(
    calibrate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "quantize", calibrated_on_black)
    told = verdicts(adopt(Adopt("timm:test_resnet", calibrate, tmp_path, random=True, size=32), Budget()))
    assert told["int8"].startswith("over budget")
    assert told["dynamic-int8"].startswith("not tried: 0 % of its weights are in matrix products")
    assert told["fp16"] == "kept"


def test_a_weight_beyond_fp16_leaves_fp32(asked: Adopt, folder: Path) -> None:
    state = with_outliers(dinov2().state_dict(), magnitude=1000)
    name = "encoder.layer.0.mlp.fc2.weight"
    state[name] = 1e6 * state[name]
    save_file(state, folder / "huge.safetensors")
    manifest = adopt(replace(asked, weights=str(folder / "huge.safetensors")), Budget(cosine_mean=0.99999, overlap=1))
    assert verdicts(manifest)["fp16"].startswith("not tried: a weight of ")
    assert verdicts(manifest)["fp16"].endswith("is beyond fp16's 65504")
    assert verdicts(manifest)["fp32"] == "kept"
    assert manifest.artifacts[0].file == "encoder.fp32.onnx" and manifest.artifacts[0].quantization == "none"
    assert Encoder.load(asked.out).embed(pictures(2, 36)).vectors.shape == (2, 64)


def test_fp16_weights_take_half_the_space_and_norms_stay_as_they_are(planted: Path) -> None:
    metrics = Manifest.read(planted).metrics
    assert (planted / "encoder.fp16.onnx").stat().st_size < 0.75 * metrics["fp32"]["bytes"]
    tensors = {t.name: t for t in onnx.load(planted / "encoder.fp16.onnx").graph.initializer}
    halves = [t for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) >= 12 and all(len(tensor.dims) > 1 for tensor in halves)


# -- refusals


def test_weights_that_are_no_numbers_are_refused_and_nothing_is_written(asked: Adopt, folder: Path) -> None:
    state = dinov2().state_dict()
    state["layernorm.bias"] = torch.full_like(state["layernorm.bias"], float("nan"))
    save_file(state, folder / "nan.safetensors")
    with pytest.raises(ForeignError, match=r"vectors that are not finite: its weights are damaged"):
        adopt(replace(asked, weights=str(folder / "nan.safetensors")), Budget())
    assert list(asked.out.iterdir()) == []


def test_an_empty_source_and_one_of_few_images_are_refused(asked: Adopt, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "few.npy", pictures(99, 36))
    with pytest.raises(ForeignError, match=r"few.npy gives 99 images that can be read, at least 100 are needed"):
        adopt(replace(asked, calibrate=tmp_path / "few.npy"), Budget())
    with pytest.raises(ForeignError, match=r"empty gives 0 images that can be read"):
        adopt(replace(asked, calibrate=tmp_path / "empty"), Budget())
    with pytest.raises(SourceError, match=r"nowhere does not exist"):
        adopt(replace(asked, calibrate=tmp_path / "nowhere"), Budget())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--random", "--weights", "x.pt"], "--random and --weights exclude each other: leave one out"),
        (["--keys", "a=b"], "--keys renames what is in a checkpoint: name it with --weights FILE"),
        (["--size", "5000"], "--size 5000 is not from 1 to 1024 pixels"),
        (["--held-out", "5"], "--held-out 5 must be at least 1 and 50 images"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        akin.main(["export", "--from", "timm:test_vit", "--calibrate", "x", "--out", "y", *flags])
    assert refusal.value.code == 2 and reason in capsys.readouterr().err


def test_errors_are_one_line_and_help_tells_of_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert akin.main(["export", "--from=keras:x", "--calibrate", "x", "--out", "y"]) == 1
    assert capsys.readouterr().err.startswith("akin: --from 'keras:x' names no network; give torchvision:NAME")
    for arguments, told in ((["--from", "--help"], "hf:FOLDER"), (["--help"], "akin export --from --help")):
        with pytest.raises(SystemExit):
            akin.main(["export", *arguments])
        assert told in " ".join(capsys.readouterr().out.split())


# -- images that calibrate and measure


def test_images_calibrate_or_measure_and_never_both(calibrate: Path) -> None:
    calibration, held_out = read_unlabelled(calibrate, PreprocessSpec(size=36), 30, 60)
    assert calibration.shape == (30, 36, 36, 3) and held_out.shape == (60, 36, 36, 3)
    drawn = [image.tobytes() for image in (*calibration, *held_out)]
    assert len({*drawn}) == 90 and {*drawn} <= {image.tobytes() for image in np.load(calibrate)}


def test_of_too_few_images_at_most_half_calibrate(calibrate: Path) -> None:
    calibration, held_out = read_unlabelled(calibrate, PreprocessSpec(size=36), 300, 1000)
    assert (len(calibration), len(held_out)) == (60, 60)


def test_what_cannot_be_decoded_is_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for row, image in enumerate(pictures(100, 36)):
            file = BytesIO()
            Image.fromarray(image).save(file, "PNG")
            archive.writestr(f"{row:03}.png", file.getvalue())
        archive.writestr("notes.txt", "no image")
    calibration, held_out = read_unlabelled(tmp_path / "photos.zip", PreprocessSpec(size=36), 50, 1000)
    assert (len(calibration), len(held_out)) == (50, 50)
    assert "notes.txt is left out: unsupported format" in capsys.readouterr().out
