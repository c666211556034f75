import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t, ttest_ind
from statsmodels.stats.proportion import proportion_confint

from benchmarks.plain import told_apart
from stages.evaluation import uncertainty
from stages.evaluation.calibration import weighted_calibration
from stages.evaluation.metrics import compute_metrics, effective_lesions_of
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.uncertainty import (
    _interval_of_gaps,
    combine_classes,
    count_lesions,
    describe,
    effective_lesions,
    estimate,
    replicate,
    score_interval,
)
from stages.evaluation.weighted import weighted_areas, weighted_metrics


def random_predictions(images: int, classes: int):
    """Probabilities with ties and labels that they have something to do with."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    scores = random.random((images, classes)).round(2) + 0.4 * (labels[:, None] == np.arange(classes)) + 0.01
    return scores / scores.sum(axis=1, keepdims=True), labels


def estimates(probabilities, labels, lesions, replicates=300, confidence=0.95):
    told = told_apart(probabilities.shape[1])
    table = pd.DataFrame({"image_id": np.arange(len(labels)).astype(str), "lesion_id": lesions})
    predictions = Predictions(
        predictions_table(table, "test", [told.names[label] for label in labels], probabilities, told), told
    )
    return estimate(
        lambda weights: weighted_metrics(probabilities, labels, weights, told),
        lesions,
        replicates,
        confidence,
        effective_lesions_of(predictions),
    )


def width(number: dict) -> float:
    return number["interval"][1] - number["interval"][0]


def drawn_weights(lesions: np.ndarray, replicates: int) -> np.ndarray:
    return replicate(lambda weights: {"weights": weights}, lesions, replicates)["weights"]


def test_a_replicate_draws_as_many_lesions_as_there_are_and_all_images_of_each():
    lesions = np.array(["b", "a", "b", "c", "d", "c", "b"])
    weights = drawn_weights(lesions, 4000)
    assert weights.shape == (4000, 7)
    drawn = {name: weights[:, lesions == name] for name in "abcd"}
    for columns in drawn.values():
        assert (columns == columns[:, :1]).all()
    once_each = np.stack([columns[:, 0] for columns in drawn.values()], axis=1)
    assert (once_each.sum(axis=1) == 4).all()
    # A lesion is drawn by a binomial distribution of 4 draws with the chance 1/4.
    np.testing.assert_allclose(once_each.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(once_each.var(axis=0), 0.75, atol=0.05)


def test_two_calls_draw_the_same_lesions():
    first, second = (drawn_weights(np.arange(30), 50) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 50


@pytest.mark.parametrize("threads", [1, 3])
def test_the_numbers_do_not_depend_on_how_many_replicates_a_thread_has_at_once(monkeypatch, threads):
    probabilities, labels = random_predictions(50, 7)
    at_once = estimates(probabilities, labels, np.arange(50) // 2)
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    monkeypatch.setattr(uncertainty, "_CHUNK", 150)
    monkeypatch.setattr(uncertainty, "_FEWEST", 1)
    sizes = replicate(lambda weights: {"size": np.full(len(weights), len(weights))}, np.arange(50), 7)["size"]
    assert sizes.tolist() == [3, 3, 3, 3, 3, 3, 1]
    in_parts = estimates(probabilities, labels, np.arange(50) // 2)
    for name, number in at_once.items():
        assert in_parts[name]["interval"] == pytest.approx(number["interval"], abs=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_a_value_is_that_of_the_test_set_and_lies_in_its_interval(classes):
    probabilities, labels = random_predictions(300, classes)
    numbers = estimates(probabilities, labels, np.arange(300))
    expected = compute_metrics(probabilities, labels, told_apart(classes))["metrics"]
    assert {name: number["value"] for name, number in numbers.items()} == pytest.approx(expected)
    for name, number in numbers.items():
        low, high = number["interval"]
        assert low < expected[name] < high


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    mean = estimate(
        lambda weights: {"mean": weights @ values / weights.sum(axis=1)},
        np.arange(40),
        20_000,
        0.9,
        lambda name: 40,
        bounds=(-1e3, 1e3),  # so far away that it does not matter
    )["mean"]
    assert mean["value"] == pytest.approx(values.mean())
    expected = t.interval(0.9, 39, values.mean(), values.std(ddof=1) / 40**0.5)
    assert mean["interval"] == pytest.approx(expected, abs=0.004)


def test_lesions_are_drawn_whole_so_copies_of_an_image_add_no_certainty():
    probabilities, labels = random_predictions(100, 2)
    once = estimates(probabilities, labels, np.arange(100))
    copies = np.repeat(np.arange(100), 5)
    five_times = estimates(probabilities[copies], labels[copies], copies)
    assert five_times["auroc"]["interval"] == pytest.approx(once["auroc"]["interval"])
    as_if_independent = estimates(probabilities[copies], labels[copies], np.arange(500))
    assert width(as_if_independent["auroc"]) < 0.6 * width(once["auroc"])


def test_a_single_lesion_says_nothing():
    probabilities, labels = random_predictions(20, 2)
    for number in estimates(probabilities, labels, np.zeros(20)).values():
        assert number["interval"] == [0, 1]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.98])
def test_of_independent_images_it_is_wilsons_interval_of_a_proportion(share):
    # Of so many lesions that Student's t is the normal distribution.
    drawn = np.random.default_rng(0).binomial(2000, share, 40_000) / 2000
    expected = proportion_confint(2000 * share, 2000, method="wilson")
    assert score_interval(share, drawn, 0.95, 2000) == pytest.approx(expected, abs=0.0005)


def test_a_hand_worked_interval():
    # Of 4 lesions and 0.5 ± 0.1: the variance is 0.01, that of a lesion 0.24, so the effective size is 24 · 3 / 4 = 18;
    # Student's t for 3 degrees of freedom 3.182. 0.5 ± 0.5 · √(1 − 18 / (18 + 3.182²)).
    low, high = score_interval(0.5, np.array([0.4, 0.6]), 0.95, 4)
    assert (low, high) == pytest.approx((0.5 - 0.5 * 0.6, 0.5 + 0.5 * 0.6), abs=5e-5)


@pytest.mark.parametrize("lesions", [2, 10, 300])
@pytest.mark.parametrize("value", [0.0, 1.0, 1 - 1e-16])
def test_lesions_without_an_error_do_not_prove_that_there_is_none(lesions, value):
    low, high = score_interval(value, np.full(500, value), 0.95, lesions)
    assert (low if value < 0.5 else high) == round(value)
    quantile = t.ppf(0.975, lesions - 1)
    assert high - low == pytest.approx(quantile**2 / (lesions - 1 + quantile**2))


def test_a_number_that_no_lesion_could_change_is_certain():
    assert score_interval(0.5, np.full(500, 0.5), 0.95, 40) == (0.5, 0.5)


def test_a_number_at_the_end_of_its_range_whose_replicates_are_not_has_no_hopeless_interval():
    low, high = score_interval(1.0, np.tile([1.0, 0.96], 500), 0.95, 40)
    assert 0.85 < low < 0.96
    assert high == 1


def test_an_interval_stays_in_its_range():
    random = np.random.default_rng(0)
    for span in ((0, 1), (-1, 1), (0, 18.4), (-0.25, 1)):
        values = random.uniform(*span, 200)
        drawn = np.clip(values + random.normal(0, 0.5, (100, 200)), *span)
        for lesions in (1, 2, 3, 10, random.integers(1, 50, 200)):
            low, high = score_interval(values, drawn, 0.95, lesions, span)
            assert (span[0] <= low).all()
            assert (low <= values).all()
            assert (values <= high).all()
            assert (high <= span[1]).all()


def test_a_range_only_scales():
    random = np.random.default_rng(0)
    value, drawn = 0.7, random.normal(0.7, 0.1, 300).clip(0, 1)
    scaled = score_interval(5 * value - 2, 5 * drawn - 2, 0.9, 12, (-2, 3))
    expected = score_interval(value, drawn, 0.9, 12)
    assert np.array(scaled) == pytest.approx(5 * np.array(expected) - 2)


def test_each_of_several_numbers_rests_on_its_own_lesions():
    random = np.random.default_rng(0)
    value, drawn = np.full(3, 0.7), np.repeat(random.normal(0.7, 0.1, (300, 1)).clip(0, 1), 3, axis=1)
    low, high = score_interval(value, drawn, 0.95, np.array([3, 10, 100]))
    assert (np.diff(high - low) < 0).all()
    assert np.array([low[1], high[1]]) == pytest.approx(np.array(score_interval(0.7, drawn[:, 1], 0.95, 10)))


def test_perfect_scores_have_an_interval_for_their_number_of_lesions():
    labels = np.arange(60) % 3 == 0
    numbers = estimates(np.eye(2)[labels.astype(int)], labels.astype(int), np.arange(60))
    assert numbers["auroc"]["value"] == numbers["specificity"]["value"] == 1
    assert width(numbers["specificity"]) < width(numbers["auroc"]) == width(numbers["sensitivity"])
    assert 0 < width(numbers["balanced_accuracy"]) < width(numbers["sensitivity"])
    assert numbers["sensitivity"]["interval"] == pytest.approx([19 / (19 + t.ppf(0.975, 19) ** 2), 1])


def test_scores_that_are_all_alike_have_the_auroc_of_chance():
    labels = np.arange(60) % 3 == 0
    numbers = estimates(np.full((60, 2), 0.5), labels.astype(int), np.arange(60))
    assert numbers["auroc"] == {"value": 0.5, "interval": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("metric", "lesions"),
    [("accuracy", 50), ("nll", 50), ("ece", 50), ("brier", 50), ("sensitivity", 20), ("specificity_at_threshold", 30)],
)
def test_a_metric_rests_on_the_lesions_of_its_kind(metric, lesions):
    assert effective_lesions(metric, 50, 20, 30) == lesions
    assert effective_lesions("auroc", 50, 20, 30) == effective_lesions("auroc", 50, 30, 20) == 20
    assert effective_lesions("macro_f1", 50, 50, 0) == 1


def test_lesions_are_counted_not_images():
    assert count_lesions(np.array([3, 3, 5, 7, 7]), np.array([True, True, False, False, False])) == (3, 1, 2)


def test_a_metric_without_a_value_has_no_interval():
    probabilities, _ = random_predictions(20, 2)
    numbers = estimates(probabilities, np.zeros(20, int), np.arange(20))
    assert numbers["auroc"] == numbers["sensitivity"] == {"value": None, "interval": None}
    assert numbers["accuracy"]["interval"] is not None


def test_replicates_without_a_value_are_left_out_of_an_interval():
    known = np.array([0.1, 0.2, 0.3])
    drawn = np.array([np.nan, 0.1, 0.2, np.nan, 0.3, np.nan])
    assert describe(np.float64(0.2), drawn, 0.5, 9) == describe(np.float64(0.2), known, 0.5, 9)
    assert describe(np.float64(0.2), np.full(3, np.nan), 0.5, 9) == {"value": None, "interval": None}
    assert describe(np.float64(np.nan), drawn, 0.5, 9) == {"value": None, "interval": None}


def test_several_numbers_of_a_name_have_an_interval_each():
    drawn = np.array([[0.0, 1], [0.5, 1], [0.8, 1]])
    numbers = describe(np.array([0.4, np.nan]), drawn, 0.5, 9)
    assert numbers == [describe(np.float64(0.4), drawn[:, 0], 0.5, 9), {"value": None, "interval": None}]


def test_more_confidence_is_a_wider_interval():
    probabilities, labels = random_predictions(200, 2)
    narrow, wide = (
        estimates(probabilities, labels, np.arange(200), 500, confidence)["auroc"]["interval"]
        for confidence in (0.8, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def clustered(random: np.random.Generator, lesions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with an AUROC of 0.9 in their population, truth and lesions of images that are alike within a lesion."""
    lesion = np.repeat(np.arange(lesions), random.integers(1, 5, lesions))
    truth = (random.random(lesions) < 0.2)[lesion]
    alike, own = random.normal(size=lesions)[lesion], random.normal(size=len(lesion))
    return norm.ppf(0.9) * 2**0.5 * truth + 0.6**0.5 * alike + 0.4**0.5 * own, truth, lesion


def test_intervals_hold_the_truth_as_often_as_they_say_where_images_are_clustered_in_lesions():
    random, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(150):
        score, truth, lesion = clustered(random, 300)
        for kind, drawn in enumerate((lesion, np.arange(len(lesion)))):
            drawn = replicate(lambda w, s=score, t=truth: {"auroc": weighted_areas(s, t, w)[0]}, drawn, 200)
            effective = effective_lesions("auroc", *count_lesions(lesion, truth))
            low, high = score_interval(
                weighted_areas(score, truth, np.ones((1, len(lesion))))[0][0], drawn["auroc"], 0.95, effective
            )
            held[kind] += low <= 0.9 <= high
    lesions, images = held / 150
    assert 0.91 <= lesions <= 0.99, "benchmarks/bootstrap.py measures it to half a percent"
    assert images < 0.9, "images of one lesion are not independent"


def test_the_degrees_of_freedom_of_a_mean_over_classes_are_welchs():
    random = np.random.default_rng(0)
    samples = [random.normal(size=4), 3 * random.normal(size=9)]
    # Two replicates with the standard errors of two bootstrapped means, which go up and down together.
    drawn = np.stack([np.array([-1, 1]) * sample.std() / len(sample) ** 0.5 for sample in samples], axis=1)
    mean, lesions = combine_classes(drawn, np.array([4, 9]))
    assert lesions - 1 == pytest.approx(ttest_ind(*samples, equal_var=False).df)
    unbiased = sum(sample.std(ddof=1) / len(sample) ** 0.5 for sample in samples) / 2
    assert mean.std() * np.sqrt(lesions / (lesions - 1)) == pytest.approx(unbiased)


def test_of_a_single_class_or_classes_of_one_lesion_nothing_is_gained():
    drawn = np.random.default_rng(0).random((50, 2))
    drawn[:, 1] = np.nan
    mean, lesions = combine_classes(drawn, np.array([7, 1]))
    assert lesions == pytest.approx(7)
    assert mean == pytest.approx(drawn[:, 0])
    assert combine_classes(drawn, np.array([1, 1]))[1] == 1


def test_intervals_of_a_mean_over_classes_allow_for_the_rarest():
    lesions = np.array([10, 15, 33, 3, 33, 200, 4])
    chances = np.array([0.5, 0.6, 0.7, 0.4, 0.7, 0.95, 0.4])
    random, held = np.random.default_rng(0), 0
    for _ in range(600):
        found = random.binomial(lesions, chances) / lesions
        drawn = random.binomial(lesions, found, (200, 7)) / lesions
        mean, effective = combine_classes(drawn, lesions)
        low, high = score_interval(found.mean(), mean, 0.95, effective)
        held += low <= chances.mean() <= high
    assert 0.93 <= held / 600 <= 0.98, "lesions of all kinds together would give 0.90"


def test_a_calibration_error_that_chance_explains_may_be_0_and_one_that_it_does_not_is_not():
    random, lowest = np.random.default_rng(0), {1: [], 3: []}
    for sharpness, bounds in lowest.items():
        for _ in range(60):
            logit = random.normal(-1, 1.5, 300)
            labels = (random.random(300) < 1 / (1 + np.exp(-logit))).astype(int)
            malignant = 1 / (1 + np.exp(-sharpness * logit))
            told = np.stack([1 - malignant, malignant], axis=1)
            ece = estimate(
                lambda weights, p=told, y=labels: weighted_calibration(p, y, weights),
                np.arange(300),
                200,
                0.95,
                lambda name: 300,
            )["ece"]
            low, high = ece["interval"]
            assert 0 <= low <= ece["value"] <= high
            bounds.append(low)
    assert np.mean(np.array(lowest[1]) == 0) >= 0.9
    assert np.mean(np.array(lowest[3]) > 0) == 1


def test_a_hand_worked_interval_of_gaps():
    # Sums of the replicates: 0.2, 0.5, 0.6 and 0.7, their mean 0.5; of their distances to the value's gaps: 0, 0.3, 0.4
    # and 0.5. At a confidence of 0 both percentiles are the median: 0.55 and 0.35.
    gaps, drawn = np.array([0.1, -0.1]), np.array([[0.1, -0.1], [0.3, -0.2], [0.3, -0.3], [0.5, -0.2]])
    assert _interval_of_gaps(gaps, drawn, 0.0) == pytest.approx([0, 0.2 + 0.55 - 0.5])
    # Gaps that chance does not make: as far below the value as the percentile lies above it.
    assert _interval_of_gaps(5 * gaps, drawn + 4 * gaps, 0.0) == pytest.approx([1 - (1.35 - 1), 1 + 1.35 - 1.3])
