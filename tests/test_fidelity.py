"""int8 against fp32: perfect for twins, honest about noise, and a budget that refuses."""

from dataclasses import replace

import numpy as np
import pytest

from encoder.session import Embedded
from export.fidelity import (
    OVERLAP,
    Budget,
    Closeness,
    Fidelity,
    OverBudget,
    closeness,
    compare,
    folds,
    neighbor_overlap,
)
from training.probe import regression

ROWS, DIMENSION, CLASSES = 300, 16, 5
LABELS = np.arange(ROWS) % CLASSES
HELD_OUT = np.random.default_rng(5).permutation(ROWS) < 100
PERFECT = Fidelity(1000, 1.0, 1.0, 100.0, overlap=1.0, probe_fp32=80.0, probe_int8=80.0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embedded(noise: float = 0.0) -> Embedded:
    """Five blobs and logits that know the centres; `noise` moves every vector."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLASSES, DIMENSION))
    vectors = unit(centres[LABELS] + 0.8 * random.standard_normal((ROWS, DIMENSION)))
    vectors = unit(vectors + noise * np.random.default_rng(1).standard_normal(vectors.shape))
    return Embedded(vectors, (vectors @ centres.T).astype(np.float32))


def test_a_twin_is_perfect() -> None:
    fidelity = compare(embedded(), embedded(), LABELS, HELD_OUT, strength=0.01)
    assert fidelity.images == 100
    assert fidelity.cosine_mean == pytest.approx(1, abs=1e-6)
    assert fidelity.cosine_p1 == pytest.approx(1, abs=1e-6)
    assert fidelity.top1_agreement == 100
    assert fidelity.overlap == 1
    assert fidelity.probe_int8 == fidelity.probe_fp32 > 80
    fidelity.check(Budget())


def test_each_number_is_what_its_definition_says() -> None:
    one, other = embedded(), embedded(noise=0.2)
    fidelity = compare(one, other, LABELS, HELD_OUT, strength=0.01)
    cosine = sorted(float(a @ b) for a, b, out in zip(one.vectors, other.vectors, HELD_OUT, strict=True) if out)
    same = [a.argmax() == b.argmax() for a, b, out in zip(one.logits, other.logits, HELD_OUT, strict=True) if out]
    assert fidelity.cosine_mean == pytest.approx(np.mean(cosine), abs=1e-6)
    assert cosine[0] <= fidelity.cosine_p1 <= cosine[1]  # the first percentile of 100
    assert fidelity.top1_agreement == pytest.approx(100 * np.mean(same))
    assert 0 < fidelity.probe_int8 < fidelity.probe_fp32


def test_only_held_out_images_count() -> None:
    damaged = embedded()
    damaged.vectors[~HELD_OUT] = damaged.vectors[~HELD_OUT][::-1]
    damaged.logits[~HELD_OUT] = 0
    fidelity = compare(embedded(), damaged, LABELS, HELD_OUT, strength=0.01)
    assert fidelity.cosine_mean == pytest.approx(1, abs=1e-6)
    assert fidelity.top1_agreement == 100
    assert fidelity.probe_int8 == fidelity.probe_fp32
    assert fidelity.overlap < 0.5, "but the neighbours that they find are among the others"


def test_the_probe_is_fitted_without_the_held_out_labels() -> None:
    lies = LABELS.copy()
    lies[HELD_OUT] = (lies[HELD_OUT] + 1) % CLASSES
    truth = compare(embedded(), embedded(), LABELS, HELD_OUT, strength=0.01)
    assert compare(embedded(), embedded(), lies, HELD_OUT, strength=0.01).probe_fp32 < 100 - truth.probe_fp32 + 1e-6


def test_cross_validated_every_image_is_asked_about_once_by_a_probe_that_has_not_seen_it() -> None:
    one, other = embedded(), embedded(noise=0.2)
    fidelity = compare(one, other, LABELS, HELD_OUT, strength=0.01, cross_validated=True)
    parts = folds(LABELS)
    assert (np.sum(parts, axis=0) == 1).all()
    assert all(np.bincount(LABELS[part]).tolist() == [ROWS // CLASSES // 5] * CLASSES for part in parts)
    hits = {"fp32": 0, "int8": 0}
    for part in parts:
        weight, bias = regression(one.vectors[~part], LABELS[~part], 0.01)
        for name, vectors in (("fp32", one.vectors), ("int8", other.vectors)):
            hits[name] += int(((vectors[part] @ weight.T + bias).argmax(axis=1) == LABELS[part]).sum())
    assert fidelity.probe_fp32 == pytest.approx(100 * hits["fp32"] / ROWS)
    assert fidelity.probe_int8 == pytest.approx(100 * hits["int8"] / ROWS)
    assert fidelity.cosine_mean == compare(one, other, LABELS, HELD_OUT, strength=0.01).cosine_mean


def test_neighbour_overlap_is_that_of_a_plain_loop() -> None:
    one, other = embedded().vectors, embedded(noise=0.3).vectors
    shares = []
    for row in np.flatnonzero(HELD_OUT):
        tops = []
        for space in (one, other):
            ranked = sorted(np.flatnonzero(~HELD_OUT), key=lambda i, s=space, r=row: -float(s[i] @ s[r]))
            tops.append(set(ranked[:OVERLAP]))
        shares.append(len(tops[0] & tops[1]) / OVERLAP)
    assert 0.2 < np.mean(shares) < 0.9
    assert neighbor_overlap(one, other, HELD_OUT) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(
    ("change", "what", "value", "limit"),
    [
        ({"cosine_mean": 0.9975}, "mean cosine", "0.9975", ">= 0.998"),
        ({"probe_int8": 79.5}, "probe loss in points", "0.5000", "<= 0.3"),
        ({"overlap": 0.85}, "10-NN overlap", "0.8500", ">= 0.9"),
        ({"cosine_mean": float("nan")}, "mean cosine", "nan", ">= 0.998"),
    ],
)
def test_whatever_is_over_budget_is_refused_with_value_limit_and_way_out(
    change: dict[str, float], what: str, value: str, limit: str
) -> None:
    with pytest.raises(OverBudget) as refusal:
        replace(PERFECT, **change).check(Budget())  # type: ignore[arg-type]
    message = str(refusal.value)
    assert f"{what} is {value}, the budget is {limit}" in message
    assert "1000 held-out images" in message and "--calibration" in message
    assert message.count("the budget is") == 1


def test_noise_breaks_every_part_of_the_budget_at_once() -> None:
    fidelity = compare(embedded(), embedded(noise=0.5), LABELS, HELD_OUT, strength=0.01)
    with pytest.raises(OverBudget, match=r"mean cosine is .*; probe loss in points is .*; 10-NN overlap is "):
        fidelity.check(Budget())


def test_what_is_exactly_on_budget_or_better_than_fp32_passes() -> None:
    replace(PERFECT, cosine_mean=0.998, probe_fp32=80.25, probe_int8=80.0, overlap=0.9).check(Budget())
    replace(PERFECT, probe_int8=85.0).check(Budget())


def test_its_json_has_the_numbers_rounded() -> None:
    assert replace(PERFECT, cosine_mean=0.999444444).to_json()["cosine_mean"] == 0.99944


def test_closeness_needs_no_labels_and_is_that_of_a_plain_loop() -> None:
    one, other = embedded().vectors[:60], embedded(noise=0.3).vectors[:60]
    cosine = sorted(float(a @ b) for a, b in zip(one, other, strict=True))
    shares = []
    for row in range(60):
        tops = []
        for space in (one, other):
            others = [i for i in range(60) if i != row]
            tops.append(set(sorted(others, key=lambda i, s=space, r=row: -float(s[i] @ s[r]))[:OVERLAP]))
        shares.append(len(tops[0] & tops[1]) / OVERLAP)
    found = closeness(one, other)
    assert found.images == 60
    assert found.cosine_mean == pytest.approx(np.mean(cosine), abs=1e-6)
    assert found.cosine_min == pytest.approx(cosine[0], abs=1e-6)
    assert cosine[0] <= found.cosine_p1 <= cosine[1]
    assert found.overlap == pytest.approx(np.mean(shares)) and 0.2 < found.overlap < 0.9


def test_a_twin_is_as_close_as_can_be() -> None:
    found = closeness(embedded().vectors, embedded().vectors)
    assert found.cosine_min == pytest.approx(1, abs=1e-6) and found.overlap == 1
    assert found.beyond(Budget()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cosine_mean": 0.9975}, "mean cosine is 0.9975, the budget is >= 0.998"),
        ({"overlap": 0.85}, "10-NN overlap is 0.8500, the budget is >= 0.9"),
        ({"cosine_mean": float("nan")}, "mean cosine is nan, the budget is >= 0.998"),
    ],
)
def test_what_is_not_close_enough_is_said_with_value_and_limit(change: dict[str, float], said: str) -> None:
    close = Closeness(100, cosine_mean=0.999, cosine_p1=0.99, cosine_min=0.9, overlap=0.95)
    assert close.beyond(Budget()) == []
    assert replace(close, **change).beyond(Budget()) == [said]  # type: ignore[arg-type]
