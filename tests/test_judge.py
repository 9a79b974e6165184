"""Judging features inside the train labels: known values, and references that go over every pair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.small_run import SmallBackbone
from tests.tiny_stl10 import write_tiny_stl10
from training import judge


def blobs(
    classes: int = 4, each: int = 30, dimensions: int = 12, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, D) float32 around one direction a class, all in the positive corner, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(classes * each) % classes
    vectors = 2 + np.eye(classes, dimensions)[labels] + noise * rng.normal(size=(len(labels), dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classes_that_are_one_point_each_are_as_tight_as_can_be(classes: int) -> None:
    labels = np.arange(classes * 5) % classes
    vectors = np.eye(classes, 16, dtype=np.float32)[labels]
    assert judge.tightness(vectors, labels) == pytest.approx(classes / (classes - 1), abs=1e-6)


def test_classes_that_are_one_point_each_are_told_apart_without_a_mistake() -> None:
    labels = np.arange(50) % 10
    found = judge.judged(np.eye(10, 16, dtype=np.float32)[labels], labels)
    assert found[:4] == pytest.approx((100, 100, 10 / 9, 1), abs=1e-5)
    assert found.effective_rank == pytest.approx(9, abs=1e-3)  # ten points span nine dimensions around their mean


def test_tightness_is_the_mean_over_pairs_within_less_that_over_pairs_between() -> None:
    vectors, labels = blobs()
    vectors, labels = vectors[:71], labels[:71]  # classes of different sizes
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    within, between = [], []
    for i in range(len(unit)):
        for j in range(i):
            (within if labels[i] == labels[j] else between).append(unit[i] @ unit[j])
    assert judge.tightness(vectors, labels) == pytest.approx(np.mean(within) - np.mean(between), abs=1e-5)


def test_labels_that_say_nothing_about_the_vectors_find_no_clusters() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(600, 8)).astype(np.float32)
    assert abs(judge.tightness(vectors, rng.permutation(600) % 3)) < 0.01


def test_the_cone_that_all_features_lie_in_does_not_count() -> None:
    vectors, labels = blobs()
    assert judge.tightness(vectors + 5, labels) == pytest.approx(judge.tightness(vectors, labels), abs=1e-4)
    assert judge.tightness(vectors, labels) > 0.3


def test_less_noise_is_tighter() -> None:
    found = [judge.judged(*blobs(noise=noise)) for noise in (0.6, 0.3, 0.1)]
    for earlier, later in ((found[0], found[1]), (found[1], found[2])):
        assert later.tightness > earlier.tightness
        assert later.silhouette > earlier.silhouette
        assert later.effective_rank < earlier.effective_rank


def test_collapsed_features_have_rank_one_no_clusters_and_chance_accuracy() -> None:
    labels = np.arange(60) % 4
    vectors = np.full((60, 8), 8**-0.5, dtype=np.float32)
    found = judge.judged(vectors, labels)
    assert found.effective_rank == pytest.approx(1, abs=0.01)
    assert found.tightness == pytest.approx(0, abs=1e-6)
    assert found.linear <= 26


def test_the_linear_number_is_scikit_learns_cross_validation() -> None:
    vectors, labels = blobs(noise=0.6)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=judge.STRENGTH, max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    expected = 100 * cross_val_score(model, vectors, labels, cv=folds).mean()
    assert 30 < expected < 99
    assert judge.cross_validated(vectors, labels) == pytest.approx(expected, abs=1e-6)


def test_a_backbone_is_judged_by_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labelled = judge.read_labelled(write_tiny_stl10(tmp_path, train=60, test=10), 16)
    backbone, device = SmallBackbone(), torch.device("cpu")
    first = judge.judge(backbone, labelled, device)
    assert 10 < first.linear <= 100
    assert judge.judge(backbone, labelled, device) == first
    with torch.no_grad():
        backbone.net[0].weight.zero_()  # every image alike
    assert judge.judge(backbone, labelled, device).linear < first.linear


def test_the_first_data_with_labels_is_the_one_to_judge_by(tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", np.zeros((3, 8, 8, 3), np.uint8))
    photos = tmp_path / "photos"
    photos.mkdir()
    stl10 = write_tiny_stl10(tmp_path / "stl10", train=10, test=10)
    data = [str(tmp_path / "pool.npy"), str(photos), str(tmp_path / "missing"), str(stl10)]
    assert judge.find_labelled("", data) == stl10
    assert judge.find_labelled(str(stl10), data[:2]) == stl10


def test_without_labels_it_says_where_they_come_from(tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"no labelled STL-10 in .*pool\.npy.*--labels.*download=True"):
        judge.find_labelled("", [str(tmp_path / "pool.npy")])
    with pytest.raises(SystemExit, match="no labelled STL-10 in elsewhere"):
        judge.find_labelled("elsewhere", [str(tmp_path / "pool.npy")])
