"""The calibration of an average of networks, in a simulated population in which it is known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plain import PLAIN, told_apart
from benchmarks.release import Population, draw, mean_of
from stages.classifier.temperature import fit_temperature
from stages.evaluation.averaging import calibrate_average

CONFIG = replace(PLAIN.evaluation, target_sensitivity=0.9)
CLASSES = told_apart(7)


def test_temperature_and_threshold_are_those_of_the_average_on_lesions_that_are_new_to_it():
    random = np.random.default_rng(0)
    population = Population(own=1.0, common=1.3, sharpness=1.2)
    labels, logits = draw(random, 20_000, 7, population)
    fold = np.arange(len(labels)) % 7
    rows = np.arange(len(labels))
    first, second = (mean_of(logits[rows, members][:, None]) for members in (fold, (fold - 1) % 7))
    found = calibrate_average(first, second, labels, CLASSES, 7, CONFIG)

    new_labels, new = draw(random, 20_000, 7, population)
    best = fit_temperature(mean_of(new), new_labels)
    alone = fit_temperature(first, labels)
    assert found.temperature == pytest.approx(best, abs=0.05)
    assert alone > best + 0.2, "else one network's would have done"
    score = _calibrated_malignancy(mean_of(new), found.temperature)
    reached = (score >= found.threshold)[CLASSES.is_malignant[new_labels]].mean()
    assert reached == pytest.approx(0.9, abs=0.015)


def test_of_two_networks_it_is_what_their_mean_needs():
    random = np.random.default_rng(1)
    labels, logits = draw(random, 2_000, 2, Population())
    first, second = mean_of(logits[:, :1]), mean_of(logits[:, 1:])
    found = calibrate_average(first, second, labels, CLASSES, 2, CONFIG)
    assert found.temperature == pytest.approx(fit_temperature((first + second) / 2, labels), abs=1e-5)


def test_networks_without_anything_in_common_get_numbers_that_are_possible():
    random = np.random.default_rng(2)
    labels, logits = draw(random, 500, 2, Population(own=8.0, common=0.0, sharpness=3.0))
    found = calibrate_average(mean_of(logits[:, :1]), mean_of(logits[:, 1:]), labels, CLASSES, 10, CONFIG)
    assert found.temperature > 0
    assert 0 < found.threshold <= 1
    assert 0 < found.youden_threshold <= 1


def _calibrated_malignancy(probabilities, temperature):
    from stages.classifier.calibration import apply_temperature

    return apply_temperature(probabilities, temperature)[:, CLASSES.is_malignant].sum(axis=1)
