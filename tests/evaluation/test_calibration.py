import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from stages.evaluation.calibration import (
    reliability_bins,
    weighted_calibration,
    weighted_gaps,
    weighted_observed,
)
from stages.evaluation.uncertainty import combine


def drawn(classes: int, images: int = 400, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels drawn from them, before the logits are multiplied by `sharpness`."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(images, classes))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return softmax(sharpness * logits), labels


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def errors(probabilities, labels) -> dict[str, float]:
    weighted = weighted_calibration(np.array(probabilities), np.array(labels), np.ones((1, len(labels))))
    return {name: combine(name, values).item() for name, values in weighted.items()}


@pytest.mark.parametrize("sharpness", [0.5, 1, 3])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_errors_agree_with_scikit_learn_and_torchmetrics(classes, sharpness):
    probabilities, labels = drawn(classes, sharpness=sharpness)
    found = errors(probabilities, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    brier = brier_score_loss(labels, probabilities[:, 1] if classes == 2 else probabilities)
    assert found["brier"] == pytest.approx(brier)
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(ece.item(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 7])
def test_a_weight_counts_an_image_as_often(classes):
    probabilities, labels = drawn(classes)
    weights = np.random.default_rng(1).poisson(1, (3, 400))
    weighted = weighted_calibration(probabilities, labels, weights.astype(float))
    for number, weight in enumerate(weights):
        repeated = np.repeat(np.arange(400), weight)
        numbers = {name: combine(name, values[number]) for name, values in weighted.items()}
        assert numbers == pytest.approx(errors(probabilities[repeated], labels[repeated]))


def test_a_hand_worked_calibration_error():
    # Bin (0.6, 0.667]: confidence 0.62 and 0.66, one right, 1.28 − 1. Bin (0.867, 0.933]: 0.9, wrong, 0.9 − 0.
    found = errors([[0.38, 0.62], [0.66, 0.34], [0.1, 0.9], [0.2, 0.8]], [1, 1, 0, 1])
    assert found["ece"] == pytest.approx((0.28 + 0.9 + 0.2) / 4)
    assert found["brier"] == pytest.approx((0.38**2 + 0.66**2 + 0.9**2 + 0.2**2) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.62, 0.34, 0.1, 0.8]).mean())


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    # 0.8 is 12/15: together with 0.79 its gap is 0.8 − 1 + 0.79 − 0, together with 0.81 it would be 0.8 − 1 + 0.81.
    found = errors([[0.2, 0.8], [0.79, 0.21], [0.19, 0.81]], [1, 1, 0])
    assert found["ece"] == pytest.approx((0.59 + 0.81) / 3)


def test_the_gaps_add_up_to_the_mean_confidence_less_the_accuracy():
    probabilities, labels = drawn(7)
    gaps = weighted_gaps(probabilities, labels, np.ones((1, 400)))
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert gaps.shape == (1, 15)
    assert gaps.sum() == pytest.approx(probabilities.max(axis=1).mean() - accuracy)


@pytest.mark.parametrize("classes", [2, 7])
def test_perfect_predictions_have_no_errors_and_inverted_ones_the_largest(classes):
    labels = np.arange(14) % classes
    assert errors(np.eye(classes)[labels], labels) == {"ece": 0, "brier": 0, "nll": 0}
    inverted = errors(np.eye(classes)[(labels + 1) % classes], labels)
    # A probability of 0 counts as 1e-8, the last digit that is kept.
    assert inverted == {"ece": 1, "brier": 1 if classes == 2 else 2, "nll": pytest.approx(8 * np.log(10))}


def test_reliability_bins_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    score = random.random(237) ** 3
    truth = random.random(237) < score
    bins = reliability_bins(score)
    observed, told = calibration_curve(truth, score, n_bins=10, strategy="quantile")
    assert weighted_observed(bins, truth, np.ones((1, 237)))[0] == pytest.approx(observed)
    assert [score[bins == number].mean() for number in range(10)] == pytest.approx(told)
    assert set(np.bincount(bins)) <= {23, 24}


@pytest.mark.parametrize(
    ("score", "sizes"),
    [
        (np.full(30, 0.3), [30]),
        (np.repeat([0.2, 0.7], [25, 5]), [25, 5]),
        (np.r_[np.zeros(15), np.linspace(0.1, 1, 15)], [15, 3, 3, 3, 3, 3]),
        (np.array([0.4]), [1]),
        (np.arange(4) / 4, [1, 1, 1, 1]),
    ],
    ids=["all the same", "two scores", "half are 0", "one image", "four images"],
)
def test_equal_scores_share_a_reliability_bin_and_none_is_empty(score, sizes):
    bins = reliability_bins(score)
    assert list(np.bincount(bins)) == sizes
    assert (np.diff(bins[np.argsort(score)]) >= 0).all()


def test_a_bin_that_a_replicate_lacks_has_no_observed_fraction():
    observed = weighted_observed(np.array([0, 0, 1]), np.array([True, False, True]), np.array([[3.0, 1, 1], [1, 1, 0]]))
    np.testing.assert_array_equal(observed, [[0.75, 1], [0.5, np.nan]])


def test_a_bin_holds_its_upper_end():
    # 0.8 is the upper end of the 12th of 15 bins, which holds 0.75 too: (0.75 − 0.2) / 2 and not (0.75 + 0.2) / 2.
    confidence = np.array([0.8, 0.75])
    told = np.stack([confidence, 1 - confidence], axis=1)
    assert errors(told, np.array([0, 1]))["ece"] == pytest.approx(0.275)
