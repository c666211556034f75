import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

from stages.classifier.temperature import calibrated_loss, fit_temperature
from tests.evaluation.test_calibration import drawn, softmax


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its logits."""

    def fit(self, features, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, features):
        return features

    def predict(self, features):
        raise NotImplementedError


@pytest.mark.parametrize("sharpness", [0.3, 1, 4])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_temperature_is_that_of_scikit_learn(classes, sharpness):
    probabilities, labels = drawn(classes, sharpness=sharpness)
    logits = np.log(probabilities)
    if classes == 2:
        logits = (logits[:, 1] - logits[:, 0]) / 2  # scikit-learn takes a decision value d for the logits −d and d
    given = FrozenEstimator(Given().fit(logits, labels))
    scaled = CalibratedClassifierCV(given, method="temperature").fit(logits.reshape(len(labels), -1), labels)
    beta = scaled.calibrated_classifiers_[0].calibrators[0].beta_
    assert fit_temperature(probabilities, labels) == pytest.approx(1 / beta, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.2, 1, 2.5, 10])
@pytest.mark.parametrize("classes", [2, 7])
def test_a_temperature_that_was_applied_is_found_again(classes, temperature):
    probabilities, labels = drawn(classes)
    own = fit_temperature(probabilities, labels)
    assert own == pytest.approx(1, abs=0.15), "the labels were drawn from the probabilities"
    sharpened = softmax(np.log(probabilities) * temperature)
    assert fit_temperature(sharpened, labels) == pytest.approx(own * temperature, rel=1e-5)


@pytest.mark.parametrize("gap", [0.5, 5, 20, 40, 60, 120, 700])
def test_a_temperature_follows_from_the_share_of_right_predictions_if_all_are_equally_confident(gap):
    # The best probability is the share: gap / T = log(3 / 1).
    told = softmax(np.tile([0.0, gap], (40, 1)))
    labels = (np.arange(40) >= 10).astype(int)
    assert fit_temperature(told, labels) == pytest.approx(np.clip(gap / np.log(3), 0.05, 20), rel=1e-4)


@pytest.mark.parametrize("confidence", [0.6, 0.99, 1 - 1e-12, 1])
def test_the_temperature_of_perfect_and_of_inverted_predictions_is_at_a_bound(confidence):
    labels = np.arange(20) % 2
    told = np.where(labels[:, None] == np.arange(2), confidence, 1 - confidence)
    assert fit_temperature(told, 1 - labels) == pytest.approx(20, abs=1e-3)
    if confidence < 1:
        assert fit_temperature(told, labels) == pytest.approx(0.05, abs=1e-3)
    assert 0.05 <= fit_temperature(told, labels) <= 20


@pytest.mark.parametrize("sharpness", [0.3, 1, 4])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_calibrated_loss_is_what_the_fitted_temperature_leaves(classes, sharpness):
    probabilities, labels = drawn(classes, sharpness=sharpness)
    logits = np.log(probabilities)
    left = log_loss(labels, softmax(logits / fit_temperature(probabilities, labels)), labels=range(classes))
    assert calibrated_loss(logits, labels) == pytest.approx(left)
    assert left <= log_loss(labels, probabilities, labels=range(classes)) * (1 if sharpness == 1 else 0.97)


@pytest.mark.parametrize("factor", [0.2, 3, 10])
@pytest.mark.parametrize("classes", [2, 7])
def test_how_sure_predictions_are_does_not_change_the_calibrated_loss(classes, factor):
    probabilities, labels = drawn(classes)
    logits = np.log(probabilities)
    shifts = np.random.default_rng(0).normal(size=(400, 1))
    assert calibrated_loss(factor * logits + shifts, labels) == pytest.approx(calibrated_loss(logits, labels), rel=1e-6)


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_have_no_calibrated_loss(broken):
    with np.errstate(all="raise"):
        assert np.isnan(calibrated_loss(np.array([[0.0, 1.0], [broken, 0.0]]), np.array([0, 1])))


@pytest.mark.parametrize("right", [True, False])
def test_logits_of_thousands_have_a_calibrated_loss(right):
    labels = np.arange(10) % 2
    logits = 8000 * np.eye(2, dtype=np.float32)[labels if right else 1 - labels]
    with np.errstate(over="raise", invalid="raise"):
        # At the highest temperature, 20, a wrong image costs the distance of its logits.
        assert calibrated_loss(logits, labels) == pytest.approx(0 if right else 8000 / 20)
