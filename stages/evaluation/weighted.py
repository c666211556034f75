"""Metrics of many weightings of the images at once: what the bootstrap draws replicates of.

Everywhere `weights` is how often each image counts, at least 0, shape (replicates, n), and a result has the shape
(replicates,), or (replicates, k) for k thresholds or bins, with NaN where a replicate has no such number.
"""

from collections.abc import Sized

import numpy as np

from stages.dataset.taxonomy import Classes
from stages.evaluation.predictions import malignant_probability

DECISION_METRICS = ("sensitivity", "specificity", "precision", "f1")  # of one class against the rest
CLASS_METRICS = (*DECISION_METRICS, "auroc", "auprc")
DECIDED = "decided_"  # before the name of a metric: by the lowest expected cost, not by the most probable class


def unit_weights(images: Sized) -> np.ndarray:
    """Every image once, shape (1, n): the weights of the test set itself."""
    return np.ones((1, len(images)))


def weighted_metrics(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: Classes
) -> dict[str, np.ndarray]:
    """The metrics of predictions, each image decided for its most probable class, where it counts `weights` times.

    For two classes `CLASS_METRICS` are those of malignancy. Else those of each diagnosis against the rest have the
    prefix `macro_`, and `malignant_auroc` is that of the summed probability of the malignant diagnoses. Where
    nothing is predicted malignant there is no precision; of diagnoses, one that is never predicted has the
    precision 0. A class without images has no metrics of its own; specificity, AUROC and AUPRC need images outside the
    class as well.

    Args:
        probabilities: shape (n, classes).
        labels: shape (n,).
        weights: at least 0, shape (replicates, n).
        classes: what they are of.

    Returns:
        An array of shape (replicates,) by the metric's name, but the unweighted means over classes, which
        `is_mean_over_classes` tells: they come as what they are means of, shape (replicates, classes).
    """
    decided = weighted_decisions(probabilities.argmax(axis=1), labels, weights, classes)
    # Of two classes only malignancy is reported, and ranking is most of the work.
    asked = range(len(classes.names)) if classes.are_diagnoses else [1]
    areas = [weighted_areas(probabilities[:, number], labels == number, weights) for number in asked]
    if not classes.are_diagnoses:
        return decided | dict(zip(("auroc", "auprc"), areas[0]))
    auroc, auprc = (np.stack(columns, axis=1) for columns in zip(*areas))
    score = malignant_probability(probabilities, classes)
    malignant_auroc, _ = weighted_areas(score, classes.is_malignant[labels], weights)
    return decided | {"malignant_auroc": malignant_auroc, "macro_auroc": auroc, "macro_auprc": auprc}


def weighted_decisions(
    decided: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: Classes
) -> dict[str, np.ndarray]:
    """The metrics of `weighted_metrics` that depend on decisions alone.

    Args:
        decided: the class that was decided for, shape (n,).
        labels: shape (n,).
        weights: at least 0, shape (replicates, n).
        classes: what they are of.
    """
    is_class, is_decided = (numbers[:, None] == np.arange(len(classes.names)) for numbers in (labels, decided))
    positive, predicted_positive, true_positive = (
        weights @ part.astype(np.float64) for part in (is_class, is_decided, is_class & is_decided)
    )
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # a class without images: NaN, as documented
        accuracy = true_positive.sum(axis=1) / total[:, 0]
        sensitivity = true_positive / positive
        specificity = (total - positive - predicted_positive + true_positive) / (total - positive)
        precision = true_positive / predicted_positive
        f1 = 2 * true_positive / (positive + predicted_positive)
    if classes.are_diagnoses:  # else a mean over the diagnoses would gain from one that is never predicted
        precision[predicted_positive == 0] = 0
    specificity, precision, f1 = (np.where(positive > 0, of, np.nan) for of in (specificity, precision, f1))
    per_class = dict(zip(DECISION_METRICS, (sensitivity, specificity, precision, f1)))
    shared = {"accuracy": accuracy, "balanced_accuracy": sensitivity}
    if not classes.are_diagnoses:
        return shared | {name: of_classes[:, 1] for name, of_classes in per_class.items()}
    return shared | {f"macro_{name}": of_classes for name, of_classes in per_class.items()}


def is_mean_over_classes(metric: str) -> bool:
    """Whether a metric of `weighted_metrics` is the mean of numbers of the classes."""
    return metric.removeprefix(DECIDED).startswith(("balanced_accuracy", "macro_"))


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without the classes that have no value; NaN where none has one."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)


def weighted_steps(score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the positives and of the negatives in each step of a ROC curve, from the highest score down.

    Images of one score make one step.

    Args:
        score: shape (n,), higher for positives.
        is_positive: bool, shape (n,).
        weights: shape (replicates, n).

    Returns:
        Two arrays of shape (replicates, steps).
    """
    order = np.argsort(-score, kind="stable")
    first_of_step = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    ordered = weights[:, order]
    positives, total = (
        np.add.reduceat(part, first_of_step, axis=1) for part in (ordered * is_positive[order], ordered)
    )
    return positives, total - positives


def weighted_areas(score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision; NaN without positives or negatives.

    AUROC is the chance that a positive scores higher than a negative, ties counting half (Hanley & McNeil, Radiology
    143:29, 1982). Average precision is the mean of the precision at each positive. Both are sums over the positives:
    all images are only counted, once. Arguments as for `weighted_steps`.
    """
    order = np.argsort(-score)
    rising = -score[order]
    positives = np.flatnonzero(is_positive[order])
    # Where the step of each positive starts and ends, among all images and among the positives.
    start, end = (np.searchsorted(rising, rising[positives], side) for side in ("left", "right"))
    own_start, own_end = (np.searchsorted(positives, places) for places in (start, end))

    own = np.take(weights.T, order[positives], axis=0)
    total, hits = _cumulated(np.take(weights.T, order, axis=0)), _cumulated(own)
    predicted_positive, true_positives = total[end], hits[own_end]
    false_positives = predicted_positive - true_positives
    false_positives += total[start]
    false_positives -= hits[own_start]  # of this step and of those above it, added up
    positive, negative = hits[-1], total[-1] - hits[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = 1 - np.einsum("ij,ij->j", own, false_positives) / (2 * positive * negative)
        precision = np.divide(
            true_positives, predicted_positive, out=np.zeros_like(true_positives), where=predicted_positive > 0
        )
        auprc = np.einsum("ij,ij->j", own, precision) / positive
    auprc[negative == 0] = np.nan
    return auroc, auprc


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """The sum of the first 0, 1, 2 … rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def weighted_rates(
    score: np.ndarray, is_positive: np.ndarray, thresholds: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What a decision at each threshold gets right: an image is called positive at or above it.

    Args:
        score: shape (n,).
        is_positive: bool, shape (n,).
        thresholds: shape (k,).
        weights: shape (replicates, n).

    Returns:
        `true_positives` and `false_positives` (weights), `sensitivity`, `specificity`, `ppv` and `npv`, each of the
        shape (replicates, k).
    """

    def split_at(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight of `members` below each threshold, and at or above it."""
        order = np.flatnonzero(members)[np.argsort(score[members])]
        sums = _cumulated(np.take(weights.T, order, axis=0))
        below = sums[np.searchsorted(score[order], thresholds)].T
        return below, sums[-1][:, None] - below

    false_negatives, true_positives = split_at(is_positive)
    true_negatives, false_positives = split_at(~is_positive)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "true_positives": true_positives,
            "false_positives": false_positives,
            "sensitivity": true_positives / (true_positives + false_negatives),
            "specificity": true_negatives / (true_negatives + false_positives),
            "ppv": true_positives / (true_positives + false_positives),
            "npv": true_negatives / (true_negatives + false_negatives),
        }


def weighted_rates_of(called: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`weighted_rates` of one decision, `called`, bool of shape (n,): each of shape (replicates,)."""
    rates = weighted_rates(called, is_positive, np.array([True]), weights)
    return {name: of_one[:, 0] for name, of_one in rates.items()}


def weighted_sensitivity_at(
    specificities: np.ndarray, score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The highest sensitivity of any threshold whose specificity is at least each of `specificities` (k of them).

    Of observed thresholds only, without interpolation. The reverse, specificity at a sensitivity, is this of `-score`
    and `~is_positive`.
    """
    # Above the highest score nothing is positive.
    true, false = (_cumulated(part.T).T for part in weighted_steps(score, is_positive, weights))
    result = np.empty((len(weights), len(specificities)))
    for row, (true_positives, false_positives) in enumerate(zip(true, false)):
        # Weights are counts: half an image is more than rounding and less than an image.
        allowed = (1 - np.asarray(specificities)) * false_positives[-1] + 1e-6
        reached = true_positives[np.searchsorted(false_positives, allowed, side="right") - 1]
        result[row] = reached / true_positives[-1] if true_positives[-1] and false_positives[-1] else np.nan
    return result
