"""Recalibration: what fits a model's probabilities to lesions of another place, its weights as they are."""

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from stages.classifier.calibration import Calibration, FittedOn, as_written
from stages.dataset.taxonomy import Classes
from stages.errors import InputError
from stages.evaluation.decisions import choose_thresholds
from stages.evaluation.metrics import effective_lesions_of, headline
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import MIN_LESIONS
from stages.evaluation.uncertainty import SEED, estimate
from stages.evaluation.verdict import judge


def draw_part(lesions: np.ndarray, is_malignant: np.ndarray, fraction: float) -> np.ndarray:
    """Draw a fraction of the malignant and of the benign lesions.

    Args:
        lesions: the lesion of each image, shape (n,).
        is_malignant: bool, shape (n,).
        fraction: above 0, below 1.

    Returns:
        Whether an image is of the part, bool, shape (n,); all images of a lesion are.

    Raises:
        InputError: the part or the rest has fewer than `MIN_LESIONS` malignant or benign lesions.
    """
    random, malignant = np.random.default_rng(SEED), np.unique(lesions[is_malignant])
    part = []
    for kind, names in (("malignant", malignant), ("benign", np.setdiff1d(lesions, malignant))):
        count = round(fraction * len(names))
        if min(count, len(names) - count) < MIN_LESIONS:
            raise InputError(
                f"--recalibrate is {fraction:g}, which takes {count} of {len(names)} {kind} lesions and leaves "
                f"{len(names) - count}; both must be {MIN_LESIONS} at least: choose another fraction, or add lesions"
            )
        part.append(random.permutation(names)[:count])
    return np.isin(lesions, np.concatenate(part))


def recalibrate(
    uncalibrated: np.ndarray, part: Predictions, classes: Classes, calibration: Calibration, dataset: str
) -> Calibration:
    """Fit temperature and bias to images of another dataset, and choose the thresholds on them.

    Args:
        uncalibrated: their probabilities as the network gives them, shape (n, classes).
        part: predictions of them, whose lesions and labels are taken; of `classes`, or of benign and malignant.
        classes: those of the network.
        calibration: of the model; test-time augmentation, the sensitivity to reach and costs stay.
        dataset: its name.
    """
    is_malignant, labels = part.is_malignant, part.labels
    if part.classes == classes:
        possible, free = labels[:, None] == np.arange(len(classes.names)), np.eye(len(classes.names))
    else:  # the labels say nothing of how the diagnoses of a kind are mixed
        possible = is_malignant[:, None] == classes.is_malignant
        free = np.stack([classes.is_malignant, ~classes.is_malignant], axis=1).astype(float)
    temperature, bias = fit_temperature_and_bias(uncalibrated, possible, free)
    temperature, bias = as_written(temperature), tuple(map(as_written, bias.tolist()))
    sensitivity = calibration.target_sensitivity
    threshold, youden = choose_thresholds(uncalibrated, temperature, is_malignant, classes, sensitivity, bias)
    return replace(
        calibration,
        temperature=temperature,
        bias=bias,
        threshold=threshold,
        youden_threshold=youden,
        fitted_on=FittedOn(
            dataset, len(labels), len(np.unique(part.lesions)), len(np.unique(part.lesions[is_malignant]))
        ),
    )


def fit_temperature_and_bias(
    probabilities: np.ndarray, possible: np.ndarray, free: np.ndarray
) -> tuple[float, np.ndarray]:
    """Temperature scaling with bias correction: the largest penalised likelihood of softmax(log p / T + bias).

    Another place has another mix of diagnoses, which multiplies the odds of each by a factor (Saerens et al., Neural
    Computation 14:21, 2002). A temperature knows none: where malignancy is twice as common, no confidence in the
    diagnoses is right, and it takes a bias (Alexandari et al., ICML 2020). Of two classes this is logistic
    recalibration, intercept and slope (Van Calster et al., BMC Medicine 17:230, 2019). benchmarks/README.md has what a
    temperature, one bias of malignancy and one of each diagnosis do.

    The priors are weak, and give it a maximum where a diagnosis has no images or all are right: of 1/T as in
    `fit_temperature`, of each bias the standard normal distribution.

    Args:
        probabilities: as the network gives them, shape (n, classes).
        possible: which classes an image may be of, by its label, bool, shape (n, classes).
        free: the biases are its columns times parameters, shape (classes, k).

    Returns:
        The temperature, and the bias of each class.
    """
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, shift = np.exp(parameters[0]), parameters[1:]
        logits = inverse * logs + free @ shift
        everything = np.logaddexp.reduce(logits, axis=1, keepdims=True)
        own = np.logaddexp.reduce(np.where(possible, logits, -np.inf), axis=1, keepdims=True)
        error = np.exp(logits - everything) - np.where(possible, np.exp(logits - own), 0)
        value = (everything - own).sum() + inverse - parameters[0] + (shift**2).sum() / 2
        gradient = [inverse * (error * logs).sum() + inverse - 1, *(free.T @ error.sum(axis=0) + shift)]
        return value / len(logs), np.array(gradient) / len(logs)

    start = np.zeros(1 + free.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0.0}).x
    return float(np.exp(-found[0])), free @ found[1:]


def assess_rest(
    rest: Predictions,
    calibration: Calibration,
    own: Predictions | None,
    replicates: int,
    confidence: float,
    missing: str,
) -> dict:
    """Metrics and verdict of one calibration on the images that none was fitted on; arguments as for `judge`."""
    statistic, effective = headline(rest, calibration.threshold), effective_lesions_of(rest)
    return {
        "metrics": estimate(statistic, rest.lesions, replicates, confidence, effective),
        "verdict": judge(rest, own, calibration, replicates, confidence, missing),
    }
