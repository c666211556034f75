"""The calibration of the average of a cross-validation's networks, of which no lesion is new to all."""

import numpy as np

from stages.classifier.calibration import Calibration, as_written
from stages.classifier.temperature import fit_temperature
from stages.config import EvaluationConfig
from stages.dataset.taxonomy import Classes
from stages.evaluation.decisions import choose_thresholds


def calibrate_average(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, classes: Classes, networks: int, config: EvaluationConfig
) -> Calibration:
    """The temperature and thresholds of the mean of `networks` networks, from the predictions of two for each image.

    Averaging makes predictions less confident and better, so neither is that of one network. In a cross-validation two
    networks have not trained on an image: that which tested it, and that which was validated on it. So a number t(m) of
    the mean of m networks can be measured for m = 1, on both, and m = 2. Of means of m exchangeable networks whatever
    depends smoothly on the distribution of their predictions has the expansion t(m) = t(∞) + c/m + O(1/m²), as the
    jackknife has of the number of observations (Quenouille, Biometrika 43:353, 1956), so that

        t(N) ≈ t(2) + (t(2) − t(1)) · (1 − 2/N).

    It is used for the square of the temperature, which is nearly linear in the variance of the logits (the probit
    approximation of MacKay, Neural Computation 4:720, 1992), to which networks add what they do not share divided by m;
    and as they are for the thresholds of probabilities that are calibrated for each m by its own temperature.
    benchmarks/release.py measures what is left of the error.

    Args:
        first: probabilities before temperature scaling, by the networks that tested the images, shape (n, classes).
        second: those by the networks that were validated on them.
        labels: numbers of classes, shape (n,).
        classes: what they are of.
        networks: how many are averaged, at least 2.
        config: whether test-time augmentation was on, and the sensitivity to reach.

    Raises:
        InputError: the images are all benign or all malignant.
    """
    malignant = classes.is_malignant[labels]
    found = []
    for probabilities, copies in ((np.concatenate([first, second]), 2), ((first + second) / 2, 1)):
        temperature = fit_temperature(probabilities, np.tile(labels, copies))
        is_malignant = np.tile(malignant, copies)
        thresholds = choose_thresholds(probabilities, temperature, is_malignant, classes, config.target_sensitivity)
        found.append([temperature**2, *thresholds])
    one, two = np.array(found)
    # Where two networks have hardly anything in common, the expansion leads out of what is possible.
    squared, threshold, youden = np.clip(two + (two - one) * (1 - 2 / networks), two / 4, [np.inf, 1, 1])
    temperature, threshold, youden = map(as_written, (float(np.sqrt(squared)), float(threshold), float(youden)))
    return Calibration(config.test_time_augmentation, temperature, threshold, config.target_sensitivity, youden)
