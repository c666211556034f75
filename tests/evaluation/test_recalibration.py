"""Recalibration on simulated lesions of a place with another mix of diagnoses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from benchmarks.plain import told_apart
from stages.classifier.calibration import Calibration, FittedOn, calibrate
from stages.errors import InputError
from stages.evaluation.calibration import weighted_gaps
from stages.evaluation.predictions import Predictions, as_malignancy, malignant_probability, predictions_table
from stages.evaluation.recalibration import draw_part, fit_temperature_and_bias, recalibrate
from stages.evaluation.uncertainty import combine
from stages.evaluation.weighted import unit_weights

OWN = Calibration(True, 1.0, 0.3, 0.9, 0.5)
HOME = {2: [0.8, 0.2], 7: [0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02]}
THERE = {2: [0.55, 0.45], 7: [0.15, 0.3, 0.15, 0.01, 0.15, 0.2, 0.04]}


def drawn(classes, images, shares, seed, temperature=2.0):
    """Labels, and what a network says that is calibrated at home but for a temperature."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, images, p=shares)
    seen = np.eye(classes)[labels] * 2.2 + random.normal(size=(images, classes))
    # Bayes' theorem for these normal distributions, with the shares at home.
    return labels, softmax(temperature * (2.2 * seen + np.log(HOME[classes])), axis=1)


def predictions(labels, classes):
    count = len(labels)
    ids = pd.DataFrame({"image_id": np.arange(count).astype(str), "lesion_id": np.arange(count).astype(str)})
    names, even = (
        [classes.names[label] for label in labels],
        np.full((count, len(classes.names)), 1 / len(classes.names)),
    )
    return Predictions(predictions_table(ids, "test", names, even, classes), classes)


def errors(probabilities, labels, classes):
    """The ECE, and how far the mean probability of malignancy lies from the share of malignant images."""
    score, is_malignant = malignant_probability(probabilities, classes), classes.is_malignant[labels]
    ece = combine("ece", weighted_gaps(probabilities, labels, unit_weights(labels)))[0]
    return ece, abs(score.mean() - is_malignant.mean())


@pytest.mark.parametrize("count", [2, 7])
def test_it_mends_what_a_temperature_cannot(count):
    classes = told_apart(count)
    labels, raw = drawn(count, 400, THERE[count], 0)
    others, raw_of_others = drawn(count, 20_000, THERE[count], 1)
    new = recalibrate(raw, predictions(labels, classes), classes, OWN, "there")
    ece, bias = errors(calibrate(raw_of_others, new), others, classes)
    assert ece < 0.03
    assert bias < 0.03
    same = np.zeros((count, 0))
    temperature, _ = fit_temperature_and_bias(raw, labels[:, None] == np.arange(count), same)
    _, without = errors(calibrate(raw_of_others, replace(OWN, temperature=temperature)), others, classes)
    assert without > 0.04
    score = malignant_probability(calibrate(raw_of_others, new), classes)
    assert (score >= new.threshold)[classes.is_malignant[others]].mean() == pytest.approx(0.9, abs=0.04)
    malignant = int(classes.is_malignant[labels].sum())
    assert new.fitted_on == FittedOn("there", 400, 400, malignant)
    assert (new.test_time_augmentation, new.target_sensitivity) == (True, 0.9)


def test_labels_of_malignancy_leave_the_mix_of_diagnoses_within_it_alone():
    classes, two = told_apart(7), told_apart(2)
    labels, raw = drawn(7, 600, THERE[7], 0)
    part = predictions(classes.is_malignant[labels].astype(int), two)
    new = recalibrate(raw, part, classes, OWN, "there")
    malignant = np.array(new.bias)[classes.is_malignant]
    assert np.ptp(malignant) == np.ptp(np.array(new.bias)[~classes.is_malignant]) == 0
    assert malignant[0] > 0.5, "malignancy is more frequent than at home"
    others, raw = drawn(7, 20_000, THERE[7], 1)
    score = as_malignancy(calibrate(raw, new), classes)[:, 1]
    assert score.mean() == pytest.approx(classes.is_malignant[others].mean(), abs=0.03)


def test_at_home_next_to_nothing_changes():
    labels, raw = drawn(7, 5000, HOME[7], 0, temperature=1.0)
    temperature, bias = fit_temperature_and_bias(raw, labels[:, None] == np.arange(7), np.eye(7))
    assert temperature == pytest.approx(1, abs=0.1)
    assert np.abs(bias).max() < 0.4


def test_a_diagnosis_without_images_keeps_a_probability():
    labels, raw = drawn(7, 300, [0, 0.1, 0.2, 0, 0.3, 0.4, 0], 0)
    temperature, bias = fit_temperature_and_bias(raw, labels[:, None] == np.arange(7), np.eye(7))
    assert np.isfinite([temperature, *bias]).all()
    assert -4 < bias[[0, 3, 6]].max() < 0


def test_the_part_is_of_whole_lesions_of_both_kinds():
    lesions, is_malignant = np.repeat(np.arange(200), 3).astype(str), np.repeat(np.arange(200) < 50, 3)
    part = draw_part(lesions, is_malignant, 0.3)
    assert len(np.unique(lesions[part & is_malignant])) == 15
    assert len(np.unique(lesions[part & ~is_malignant])) == 45
    assert not set(lesions[part]) & set(lesions[~part])
    assert (draw_part(lesions, is_malignant, 0.3) == part).all()
    order = np.random.default_rng(0).permutation(600)
    assert (draw_part(lesions[order], is_malignant[order], 0.3) == part[order]).all(), "whatever the order of the rows"


@pytest.mark.parametrize(
    ("fraction", "malignant", "said"),
    [
        (
            0.3,
            20,
            "--recalibrate is 0.3, which takes 6 of 20 malignant lesions and leaves 14; both must be 10 at least",
        ),
        (0.95, 180, "takes 171 of 180 malignant lesions and leaves 9"),
        (0.3, 180, "takes 6 of 20 benign lesions and leaves 14"),
    ],
)
def test_too_few_lesions_are_refused(fraction, malignant, said):
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        draw_part(np.arange(200).astype(str), np.arange(200) < malignant, fraction)
