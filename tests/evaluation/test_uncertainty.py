import numpy as np
import pytest

from stages.evaluation import uncertainty
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.uncertainty import bootstrap_intervals, weighted_metrics


def random_predictions(images: int, classes: int, seed: int = 0, decimals: int = 2):
    """Probabilities with ties and labels that they have something to do with."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    scores = random.random((images, classes)).round(decimals) + 0.4 * (labels[:, None] == np.arange(classes)) + 0.01
    return scores / scores.sum(axis=1, keepdims=True), labels


def expected(probabilities, labels) -> dict:
    return compute_metrics(probabilities, labels)["metrics"]


@pytest.mark.parametrize("classes", [2, 7])
def test_with_equal_weights_the_metrics_are_those_of_the_images(classes):
    probabilities, labels = random_predictions(300, classes)
    weighted = weighted_metrics(probabilities, labels, np.ones((1, 300)))
    assert {name: values[0] for name, values in weighted.items()} == pytest.approx(expected(probabilities, labels))


@pytest.mark.parametrize("classes", [2, 7])
def test_a_weight_counts_an_image_as_often(classes):
    probabilities, labels = random_predictions(200, classes)
    weights = np.random.default_rng(1).integers(4, size=(5, 200)).astype(float)
    weighted = weighted_metrics(probabilities, labels, weights)
    for number, weight in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(200), weight)
        assert {name: values[number] for name, values in weighted.items()} == pytest.approx(
            expected(probabilities[repeated], labels[repeated])
        )


@pytest.mark.parametrize("classes", [2, 7])
def test_a_class_that_a_replicate_lacks_is_left_out_of_its_means(classes):
    probabilities, labels = random_predictions(200, classes)
    weights = (labels != 1).astype(float)[None]
    weighted = weighted_metrics(probabilities, labels, weights)
    without = expected(probabilities[labels != 1], labels[labels != 1])
    for name, value in without.items():
        if value is None:
            assert np.isnan(weighted[name][0])
        else:
            assert weighted[name][0] == pytest.approx(value), name


def test_every_headline_metric_has_an_interval_around_it():
    probabilities, labels = random_predictions(300, 7)
    intervals = bootstrap_intervals(probabilities, labels, np.arange(300), 200, 0.95)
    metrics = expected(probabilities, labels)
    assert set(intervals) == set(metrics)
    for name, (low, high) in intervals.items():
        assert low < metrics[name] < high


def test_lesions_are_drawn_whole_so_copies_of_an_image_add_no_certainty():
    probabilities, labels = random_predictions(100, 2)
    once = bootstrap_intervals(probabilities, labels, np.arange(100), 300, 0.95)
    copies = np.repeat(np.arange(100), 5)
    five_times = bootstrap_intervals(probabilities[copies], labels[copies], copies, 300, 0.95)
    assert five_times["auroc"] == pytest.approx(once["auroc"])
    as_if_independent = bootstrap_intervals(probabilities[copies], labels[copies], np.arange(500), 300, 0.95)
    width = as_if_independent["auroc"][1] - as_if_independent["auroc"][0]
    assert width < 0.6 * (once["auroc"][1] - once["auroc"][0])


def test_a_single_lesion_has_no_spread():
    probabilities, labels = random_predictions(20, 2)
    intervals = bootstrap_intervals(probabilities, labels, np.zeros(20), 50, 0.95)
    assert intervals["accuracy"][0] == intervals["accuracy"][1]


def test_a_metric_without_a_value_has_no_interval():
    probabilities, _ = random_predictions(20, 2)
    intervals = bootstrap_intervals(probabilities, np.zeros(20, int), np.arange(20), 50, 0.95)
    assert intervals["auroc"] is None
    assert intervals["sensitivity"] is None
    assert intervals["accuracy"] is not None


def test_more_confidence_is_a_wider_interval():
    probabilities, labels = random_predictions(200, 2)
    narrow, wide = (bootstrap_intervals(probabilities, labels, np.arange(200), 500, c)["auroc"] for c in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_intervals_do_not_depend_on_how_many_replicates_fit_into_memory(monkeypatch):
    probabilities, labels = random_predictions(50, 7)
    at_once = bootstrap_intervals(probabilities, labels, np.arange(50) // 2, 40, 0.9)
    monkeypatch.setattr(uncertainty, "_CHUNK", 150)
    in_parts = bootstrap_intervals(probabilities, labels, np.arange(50) // 2, 40, 0.9)
    for name, interval in at_once.items():
        assert in_parts[name] == pytest.approx(interval)
