import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

from stages.classifier.calibration import apply_temperature
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
def test_the_temperature_is_that_of_scikit_learn_but_for_a_prior_that_hardly_weighs(classes, sharpness):
    probabilities, labels = drawn(classes, sharpness=sharpness)
    logits = np.log(probabilities)
    if classes == 2:
        logits = (logits[:, 1] - logits[:, 0]) / 2  # scikit-learn takes a decision value d for the logits −d and d
    given = FrozenEstimator(Given().fit(logits, labels))
    scaled = CalibratedClassifierCV(given, method="temperature").fit(logits.reshape(len(labels), -1), labels)
    unpenalised = 1 / scaled.calibrated_classifiers_[0].calibrators[0].beta_
    fitted = fit_temperature(probabilities, labels)
    assert fitted == pytest.approx(unpenalised, rel=0.03)
    assert (fitted - unpenalised) * (1 - unpenalised) > 0, "the prior draws towards 1"
    often = fit_temperature(np.tile(probabilities, (20, 1)), np.tile(labels, 20))
    assert often == pytest.approx(unpenalised, rel=0.002), "the more images there are, the less"


@pytest.mark.parametrize("right", [0, 15, 30, 40])
@pytest.mark.parametrize("gap", [0.5, 5, 20])
def test_the_temperature_of_equally_confident_images_solves_its_equation(gap, right):
    # Of 40 images with the same two logits, b the inverse temperature, p = 1 / (1 + exp(−b · gap)):
    # (40 p − right) · gap = 1 / b − 1 where the derivative of the likelihood and of the prior cancel.
    told = softmax(np.tile([0.0, gap], (40, 1)))
    labels = (np.arange(40) < right).astype(int)
    inverse = 1 / fit_temperature(told, labels)
    if inverse > 1 / 99:  # else it is the end of the search
        p = 1 / (1 + np.exp(-inverse * gap))
        assert (40 * p - right) * gap == pytest.approx(1 / inverse - 1, abs=0.01)


def test_perfect_validation_images_do_not_make_others_certain():
    told = np.tile([0.1, 0.9], (60, 1))
    scaled = apply_temperature(np.array([[0.4, 0.6]]), fit_temperature(told, np.ones(60, int)))
    assert 0.6 < scaled[0, 1] < 0.8


@pytest.mark.parametrize("images", [10, 60, 1000])
def test_epochs_without_a_mistake_are_told_apart(images):
    """The one that tells classes apart more clearly has the lower loss, and neither loss is 0."""
    random = np.random.default_rng(0)
    labels = np.arange(images) % 2
    scatter = random.uniform(-1, 1, images)
    losses = [
        calibrated_loss(np.where(labels[:, None] == [0, 1], gap + scatter[:, None], 0), labels) for gap in (2, 2.01, 4)
    ]
    assert losses[0] > losses[1] > losses[2] > 0


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
    assert calibrated_loss(factor * logits + shifts, labels) == pytest.approx(calibrated_loss(logits, labels), rel=1e-3)


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_have_no_calibrated_loss(broken):
    with np.errstate(all="raise"):
        assert np.isnan(calibrated_loss(np.array([[0.0, 1.0], [broken, 0.0]]), np.array([0, 1])))


@pytest.mark.parametrize("right", [True, False])
def test_logits_of_thousands_have_a_calibrated_loss(right):
    labels = np.arange(10) % 2
    logits = 8000 * np.eye(2, dtype=np.float32)[labels if right else 1 - labels]
    with np.errstate(over="raise", invalid="raise"):
        # At the end of the search, 100, a wrong image costs the distance of its logits.
        assert calibrated_loss(logits, labels) == pytest.approx(0 if right else 8000 / 100, rel=1e-3)
