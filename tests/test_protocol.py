"""The protocol: who is fitted on what, that nobody is asked what it was fitted on, and that test chooses nothing."""

from collections.abc import Sequence

import numpy as np
import pytest

from training import probe, protocol
from training.features import Labelled
from training.protocol import Scores, count_draws, measure, on_test, share_draws

DIMENSION = 12


def blobs(per_class: int, spread: float, seed: int = 0, classes: int = 4) -> Labelled:
    """Unit vectors (N, D) float32 around one random centre a class; classes take turns."""
    centres = np.random.default_rng(99).standard_normal((classes, DIMENSION))
    labels = np.tile(np.arange(classes), per_class)
    vectors = centres[labels] + spread * np.random.default_rng(seed).standard_normal((len(labels), DIMENSION))
    return Labelled((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "COUNTS", (1, 5, 20))
    monkeypatch.setattr(protocol, "CURVE_DRAWS", 2)
    monkeypatch.setattr(protocol, "SHARE_DRAWS", 3)
    monkeypatch.setattr(protocol, "SHARE", 0.1)
    monkeypatch.setattr(probe, "STRENGTHS", (1e-2, 1e-1))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Labelled, Labelled]]:
    """What was known and what was asked, of every fit."""
    seen: list[tuple[Labelled, Labelled]] = []

    def remember(known: Labelled, asked: Labelled, fitted: probe.Probe) -> Scores:
        seen.append((known, asked))
        return Scores(1.0, 2.0, 3.0)

    monkeypatch.setattr(protocol, "scores", remember)
    return seen


def rows_of(part: Labelled, whole: Labelled) -> set[int]:
    numbers = {vector.tobytes(): row for row, vector in enumerate(whole.vectors)}
    return {numbers[vector.tobytes()] for vector in part.vectors}


def numbers_of(found: dict[str, object], key: str) -> list[float]:
    value = found[key]
    return [float(value)] if isinstance(value, float) else [float(value[0])]  # type: ignore[index]


def test_classes_far_apart_are_told_apart_by_every_instrument_from_any_number_of_labels() -> None:
    train, test = blobs(20, 0.05), blobs(10, 0.05, seed=1)
    result = measure(train, test, [np.arange(40)])
    for place in ("train", "test"):
        for key in ("linear", "knn20", "linear_5_percent", "knn20_5_percent", "linear_folds", "knn20_folds"):
            assert numbers_of(result[place], key) == [100.0], (place, key)
        for point in result[place]["curve"]:
            assert point["linear"] == point["knn20"] == point["prototypes"] == [100.0, 0.0], point


def test_labels_that_say_nothing_are_guessed_at_chance_by_every_instrument() -> None:
    train, test = blobs(150, 0.5), blobs(150, 0.5, seed=1)
    shuffled = [
        Labelled(split.vectors, np.random.default_rng(0).permutation(split.labels)) for split in (train, test)
    ]
    result = measure(shuffled[0], shuffled[1], [np.arange(300)])
    for place in ("train", "test"):
        row, point = result[place], result[place]["curve"][-1]
        means = [row["linear"], row["knn20"], *(row[key][0] for key in row if key.endswith(("_percent", "_folds")))]
        means += [point[key][0] for key in ("linear", "knn20", "prototypes")]
        assert means == pytest.approx([25] * len(means), abs=8)


def test_inside_train_nothing_is_asked_that_was_fitted_on_and_everything_else_is(
    asked: list[tuple[Labelled, Labelled]],
) -> None:
    train = blobs(30, 1.0)
    measure(train, None, [np.arange(60), np.arange(60, 120)])
    assert len(asked) == 3 + 2 + 3 * 2
    for known, queries in asked:
        learned, examined = rows_of(known, train), rows_of(queries, train)
        assert not learned & examined and learned | examined == {*range(120)}


def test_on_the_test_split_only_test_images_are_asked_and_only_train_images_are_known(
    asked: list[tuple[Labelled, Labelled]],
) -> None:
    train, test = blobs(30, 1.0), blobs(10, 1.0, seed=1)
    measure(train, test, [np.arange(60)])
    on_the_test_split = [(known, queries) for known, queries in asked if queries is test]
    assert len(on_the_test_split) == 1 + 3 + 1 + 3 * 2
    assert all(rows_of(known, train) for known, _ in on_the_test_split)


def test_another_test_split_changes_neither_fits_nor_what_is_said_about_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[probe.Probe] = []

    def remember(vectors: np.ndarray, labels: np.ndarray) -> probe.Probe:
        fitted.append(fit_few(vectors, labels))
        return fitted[-1]

    fit_few = probe.fit_few
    monkeypatch.setattr(probe, "fit_few", remember)
    train, test = blobs(30, 1.0), blobs(10, 1.0, seed=1)
    turned = Labelled(-test.vectors, test.labels[::-1].copy())
    results = [measure(train, each, [np.arange(60)]) for each in (None, test, turned)]
    assert results[0]["train"] == results[1]["train"] == results[2]["train"]
    third = len(fitted) // 3
    for one, other, last in zip(fitted[:third], fitted[third : 2 * third], fitted[2 * third :], strict=True):
        assert np.array_equal(one.weight, other.weight) and np.array_equal(one.weight, last.weight)
        assert one.strength == other.strength == last.strength
    assert results[1]["test"] != results[2]["test"] and "test" not in results[0]


def test_the_long_protocol_and_the_short_one_agree_on_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SHARE", 0.05)
    monkeypatch.setattr(protocol, "SHARE_DRAWS", 10)
    train, test = blobs(100, 1.0), blobs(20, 1.0, seed=1)
    short, long = on_test(train, test), measure(train, test, [])["test"]
    assert set(short) == {"linear", "knn20", "linear_5_percent", "knn20_5_percent"}
    assert short == {key: long[key] for key in short}


def test_folds_give_mean_and_deviation_of_what_each_gives_alone() -> None:
    train = blobs(50, 1.5)
    folds = [np.arange(80), np.arange(60, 160)]
    alone = []
    for fold in folds:
        others = np.setdiff1d(np.arange(200), fold)
        fitted = probe.fit_probe(train.vectors[fold], train.labels[fold])
        alone.append(fitted.accuracy(train.vectors[others], train.labels[others]))
    found = measure(train, None, folds)["train"]
    assert found["linear_folds"] == [round(np.mean(alone), 2), round(np.std(alone, ddof=1), 2)]
    assert found["linear_folds"][1] > 0


def test_without_folds_no_folds_are_reported() -> None:
    found = measure(blobs(10, 1.0), None, [])["train"]
    assert not [key for key in found if key.endswith("_folds")]


def test_draws_of_the_curve_hold_so_many_of_each_class_none_twice() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 50, 40]))
    draws = count_draws(labels, 7)
    assert len(draws) == 2
    for known in draws:
        assert np.bincount(labels[known]).tolist() == [7, 7, 7]
        assert len({*known.tolist()}) == 21
    assert {*draws[0].tolist()} != {*draws[1].tolist()}


def test_draws_of_the_curve_are_the_same_in_every_run_and_none_is_part_of_a_larger_one() -> None:
    labels = np.arange(200) % 4
    for few, many in zip(count_draws(labels, 5), count_draws(labels, 10), strict=True):
        assert not {*few.tolist()} <= {*many.tolist()}
    assert [d.tolist() for d in count_draws(labels, 5)] == [d.tolist() for d in count_draws(labels, 5)]


def test_shares_are_stratified_and_left_out_where_a_class_would_have_none() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [30, 100]))
    assert [np.bincount(labels[known]).tolist() for known in share_draws(labels, 2)] == [[3, 10]] * 2
    assert share_draws(np.repeat([0, 1], [9, 100]), 2) == []


def points(curve: Sequence[dict[str, object]]) -> list[tuple[object, object]]:
    return [(point["labels_a_class"], point["draws"]) for point in curve]


def test_a_count_that_leaves_nobody_to_ask_is_left_out_and_all_labels_are_one_draw_on_test() -> None:
    train, test = blobs(20, 1.0), blobs(10, 1.0, seed=1)
    result = measure(train, test, [])
    assert points(result["train"]["curve"]) == [(1, 2), (5, 2)]
    assert points(result["test"]["curve"]) == [(1, 2), (5, 2), (20, 1)]
    last = result["test"]["curve"][-1]
    assert last["linear"] == [result["test"]["linear"], 0.0] and last["knn20"] == [result["test"]["knn20"], 0.0]
    fewer = measure(blobs(12, 1.0), test, [])
    assert points(fewer["test"]["curve"]) == [(1, 2), (5, 2)]


def test_more_labels_are_worth_more() -> None:
    curve = measure(blobs(40, 1.5), None, [])["train"]["curve"]
    assert curve[-1]["linear"][0] > curve[0]["linear"][0] + 5


def test_two_classes_are_as_good_as_ten() -> None:
    result = measure(blobs(20, 0.05, classes=2), blobs(10, 0.05, seed=1, classes=2), [])
    assert result["train"]["linear"] == result["test"]["linear"] == 100
    assert result["test"]["curve"][0]["linear"] == [100.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.repeat([0, 1], [20, 4]), "2 classes, and 4 images of class 1: .* at least 5 images each"),
        (np.repeat([0, 2], [20, 20]), "3 classes, and 0 images of class 1"),
        (np.zeros(20, np.int64), "1 classes, .*needs two classes or more"),
    ],
)
def test_train_labels_too_few_to_cross_validate_are_refused(labels: np.ndarray, complaint: str) -> None:
    vectors = blobs(20, 1.0).vectors[: len(labels)]
    with pytest.raises(SystemExit, match=complaint):
        measure(Labelled(vectors, labels), None, [])
