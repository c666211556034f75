import numpy as np
import pytest
from scipy.stats import norm

from stages.evaluation import uncertainty
from stages.evaluation.calibration import weighted_calibration, weighted_gaps
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.uncertainty import describe, estimate, lesion_weights, replicate
from stages.evaluation.weighted import weighted_areas, weighted_metrics


def random_predictions(images: int, classes: int):
    """Probabilities with ties and labels that they have something to do with."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    scores = random.random((images, classes)).round(2) + 0.4 * (labels[:, None] == np.arange(classes)) + 0.01
    return scores / scores.sum(axis=1, keepdims=True), labels


def estimates(probabilities, labels, lesions, replicates=300, confidence=0.95):
    return estimate(lambda weights: weighted_metrics(probabilities, labels, weights), lesions, replicates, confidence)


def width(number: dict) -> float:
    return number["interval"][1] - number["interval"][0]


def test_a_replicate_draws_as_many_lesions_as_there_are_and_all_images_of_each():
    lesions = np.array(["b", "a", "b", "c", "d", "c", "b"])
    weights = np.concatenate(list(lesion_weights(lesions, 4000)))
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
    first, second = (np.concatenate(list(lesion_weights(np.arange(30), 50))) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 50


def test_the_numbers_do_not_depend_on_how_many_replicates_fit_into_memory(monkeypatch):
    probabilities, labels = random_predictions(50, 7)
    at_once = estimates(probabilities, labels, np.arange(50) // 2)
    monkeypatch.setattr(uncertainty, "_CHUNK", 150)
    assert [len(part) for part in lesion_weights(np.arange(50), 7)] == [3, 3, 1]
    in_parts = estimates(probabilities, labels, np.arange(50) // 2)
    for name, number in at_once.items():
        assert in_parts[name]["interval"] == pytest.approx(number["interval"], abs=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_a_value_is_that_of_the_test_set_and_lies_in_its_interval(classes):
    probabilities, labels = random_predictions(300, classes)
    numbers = estimates(probabilities, labels, np.arange(300))
    expected = compute_metrics(probabilities, labels)["metrics"]
    assert {name: number["value"] for name, number in numbers.items()} == pytest.approx(expected)
    for name, number in numbers.items():
        low, high = number["interval"]
        assert low < expected[name] < high


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    mean = estimate(lambda weights: {"mean": weights @ values / weights.sum(axis=1)}, np.arange(400), 4000, 0.9)["mean"]
    error = values.std() / 20
    assert mean["interval"] == pytest.approx([values.mean() - 1.645 * error, values.mean() + 1.645 * error], abs=0.007)


def test_lesions_are_drawn_whole_so_copies_of_an_image_add_no_certainty():
    probabilities, labels = random_predictions(100, 2)
    once = estimates(probabilities, labels, np.arange(100))
    copies = np.repeat(np.arange(100), 5)
    five_times = estimates(probabilities[copies], labels[copies], copies)
    assert five_times["auroc"]["interval"] == pytest.approx(once["auroc"]["interval"])
    as_if_independent = estimates(probabilities[copies], labels[copies], np.arange(500))
    assert width(as_if_independent["auroc"]) < 0.6 * width(once["auroc"])


def test_a_single_lesion_has_no_spread():
    probabilities, labels = random_predictions(20, 2)
    assert width(estimates(probabilities, labels, np.zeros(20))["accuracy"]) == 0


def test_a_metric_without_a_value_has_no_interval():
    probabilities, _ = random_predictions(20, 2)
    numbers = estimates(probabilities, np.zeros(20, int), np.arange(20))
    assert numbers["auroc"] == numbers["sensitivity"] == {"value": None, "interval": None}
    assert numbers["accuracy"]["interval"] is not None


def test_replicates_without_a_value_are_left_out_of_an_interval():
    drawn = np.array([np.nan, 0.1, 0.2, np.nan, 0.3, np.nan])
    assert describe(np.float64(0.2), drawn, 0.5) == {"value": 0.2, "interval": pytest.approx([0.15, 0.25])}
    assert describe(np.float64(0.2), np.full(3, np.nan), 0.5) == {"value": None, "interval": None}
    assert describe(np.float64(np.nan), drawn, 0.5) == {"value": None, "interval": None}


def test_several_numbers_of_a_name_have_an_interval_each():
    numbers = describe(np.array([1.0, np.nan]), np.array([[0.0, 1], [1, 1], [2, 1]]), 0.5)
    assert numbers == [{"value": 1, "interval": [0.5, 1.5]}, {"value": None, "interval": None}]


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
            low, high = np.percentile(drawn["auroc"], [2.5, 97.5])
            held[kind] += low <= 0.9 <= high
    lesions, images = held / 150
    assert 0.91 <= lesions <= 0.99, "benchmarks/bootstrap.py measures it to half a percent"
    assert images < 0.88, "images of one lesion are not independent"


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
                gaps={"ece": lambda weights, p=told, y=labels: weighted_gaps(p, y, weights)},
            )["ece"]
            low, high = ece["interval"]
            assert 0 <= low <= ece["value"] <= high
            bounds.append(low)
    assert np.mean(np.array(lowest[1]) == 0) >= 0.9
    assert np.mean(np.array(lowest[3]) > 0) == 1
