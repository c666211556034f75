"""Metrics of many weightings of the images at once: what the bootstrap draws replicates of.

Everywhere `weights` is how often each image counts, at least 0, shape (replicates, n), and a result has the shape
(replicates,), or (replicates, k) for k thresholds or bins, with NaN where a replicate has no such number.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from stages.dataset.taxonomy import class_names, malignant_classes
from stages.evaluation.predictions import malignant_probability


def weighted_metrics(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The headline metrics of `compute_metrics` where every image counts `weights` times.

    Args:
        probabilities: shape (n, 2) or (n, 7).
        labels: shape (n,).
        weights: at least 0, shape (replicates, n).

    Returns:
        An array of shape (replicates,) by the metric's name, NaN where a replicate has none.
    """
    classes = class_names(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    is_class = labels[:, None] == np.arange(len(classes))
    is_predicted = predicted[:, None] == np.arange(len(classes))
    true, positive, hit = (
        weights @ part.astype(np.float64) for part in (is_class, is_predicted, is_class & is_predicted)
    )
    total = weights.sum(axis=1, keepdims=True)

    with np.errstate(divide="ignore", invalid="ignore"):  # a class without images: NaN, as documented
        per_class = {
            "sensitivity": hit / true,
            "specificity": (total - true - positive + hit) / (total - true),
            # A class that is never predicted has no precision of its own; like torchmetrics, count it as 0.
            "precision": np.where(positive > 0, hit / positive, 0.0),
            "f1": 2 * hit / (true + positive),
        }
        accuracy = hit.sum(axis=1) / total[:, 0]
    shared = {"accuracy": accuracy, "balanced_accuracy": _mean_over_classes(per_class["sensitivity"])}
    # Of two classes only malignancy is reported, and ranking is most of the work.
    asked = [1] if len(classes) == 2 else list(range(len(classes)))
    per_class = {name: values[:, asked] for name, values in per_class.items()}
    areas = [weighted_areas(probabilities[:, number], is_class[:, number], weights) for number in asked]
    per_class["auroc"], per_class["auprc"] = (np.stack(columns, axis=1) for columns in zip(*areas))
    absent = true[:, asked] == 0
    for values in per_class.values():
        values[absent] = np.nan

    if len(classes) == 2:
        return shared | {name: values[:, 0] for name, values in per_class.items()}
    malignant = np.isin(classes, malignant_classes(len(classes)))
    shared["malignant_auroc"], _ = weighted_areas(malignant_probability(probabilities), malignant[labels], weights)
    return shared | {f"macro_{name}": _mean_over_classes(values) for name, values in per_class.items()}


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


class Steps(NamedTuple):
    """The steps of a ROC curve, from the highest score down; images of one score make one step.

    Attributes:
        positives: weight of the positives of each step, shape (replicates, steps).
        negatives: that of the negatives.
        scores: of each step, shape (steps,), falling.
    """

    positives: np.ndarray
    negatives: np.ndarray
    scores: np.ndarray


def weighted_steps(score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> Steps:
    """The steps of the ROC curve of each replicate.

    Args:
        score: shape (n,), higher for positives.
        is_positive: bool, shape (n,).
        weights: shape (replicates, n).
    """
    order = np.argsort(-score, kind="stable")
    sorted_score = score[order]
    first_of_step = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])
    ordered = weights[:, order]
    everyone = np.add.reduceat(ordered, first_of_step, axis=1)
    positives = np.add.reduceat(ordered * is_positive[order], first_of_step, axis=1)
    return Steps(positives, everyone - positives, sorted_score[first_of_step])


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
    everyone, hits = _counted(np.take(weights.T, order, axis=0)), _counted(own)
    called, found = everyone[end], hits[own_end]
    alarms = called - found
    alarms += everyone[start]
    alarms -= hits[own_start]  # of this step and of those above it, added up
    positive, negative = hits[-1], everyone[-1] - hits[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = 1 - np.einsum("ij,ij->j", own, alarms) / (2 * positive * negative)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        auprc = np.einsum("ij,ij->j", own, precision) / positive
    auprc[negative == 0] = np.nan
    return auroc, auprc


def _counted(weights: np.ndarray) -> np.ndarray:
    """The sum of the first 0, 1, 2 … rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def weighted_rates(
    score: np.ndarray, is_positive: np.ndarray, thresholds: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """What a decision at each threshold gets right: an image is called positive from the threshold on.

    Args:
        score: shape (n,).
        is_positive: bool, shape (n,).
        thresholds: shape (k,).
        weights: shape (replicates, n).

    Returns:
        `true_positives` and `false_positives` (weights), `sensitivity`, `specificity`, `ppv` and `npv`, each of the
        shape (replicates, k).
    """
    rank = np.argsort(np.argsort(thresholds))
    reached = np.searchsorted(np.sort(thresholds), score, side="right")  # how many of the thresholds

    def split_at(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight of `members` below each threshold, and from it on."""
        places = (reached[members], np.flatnonzero(members))
        sums = csr_array((np.ones(len(places[0])), places), (len(thresholds) + 1, len(score))) @ weights.T
        below = sums.cumsum(axis=0)[:-1].T[:, rank]
        return below, sums.sum(axis=0)[:, None] - below

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


def weighted_sensitivity_at(
    specificities: np.ndarray, score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The highest sensitivity of any threshold whose specificity is at least each of `specificities` (k of them).

    Of observed thresholds only, without interpolation. The reverse, specificity at a sensitivity, is this of `-score`
    and `~is_positive`.
    """
    positives, negatives, _ = weighted_steps(score, is_positive, weights)
    start = np.zeros((len(weights), 1))  # above the highest score nothing is positive
    true = np.concatenate([start, positives.cumsum(axis=1)], axis=1)
    false = np.concatenate([start, negatives.cumsum(axis=1)], axis=1)
    result = np.empty((len(weights), len(specificities)))
    for row, (hits, alarms) in enumerate(zip(true, false)):
        # Weights are counts: half an image is more than rounding and less than an image.
        allowed = (1 - np.asarray(specificities)) * alarms[-1] + 1e-6
        reached = hits[np.searchsorted(alarms, allowed, side="right") - 1]
        result[row] = reached / hits[-1] if hits[-1] and alarms[-1] else np.nan
    return result
