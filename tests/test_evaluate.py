"""Evaluation keeps its hands off the test split and the weights, shows the random line, and repeats itself."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoder.session import Encoder
from tests.test_labelled import write_cifar10
from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_stl10 import lively_backbone, write_checkpoint, write_tiny_stl10
from training import evaluate, finetune, probe, protocol
from training.evaluate import Subject, measured, network, read_splits
from training.features import embed_split, state_digest, torch_embedder
from training.labelled import read_split

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("stl10"), train=80, test=30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """5% of a tiny split is less than one image a class."""
    monkeypatch.setattr(protocol, "SHARE", 0.25)
    monkeypatch.setattr(protocol, "SHARE_DRAWS", 2)
    monkeypatch.setattr(protocol, "CURVE_DRAWS", 2)
    monkeypatch.setattr(protocol, "COUNTS", (1, 2, 500))
    monkeypatch.setattr(probe, "STRENGTHS", (1e-2, 1e-1))


def run(*flags: object) -> dict[str, Any]:
    """The report of the command."""
    config = evaluate.knobs.parse(evaluate.Evaluate(), [str(flag) for flag in flags], "akin evaluate", "")
    return evaluate.evaluate(config, "akin evaluate")


def test_the_random_line_is_the_same_whatever_was_drawn_before(data: Path) -> None:
    def line() -> dict[str, Any]:
        return measured(evaluate.random_weights("standard", "batch", CPU), read_splits(data, SIZE, False), CPU)[0]

    torch.manual_seed(1)
    first = line()
    torch.rand(1000)
    assert line() == first


def test_what_the_colours_give_away_is_found_inside_train_and_on_test(tmp_path: Path) -> None:
    splits = read_splits(write_tiny_stl10(tmp_path), SIZE, True)
    result, _ = measured(network("lively", lively_backbone(), CPU), splits, CPU)
    assert result["train"]["linear"] > 80 and result["train"]["knn20"] > 50
    assert result["test"]["linear"] > 60 and result["test"]["knn20"] > 50, "chance is 10"
    assert result["train"]["strength"] in probe.STRENGTHS
    for place in ("train", "test"):
        mean, deviation = result[place]["linear_5_percent"]
        assert 10 < mean <= 100 and deviation >= 0
        assert [point["labels_a_class"] for point in result[place]["curve"]] == [1, 2]


def test_without_test_the_test_split_is_never_opened(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "stl10_binary"
    broken.mkdir()
    for name in ("train_X.bin", "train_y.bin"):
        (broken / name).write_bytes((data / "stl10_binary" / name).read_bytes())
    (broken / "test_X.bin").write_bytes(b"not a multiple of one image")
    (broken / "test_y.bin").write_bytes(b"")
    (row,) = run("--data", tmp_path, "--weights", "random", "--stem", "standard", "--sizes", SIZE)["results"]
    assert "test" not in row and "test_images" not in row
    with pytest.raises(Exception, match=r"test_X\.bin has 27 bytes"):
        run("--data", tmp_path, "--weights", "random", "--stem", "standard", "--sizes", SIZE, "--test")


def test_the_test_split_changes_nothing_that_is_said_about_train(data: Path) -> None:
    subject = network("lively", lively_backbone(), CPU)
    without, with_test = (measured(subject, read_splits(data, SIZE, test), CPU)[0] for test in (False, True))
    assert without["train"] == with_test["train"]


def test_a_frozen_encoder_is_proved_to_be_one(data: Path) -> None:
    backbone = lively_backbone().train()  # as it comes out of training
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    result, _ = measured(network("lively", backbone, CPU), read_splits(data, SIZE, True), CPU)
    digest = state_digest(lively_backbone())
    assert result["frozen"] == {"sha256": digest, "equal": True, "of": "parameters and buffers"}
    after = backbone.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not any(value.requires_grad and value.grad is not None for value in backbone.parameters())


@pytest.mark.parametrize("changed", ["net.bn1.running_mean", "net.layer4.1.conv2.weight"])
def test_an_encoder_that_changes_while_it_is_measured_is_caught(data: Path, changed: str) -> None:
    subject = network("learner", lively_backbone(), CPU)
    assert subject.backbone is not None
    value = subject.backbone.state_dict()[changed]

    def embed(batch: np.ndarray) -> np.ndarray:
        vectors = subject.embed(batch)
        value[(0,) * value.dim()] += 1e-3
        return vectors

    with pytest.raises(
        RuntimeError, match=r"learner changed while it was measured: .* was [0-9a-f]{64}, is [0-9a-f]"
    ):
        measured(subject._replace(embed=embed), read_splits(data, SIZE, False), CPU)


def test_a_network_left_in_training_mode_is_caught(data: Path) -> None:
    """The mistake that the digest is there for: weights stay, BatchNorm's statistics move."""
    backbone = lively_backbone()

    @torch.no_grad()
    def embed(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.normalize(backbone.train()(x), dim=1).numpy()

    subject = Subject("forgetful", "standard", embed, lambda: state_digest(backbone), "parameters and buffers")
    with pytest.raises(RuntimeError, match="forgetful changed while it was measured"):
        measured(subject, read_splits(data, SIZE, False), CPU)


def test_the_command_writes_what_it_prints_and_the_vectors_it_measured(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, vectors = tmp_path / "new" / "result.json", tmp_path / "train.npy"
    text = tmp_path / "result.md"
    digest = sha256(checkpoint.read_bytes()).hexdigest()
    flags = ["--data", str(data), "--weights", str(checkpoint), "--sizes", "24", "32"]
    assert evaluate.main([*flags, "--out", str(out), "--vectors", str(vectors), "--markdown", str(text)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert [result["size"] for result in report["results"]] == [24, 32]
    assert report["encoder"] == str(checkpoint) and report["data"] == "STL-10"
    assert (
        report["made"]["command"]
        == f"akin evaluate {' '.join(flags)} --out {out} --vectors {vectors} --markdown {text}"
    )
    assert {"date", "machine", "commit", "torch"} <= report["made"].keys()
    expected, _ = embed_split(torch_embedder(lively_backbone(), CPU), data, "train", 32)
    assert np.load(vectors) == pytest.approx(expected, abs=1e-5)
    assert sha256(checkpoint.read_bytes()).hexdigest() == digest
    assert "Inside the train labels, 32 px" in text.read_text() and "| random weights |" in text.read_text()


def test_beside_the_encoder_stand_random_weights_of_its_own_shape(data: Path, checkpoint: Path) -> None:
    (row,) = run("--data", data, "--weights", checkpoint, "--sizes", SIZE, "--test")["results"]
    assert row["stem"] == row["random"]["stem"] == "standard"
    assert row["random"].keys() >= {"train", "test", "frozen"}
    assert row["random"]["train"].keys() == row["train"].keys() and row["random"]["test"].keys() == row["test"].keys()
    alone = measured(evaluate.random_weights("standard", "batch", CPU), read_splits(data, SIZE, True), CPU)[0]
    assert row["random"] == alone
    assert row["frozen"]["sha256"] != row["random"]["frozen"]["sha256"]


def test_random_weights_are_not_measured_twice(data: Path) -> None:
    (row,) = run("--data", data, "--weights", "random", "--stem", "standard", "--sizes", SIZE)["results"]
    assert "random" not in row and row["stem"] == "standard"


def test_folds_are_measured_where_there_are_any(tmp_path: Path) -> None:
    folder = write_tiny_stl10(tmp_path)
    folds = [" ".join(map(str, range(start, start + 60))) for start in (0, 30, 60)]
    (folder / "fold_indices.txt").write_text("\n".join(folds))
    (row,) = run("--data", folder, "--weights", "random", "--stem", "standard", "--sizes", SIZE, "--test")["results"]
    for place in ("train", "test"):
        assert len(row[place]["linear_folds"]) == len(row[place]["knn20_folds"]) == 2


def test_cifar10_is_measured_like_stl10(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    report = run("--data", folder, "--weights", "random", "--stem", "standard", "--sizes", SIZE, "--test")
    assert report["data"] == "CIFAR-10"
    (row,) = report["results"]
    assert row["train_images"] == 50 and row["test_images"] == 10
    assert row["train"]["linear"] == row["test"]["linear"] == 100, "every class is one gray"


def test_the_served_artifact_is_measured_at_its_own_size_by_the_servers_own_encoder(
    data: Path, tmp_path: Path
) -> None:
    manifest = write_tiny_encoder(tmp_path, size=40)
    vectors = tmp_path / "train.npy"
    report = run("--data", data, "--onnx", tmp_path, "--vectors", vectors, "--stem", "standard", "--test")
    assert report["encoder"] == manifest.model_id
    (row,) = report["results"]
    assert row["size"] == 40 and row["random"]["stem"] == "standard" and {"train", "test"} <= row.keys()
    artifact = manifest.artifacts[0]
    assert row["frozen"] == {"sha256": artifact.sha256, "equal": True, "of": artifact.file}
    served = Encoder.load(tmp_path).embed(read_split(data, "train", 40).images).vectors
    assert np.array_equal(np.load(vectors), served)


def test_fine_tuning_is_measured_for_the_encoder_and_for_random_weights(
    data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "DRAWS", 1)
    report = run("--data", data, "--weights", checkpoint, "--sizes", SIZE, "--finetune", 1)
    (row,) = report["results"]
    assert report["fine_tuning_epochs"] == 1
    for found in (row, row["random"]):
        tuned = found["train"]
        assert 0 <= tuned["finetuned"] <= 100 and len(tuned["finetuned_5_percent"]) == 2
        assert found["frozen"]["equal"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--finetune", "-1"], "finetune -1 is no number of epochs"),
        (["--finetune", "2", "--onnx", "model_store"], "int8 artifact has nothing to train"),
        (["--stem", "tiny"], "invalid choice: 'tiny'"),
    ],
)
def test_flags_that_ask_for_nonsense_are_refused(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(flags)
    assert complaint in capsys.readouterr().err
