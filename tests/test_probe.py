"""The measuring instruments themselves: linear probe, vote of neighbours, class means, against known answers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import probe
from training.probe import (
    Probe,
    few_label_accuracy,
    first_peak,
    fit_few,
    fit_probe,
    neighbor_accuracy,
    percent,
    prototype_accuracy,
    regression,
)

CLASSES, DIMENSION = 4, 12


def blobs(per_class: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, D) float32 around one random centre a class, and labels (N,); classes take turns."""
    centres = np.random.default_rng(99).standard_normal((CLASSES, DIMENSION))
    labels = np.tile(np.arange(CLASSES), per_class)
    noise = np.random.default_rng(seed).standard_normal((len(labels), DIMENSION))
    vectors = centres[labels] + spread * noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_percent_counts_the_rows_whose_largest_score_is_at_the_label() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [-1.0, -2.0]])
    assert percent(scores, np.array([1, 0, 0, 0])) == 75


def test_separable_classes_are_told_apart_without_a_mistake() -> None:
    fitted = fit_probe(*blobs(20, spread=0.1))
    assert fitted.cross_validated == 100
    assert fitted.accuracy(*blobs(50, spread=0.1, seed=1)) == 100
    assert fitted.weight.shape == (CLASSES, DIMENSION) and fitted.weight.dtype == np.float32
    assert fitted.bias.shape == (CLASSES,) and fitted.bias.dtype == np.float32


def test_labels_that_say_nothing_about_the_vectors_are_guessed_at_chance() -> None:
    vectors, labels = blobs(100, spread=0.5)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert fit_probe(vectors, shuffled).cross_validated == pytest.approx(100 / CLASSES, abs=8)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_folding_the_standardisation_changes_no_decision(strength: float) -> None:
    vectors, labels = blobs(40, spread=1.2)
    vectors = vectors * np.linspace(0.1, 30, DIMENSION) + np.linspace(-5, 5, DIMENSION)  # far from standardised
    queries = blobs(100, spread=1.2, seed=1)[0] * np.linspace(0.1, 30, DIMENSION) + np.linspace(-5, 5, DIMENSION)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(vectors, labels)
    weight, bias = regression(vectors, labels, strength)
    expected = pipeline.decision_function(queries)
    assert queries @ weight.T + bias == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.argmax(axis=1))) == CLASSES


def test_a_feature_that_never_changes_does_no_harm() -> None:
    vectors, labels = blobs(20, spread=0.1)
    vectors[:, 0] = 0
    assert fit_probe(vectors, labels).cross_validated == 100


def test_the_strength_is_one_of_the_candidates_and_reaches_what_it_reports() -> None:
    vectors, labels = blobs(30, spread=1.0)
    fitted = fit_probe(vectors, labels)
    assert fitted.strength in probe.STRENGTHS
    weight, _ = regression(vectors, labels, fitted.strength)
    assert fitted.weight == pytest.approx(weight, abs=1e-6)


def test_accuracy_on_queries_leaves_the_fitted_probe_as_it_is() -> None:
    vectors, labels = blobs(30, spread=1.0)
    fitted = fit_probe(vectors, labels)
    before = Probe(fitted.weight.copy(), fitted.bias.copy(), fitted.strength, fitted.cross_validated)
    fitted.accuracy(*blobs(30, spread=3.0, seed=2))
    assert np.array_equal(fitted.weight, before.weight) and np.array_equal(fitted.bias, before.bias)


def test_few_label_probes_never_see_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other queries with other labels: the same probes are fitted, strengths included."""
    vectors, labels = blobs(100, spread=1.0)
    fitted: list[Probe] = []

    def remember(vectors: np.ndarray, labels: np.ndarray) -> Probe:
        fitted.append(fit_probe(vectors, labels))
        return fitted[-1]

    monkeypatch.setattr(probe, "fit_probe", remember)
    queries, answers = blobs(10, spread=1.0, seed=1)
    few_label_accuracy(vectors, labels, queries, answers, share=0.1, draws=2)
    few_label_accuracy(vectors, labels, -queries, answers[::-1].copy(), share=0.1, draws=2)
    for one, other in zip(fitted[:2], fitted[2:], strict=True):
        assert np.array_equal(one.weight, other.weight) and one.strength == other.strength
    assert not np.array_equal(fitted[0].weight, fitted[1].weight), "each draw has labels of its own"


@pytest.mark.parametrize(
    ("scores", "peak", "asked"),
    [
        ([1, 2, 3, 2, 1, 9], 3, 5),  # stops after two that were worse
        ([1, 3, 2, 4, 3, 3], 4, 6),  # goes on after one
        ([1, 2, 3, 4, 5, 6], 6, 6),
        ([5, 5, 5, 9, 9, 9], 5, 3),  # no better is worse: the stronger penalty stays
    ],
)
def test_first_peak_walks_until_two_in_a_row_are_no_better(scores: list[int], peak: int, asked: int) -> None:
    seen: list[float] = []

    def score(candidate: float) -> float:
        seen.append(candidate)
        return scores[int(candidate)]

    best, best_score = first_peak(tuple(float(number) for number in range(6)), score)
    assert best_score == scores[int(best)] == peak
    assert len(seen) == asked


def brute_force_vote(gallery: np.ndarray, labels: np.ndarray, query: np.ndarray, skip: int | None) -> int:
    """The class with the most votes of the 20 nearest, each weighing exp(cosine / 0.07)."""
    cosines = [(float(vector @ query), row) for row, vector in enumerate(gallery) if row != skip]
    votes = [0.0] * CLASSES
    for cosine, row in sorted(cosines, reverse=True)[:20]:
        votes[labels[row]] += np.exp(cosine / 0.07)
    return int(np.argmax(votes))


@pytest.mark.parametrize("rows", [3, 300])  # fewer than 20 neighbours, and more
def test_the_vote_of_neighbours_is_that_of_a_plain_loop(rows: int) -> None:
    gallery, labels = blobs(rows, spread=2.0)
    queries, answers = blobs(30, spread=2.0, seed=1)
    expected = [brute_force_vote(gallery, labels, query, None) for query in queries]
    assert 30 < 100 * np.mean(expected == answers) < 95, "a vote that is always right would compare nothing"
    assert neighbor_accuracy(gallery, labels, queries, answers) == pytest.approx(100 * np.mean(expected == answers))


def test_leave_one_out_is_that_of_a_plain_loop_beyond_the_first_thousand_rows() -> None:
    gallery, labels = blobs(275, spread=2.0)  # 1,100 rows: two blocks
    expected = [brute_force_vote(gallery, labels, query, row) for row, query in enumerate(gallery)]
    assert neighbor_accuracy(gallery, labels, None, labels) == pytest.approx(100 * np.mean(expected == labels))


def test_leave_one_out_never_asks_a_row_about_itself() -> None:
    """Pairs of equal vectors with different labels, orthogonal to all others: a row's twin outvotes the rest, so
    every answer is wrong, where a row that saw itself would be right as often as not."""
    gallery = np.repeat(np.eye(30, dtype=np.float32), 2, axis=0)
    labels = np.tile([0, 1], 30)
    assert neighbor_accuracy(gallery, labels, None, labels) == 0


def test_a_near_neighbour_outvotes_many_far_ones() -> None:
    towards = np.array([1.0, 0.0])
    near, far = [0.99, np.sqrt(1 - 0.99**2)], [0.5, np.sqrt(0.75)]
    gallery = np.array([near, *[far] * 19], np.float32)
    labels = np.array([1] + [0] * 19)
    assert np.exp((0.99 - 0.5) / 0.07) > 19
    assert neighbor_accuracy(gallery, labels, towards[None].astype(np.float32), np.array([1])) == 100


def test_five_percent_draws_are_stratified_and_different(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = blobs(200, spread=0.5)
    drawn: list[np.ndarray] = []
    fits: list[np.ndarray] = []

    def vote(gallery: np.ndarray, gallery_labels: np.ndarray, queries: np.ndarray, answers: np.ndarray) -> float:
        drawn.append(gallery_labels)
        fits.append(gallery)
        return 0.0

    monkeypatch.setattr(probe, "neighbor_accuracy", vote)
    few_label_accuracy(vectors, labels, *blobs(5, spread=0.5, seed=1), draws=3)
    assert [np.bincount(known).tolist() for known in drawn] == [[10] * CLASSES] * 3
    assert len({known.tobytes() for known in fits}) == 3


def test_draws_are_the_same_in_every_run() -> None:
    known, queries = blobs(100, spread=1.5), blobs(40, spread=1.5, seed=1)
    first = few_label_accuracy(*known, *queries, share=0.1, draws=2)
    assert first == few_label_accuracy(*known, *queries, share=0.1, draws=2)
    assert first[0].deviation > 0


def test_draws_are_summed_up_as_mean_and_sample_deviation() -> None:
    assert probe.summary([60.0, 64.0]) == pytest.approx((62.0, np.sqrt(8.0)))


def brute_force_prototype(known: np.ndarray, labels: np.ndarray, query: np.ndarray) -> int:
    """The class whose mean is nearest, one distance after another."""
    distances = []
    for label in range(CLASSES):
        members = [vector for vector, own in zip(known, labels, strict=True) if own == label]
        mean = sum(members) / len(members)
        distances.append(float(((query - mean) ** 2).sum()))
    return int(np.argmin(distances))


@pytest.mark.parametrize("per_class", [1, 3, 50])
def test_prototypes_are_those_of_a_plain_loop(per_class: int) -> None:
    known, labels = blobs(per_class, spread=2.0)
    queries, answers = blobs(50, spread=2.0, seed=1)
    expected = [brute_force_prototype(known, labels, query) for query in queries]
    assert 30 < 100 * np.mean(expected == answers) < 95, "an instrument that is always right would compare nothing"
    found = prototype_accuracy(known, labels, queries, answers)
    assert found == pytest.approx(100 * np.mean(expected == answers))


def test_the_nearest_mean_is_nearest_by_distance_not_by_angle() -> None:
    """The mean of two opposite-looking vectors is short: the query points its way, yet lies nearer to the other."""
    known = np.array([[0.0, 1.0], [0.6, -0.8], [0.8, 0.6]], np.float32)  # class 0 has a mean of (0.3, 0.1)
    query = np.array([[0.96, 0.28]], np.float32)
    mean = known[:2].mean(axis=0)
    assert query[0] @ mean / np.linalg.norm(mean) > query[0] @ known[2]
    assert prototype_accuracy(known, np.array([0, 0, 1]), query, np.array([1])) == 100


def test_with_one_label_a_class_the_prototype_is_the_nearest_neighbour() -> None:
    known, labels = blobs(1, spread=2.0)
    queries, answers = blobs(100, spread=2.0, seed=1)
    nearest = labels[(queries @ known.T).argmax(axis=1)]
    assert prototype_accuracy(known, labels, queries, answers) == pytest.approx(100 * (nearest == answers).mean())


def test_below_five_labels_a_class_the_strength_is_fixed_and_from_five_on_it_is_chosen() -> None:
    few = fit_few(*blobs(4, spread=1.0))
    assert few.strength == probe.FEW_LABELS_STRENGTH and np.isnan(few.cross_validated)
    weight, _ = regression(*blobs(4, spread=1.0), probe.FEW_LABELS_STRENGTH)
    assert np.array_equal(few.weight, weight.astype(np.float32))
    chosen, expected = fit_few(*blobs(5, spread=1.0)), fit_probe(*blobs(5, spread=1.0))
    assert np.array_equal(chosen.weight, expected.weight) and chosen.cross_validated == expected.cross_validated


def test_one_label_a_class_is_enough_to_tell_blobs_apart() -> None:
    assert fit_few(*blobs(1, spread=0.05)).accuracy(*blobs(50, spread=0.05, seed=1)) == 100


def test_two_classes_have_two_logits_whose_difference_is_sklearns() -> None:
    vectors, labels = blobs(40, spread=1.0)
    vectors, labels = vectors[labels < 2], labels[labels < 2]
    weight, bias = regression(vectors, labels, 0.1)
    logits = vectors @ weight.T + bias
    scaled = StandardScaler().fit_transform(vectors)
    expected = LogisticRegression(C=0.1, max_iter=2000).fit(scaled, labels).decision_function(scaled)
    assert logits.shape == (80, 2)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(expected, abs=1e-4)
    assert fit_probe(vectors, labels).cross_validated > 60


def test_starting_from_a_neighbouring_strength_leads_to_the_same_probe() -> None:
    vectors, labels = blobs(60, spread=1.0)
    model = LogisticRegression(max_iter=2000, warm_start=True)
    for strength in probe.STRENGTHS:
        weight, bias = regression(vectors, labels, strength, model)
    cold_weight, cold_bias = regression(vectors, labels, probe.STRENGTHS[-1])
    assert weight == pytest.approx(cold_weight, abs=0.02 * float(np.abs(cold_weight).max()))
    assert bias == pytest.approx(cold_bias, abs=0.05)


def test_a_single_draw_has_no_deviation() -> None:
    assert probe.summary([60.0]) == (60.0, 0.0)
