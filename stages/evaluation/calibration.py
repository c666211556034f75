"""Calibration errors and the bins of a reliability diagram."""

import numpy as np

from stages.files import DECIMALS

CONFIDENCE_BINS = 15  # Guo et al. 2017
RELIABILITY_BINS = 10
SMALLEST = 0.5 * 10.0**-DECIMALS  # what a probability that is written as 0 may have been: half of the last digit
LARGEST_NLL = DECIMALS * np.log(10)  # of an image: its own class has at least the probability of the last digit kept


def negative_log_likelihoods(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """−log of the probability of each image's own class in nats, shape (n,); at most that of the last digit kept."""
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(own, np.exp(-LARGEST_NLL)))


def squared_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The Brier score of each image, shape (n,): of malignancy for two classes, else the sum over the classes.

    Brier, Monthly Weather Review 78:1, 1950; for two classes half of his sum, as is usual.
    """
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    errors = ((probabilities - truth) ** 2).sum(axis=1)
    return errors / 2 if probabilities.shape[1] == 2 else errors


def weighted_calibration(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Calibration errors where every image counts `weights` times.

    `ece`, the expected calibration error, is the sum of the absolute `weighted_gaps`, and comes as these (Naeini et
    al., AAAI 2015; Guo et al., ICML 2017). A perfectly calibrated model has an ECE above 0 on a finite test set.
    `brier`: the mean of `squared_errors`. `nll`: the mean of `negative_log_likelihoods`.

    Args:
        probabilities: shape (n, classes).
        labels: shape (n,).
        weights: shape (replicates, n).

    Returns:
        Arrays of shape (replicates,) by name; the ECE's has the shape (replicates, `CONFIDENCE_BINS`).
    """
    total = weights.sum(axis=1)
    return {
        "ece": weighted_gaps(probabilities, labels, weights),
        "brier": weights @ squared_errors(probabilities, labels) / total,
        "nll": weights @ negative_log_likelihoods(probabilities, labels) / total,
    }


def weighted_gaps(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Confidence less accuracy in `CONFIDENCE_BINS` bins of equal width, times the share of the images in the bin.

    The confidence is that of the most probable class. Arguments as for `weighted_calibration`.

    Returns:
        Shape (replicates, `CONFIDENCE_BINS`).
    """
    confidence = probabilities.max(axis=1)
    surplus = confidence - (probabilities.argmax(axis=1) == labels)
    # Bins are open below and closed above, as in the paper.
    bins = np.clip(np.ceil(confidence * CONFIDENCE_BINS).astype(int) - 1, 0, CONFIDENCE_BINS - 1)
    in_bin = bins[:, None] == np.arange(CONFIDENCE_BINS)
    return weights @ (in_bin * surplus[:, None]) / weights.sum(axis=1, keepdims=True)


def reliability_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each image, shape (n,): at most `RELIABILITY_BINS` of as many images each, equal scores together."""
    edges = np.unique(np.quantile(score, np.linspace(0, 1, RELIABILITY_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, score, side="left")
    return np.unique(bins, return_inverse=True)[1]


def weighted_observed(bins: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The fraction of positives in each bin, shape (replicates, bins).

    Args:
        bins: of each image, from 0 without a gap, shape (n,).
        is_positive: bool, shape (n,).
        weights: shape (replicates, n).
    """
    in_bin = (bins[:, None] == np.arange(bins.max() + 1)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ (in_bin * is_positive[:, None])) / (weights @ in_bin)
