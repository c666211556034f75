"""From a probability to a decision: thresholds, predictive values, and whether deciding so does more good than harm."""

import numpy as np

from stages.classifier.calibration import as_written, decide, most_probable_costs
from stages.errors import InputError
from stages.evaluation.uncertainty import unit_weights
from stages.evaluation.weighted import weighted_rates

MOST_PROBABLE, BALANCED = "most_probable", "balanced"
POWERS = np.linspace(0, 1, 21)  # of the shares of the classes


def decision_costs(
    rule: str | np.ndarray, probabilities: np.ndarray, labels: np.ndarray, class_counts: np.ndarray
) -> np.ndarray:
    """The costs that `decide` is to take, with as many digits as `calibration.json` keeps.

    Args:
        rule: `MOST_PROBABLE`, `BALANCED`, or the costs themselves, shape (classes, classes).
        probabilities: of the validation images, calibrated, rounded as they are written, shape (n, classes).
        labels: of the validation images, shape (n,).
        class_counts: training images of each class, shape (classes,).

    Returns:
        Shape (classes, classes).
    """
    if isinstance(rule, str):
        costs = most_probable_costs(len(class_counts))
        if rule == BALANCED:
            costs = _balanced_costs(costs, probabilities, labels, class_counts)
    else:
        costs = rule
    return np.vectorize(as_written)(costs)


def _balanced_costs(
    equal: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, class_counts: np.ndarray
) -> np.ndarray:
    shares = np.maximum(class_counts, 1) / np.maximum(class_counts, 1).sum()
    is_class = (labels[:, None] == np.arange(len(shares))) * 1.0
    present = is_class.any(axis=0)

    def costs(power: float) -> np.ndarray:
        return equal / shares[:, None] ** power

    def balanced_accuracy(power: float) -> float:
        right = decide(probabilities, costs(power)) == labels
        return float(np.mean(right @ is_class[:, present] / is_class[:, present].sum(axis=0)))

    return costs(max(POWERS, key=balanced_accuracy))  # of equal ones the smallest


def threshold_for_sensitivity(score: np.ndarray, is_positive: np.ndarray, sensitivity: float) -> float:
    """The highest score at or above which at least `sensitivity` of the positives lie.

    Args:
        score: shape (n,).
        is_positive: bool, shape (n,).
        sensitivity: above 0, at most 1.

    Raises:
        InputError: there is no positive.
    """
    positives = np.sort(score[is_positive])[::-1]
    if not len(positives):
        raise InputError(
            "the validation images hold no malignant lesion, so no threshold can be chosen; "
            "choose another split.val_fold, or add lesions"
        )
    # 0.9 of 10 images are 9, not the 10 that rounding errors would make of them.
    needed = max(1, int(np.ceil(sensitivity * len(positives) - 1e-9)))
    return float(positives[needed - 1])


def youden_threshold(score: np.ndarray, is_positive: np.ndarray) -> float:
    """The score with the largest sum of sensitivity and specificity (Youden, Cancer 3:32, 1950); of ties the highest.

    Arguments as for `threshold_for_sensitivity`.

    Raises:
        InputError: the images are all of one kind.
    """
    candidates = np.unique(score)[::-1]
    rates = weighted_rates(score, is_positive, candidates, unit_weights(score))
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    if not positives or not negatives:
        raise InputError(
            "the validation images are all benign or all malignant, so no threshold can be chosen; "
            "choose another split.val_fold, or add lesions"
        )
    # The sum times the positives times the negatives, in whole numbers: fractions would break ties by rounding errors.
    index = rates["true_positives"] * negatives - rates["false_positives"] * positives
    return float(candidates[index[0].argmax()])


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV where `prevalence` of the images are malignant, by Bayes' theorem; NaN where no image is called so.

    Arguments of shapes that numpy broadcasts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ppv = sensitivity * prevalence / (sensitivity * prevalence + (1 - specificity) * (1 - prevalence))
        npv = specificity * (1 - prevalence) / (specificity * (1 - prevalence) + (1 - sensitivity) * prevalence)
    return ppv, npv


def net_benefit(
    true_positives: np.ndarray, false_positives: np.ndarray, total: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """True positives per image, less the false ones at the rate of exchange that the threshold stands for.

    Whoever acts at or above a probability of 0.1 weighs one false negative like nine false positives
    (Vickers & Elkin, Medical Decision Making 26:565, 2006).

    Args:
        true_positives: shape (replicates, k).
        false_positives: shape (replicates, k).
        total: images, shape (replicates, 1).
        thresholds: probabilities below 1, shape (k,).
    """
    return (true_positives - false_positives * thresholds / (1 - thresholds)) / total
