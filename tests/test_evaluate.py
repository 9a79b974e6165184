"""Evaluation sees the server's pixels, keeps its hands off the test split and the weights, and repeats itself."""

import json
import zipfile
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.session import Encoder
from images.decode import decode
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_stl10 import lively_backbone, tinted_scene, write_checkpoint, write_tiny_stl10
from training import evaluate, probe
from training.evaluate import embed_split, load_backbone, read_split, torch_embedder

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("stl10"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """5% of a tiny split is less than one image a class."""
    monkeypatch.setattr(probe, "few_label_accuracy", partial(probe.few_label_accuracy, share=0.5, draws=2))


def write_zip(folder: Path, files: dict[str, bytes]) -> Path:
    """`folder` with a train split in stl10-train.zip, as ../shared/data has it."""
    folder.mkdir(exist_ok=True)
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    with zipfile.ZipFile(folder / "stl10-train.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder


@pytest.mark.parametrize(
    ("format", "options"), [("WEBP", {"lossless": True}), ("JPEG", {"quality": 90}), ("PNG", {})]
)
@pytest.mark.parametrize(("size", "picture"), [(96, (96, 96)), (64, (96, 96)), (32, (320, 200))])
def test_evaluation_sees_byte_for_byte_the_pixels_that_the_server_sees(
    tmp_path: Path, format: str, options: dict[str, object], size: int, picture: tuple[int, int]
) -> None:
    photos = [encode(scene(*picture, seed), format, **options) for seed in range(3)]
    folder = write_zip(tmp_path, {f"{row:05d}.{row + 4}.webp": photo for row, photo in enumerate(photos)})
    images, labels = read_split(folder, "train", size)
    assert np.array_equal(images, np.stack([decode(photo, PreprocessSpec(size=size)) for photo in photos]))
    assert labels.tolist() == [4, 5, 6]


def test_binaries_and_files_of_the_same_images_give_the_same_pixels(data: Path, tmp_path: Path) -> None:
    pictures = [Image.fromarray(tinted_scene(row % 10, row)) for row in range(3)]
    files = {f"{row:05d}.{row}.webp": encode(picture, "PNG") for row, picture in enumerate(pictures)}
    from_files, from_binaries = (read_split(folder, "train", 64) for folder in (write_zip(tmp_path, files), data))
    assert np.array_equal(from_files.images, from_binaries.images[:3])
    assert from_files.labels.tolist() == from_binaries.labels[:3].tolist()


def test_batches_join_in_order_and_the_last_one_may_be_short(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 50)
    sizes: list[int] = []

    def first_pixels(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch[:, 0, 0].astype(np.float32)

    vectors, labels = embed_split(first_pixels, data, "train", 96)
    assert sizes == [50, 50, 20]
    assert np.array_equal(vectors, read_split(data, "train", 96).images[:, 0, 0])
    assert labels.tolist() == [row % 10 for row in range(120)]


def test_a_damaged_image_is_named_and_nothing_is_measured(tmp_path: Path) -> None:
    folder = write_zip(tmp_path, {"00000.1.webp": encode(scene(96, 96), "PNG"), "00001.2.webp": b"RIFF, then noise"})
    with pytest.raises(SystemExit, match=r"00001\.2\.webp of the evaluation set cannot be read"):
        read_split(folder, "train", SIZE)


def test_images_without_labels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write_zip(tmp_path, {"00000.1.webp": encode(scene(96, 96), "PNG")})
    (folder / "class_names.txt").unlink()
    with pytest.raises(SystemExit, match=r"1 of 1 train images have no label; .*class_names\.txt"):
        read_split(folder, "train", SIZE)


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch() -> None:
    embed = torch_embedder(lively_backbone(), CPU)
    batch = np.stack([tinted_scene(row, row)[:SIZE, :SIZE] for row in range(4)])
    vectors = embed(batch)
    assert vectors.shape == (4, 512) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.concatenate([embed(image[None]) for image in batch]) == pytest.approx(vectors, abs=1e-5)


def test_the_random_line_is_the_same_whatever_was_drawn_before(data: Path) -> None:
    def measured() -> tuple[np.ndarray, dict[str, object]]:
        embed = torch_embedder(load_backbone("random", "standard"), CPU)
        return embed(read_split(data, "test", SIZE).images), evaluate.evaluate(embed, data, SIZE, test=False)

    torch.manual_seed(1)
    first_vectors, first = measured()
    torch.rand(1000)
    second_vectors, second = measured()
    assert np.array_equal(first_vectors, second_vectors)
    assert first == second


def test_what_the_colours_give_away_is_found_inside_train_and_on_test(data: Path) -> None:
    result = evaluate.evaluate(torch_embedder(lively_backbone(), CPU), data, SIZE, test=True)
    assert result["size"] == SIZE
    assert result["train"]["linear"] > 80 and result["train"]["knn20"] > 50
    assert result["test"]["linear"] > 60 and result["test"]["knn20"] > 50, "chance is 10"
    assert result["train"]["strength"] in probe.STRENGTHS
    mean, deviation = result["test"]["linear_5_percent"]
    assert 0 < mean <= 100 and deviation >= 0


def test_without_test_the_test_split_is_never_opened(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "stl10_binary"
    broken.mkdir()
    for name in ("train_X.bin", "train_y.bin"):
        (broken / name).write_bytes((data / "stl10_binary" / name).read_bytes())
    (broken / "test_X.bin").write_bytes(b"not a multiple of one image")
    (broken / "test_y.bin").write_bytes(b"")
    embed = torch_embedder(lively_backbone(), CPU)
    assert "test" not in evaluate.evaluate(embed, tmp_path, SIZE, test=False)
    with pytest.raises(Exception, match=r"test_X\.bin has 27 bytes"):
        evaluate.evaluate(embed, tmp_path, SIZE, test=True)


def test_the_test_split_changes_nothing_that_is_said_about_train(data: Path) -> None:
    embed = torch_embedder(lively_backbone(), CPU)
    without, with_test = (evaluate.evaluate(embed, data, SIZE, test=test) for test in (False, True))
    assert without["train"] == with_test["train"]


def test_evaluation_leaves_parameters_and_batch_norm_statistics_as_they_were(data: Path) -> None:
    backbone = lively_backbone().train()  # as it comes out of training
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    evaluate.evaluate(torch_embedder(backbone, CPU), data, SIZE, test=True)
    after = backbone.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not any(value.requires_grad and value.grad is not None for value in backbone.parameters())


@pytest.mark.parametrize("stem", ["standard", "small"])
def test_a_checkpoint_gives_back_the_backbone_of_its_run(tmp_path: Path, stem: str) -> None:
    loaded, expected = load_backbone(str(write_checkpoint(tmp_path, stem))), lively_backbone(stem)
    assert loaded.stem == stem
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_that_lack_a_layer_are_refused_by_its_name(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["model"]["backbone.net.layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"missing \['net\.layer2\.0\.conv1\.weight'\]"):
        load_backbone(str(tmp_path / "checkpoint.pt"))


def test_missing_weights_are_refused_with_the_way_out() -> None:
    with pytest.raises(SystemExit, match=r"no weights at nowhere\.pt; train some with `akin pretrain`"):
        load_backbone("nowhere.pt")


def test_the_command_writes_what_it_prints_and_the_vectors_it_measured(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, vectors = tmp_path / "result.json", tmp_path / "train.npy"
    digest = sha256(checkpoint.read_bytes()).hexdigest()
    flags = ["--data", str(data), "--weights", str(checkpoint), "--sizes", "32", "48"]
    assert evaluate.main([*flags, "--out", str(out), "--vectors", str(vectors)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    assert [result["size"] for result in json.loads(out.read_text())["results"]] == [32, 48]
    expected, _ = embed_split(torch_embedder(lively_backbone(), CPU), data, "train", 48)
    assert np.load(vectors) == pytest.approx(expected, abs=1e-5)
    assert sha256(checkpoint.read_bytes()).hexdigest() == digest


def test_the_served_artifact_is_measured_at_its_own_size_by_the_servers_own_encoder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_tiny_encoder(tmp_path, size=40)
    vectors = tmp_path / "train.npy"
    assert evaluate.main(["--data", str(data), "--onnx", str(tmp_path), "--vectors", str(vectors)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["encoder"] == manifest.model_id
    assert [result["size"] for result in report["results"]] == [40]
    served = Encoder.load(tmp_path).embed(read_split(data, "train", 40).images).vectors
    assert np.array_equal(np.load(vectors), served)
