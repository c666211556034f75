"""How far the metrics of a test set may be from those of its population: a bootstrap over lesions.

Images of one lesion are not independent, so lesions are drawn, not images (cluster bootstrap: Davison & Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). A replicate is a weight for each image, how often its
lesion was drawn, and the metrics of many replicates are computed at once from the weights.
"""

from collections.abc import Iterator

import numpy as np

from stages.dataset.taxonomy import class_names, malignant_classes

SEED = 0  # of the draws; the intervals are results, and results can be produced again
# Weights of so many images are held at once: 64 MB of float64 however large the test set.
_CHUNK = 8_000_000


def bootstrap_intervals(
    probabilities: np.ndarray, labels: np.ndarray, lesions: np.ndarray, replicates: int, confidence: float
) -> dict[str, list[float] | None]:
    """Percentile intervals of every headline metric that `compute_metrics` gives.

    Args:
        probabilities: shape (n, 2) or (n, 7), rows that sum to 1.
        labels: numbers of classes, shape (n,).
        lesions: the lesion of each image, shape (n,).
        replicates: how often as many lesions as there are are drawn, with replacement.
        confidence: the share of the replicates inside an interval, as 0.95.

    Returns:
        Lower and upper bound by the metric's name; None where no replicate has the metric. Replicates in which a metric
        has no value, for want of images of a class, are left out of its interval.
    """
    chunks = [weighted_metrics(probabilities, labels, weights) for weights in _draws(np.asarray(lesions), replicates)]
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    intervals = {}
    for name in chunks[0]:
        values = np.concatenate([chunk[name] for chunk in chunks])
        known = values[np.isfinite(values)]
        intervals[name] = [float(bound) for bound in np.percentile(known, tails)] if len(known) else None
    return intervals


def _draws(lesions: np.ndarray, replicates: int) -> Iterator[np.ndarray]:
    """Weights of the images in each replicate, shape (some replicates, n), until there are `replicates`."""
    random = np.random.default_rng(SEED)
    names, lesion_of = np.unique(lesions, return_inverse=True)
    at_once = max(1, _CHUNK // len(lesions))
    for start in range(0, replicates, at_once):
        # One replicate at a time, so that the draws do not depend on how many fit into memory.
        drawn = [
            np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(start, min(start + at_once, replicates))
        ]
        yield np.array(drawn, np.float64)[:, lesion_of]


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
    areas = [_areas(probabilities[:, number], is_class[:, number], weights) for number in range(len(classes))]
    per_class["auroc"], per_class["auprc"] = (np.stack(columns, axis=1) for columns in zip(*areas))
    absent = true == 0
    for values in per_class.values():
        values[absent] = np.nan

    shared = {"accuracy": accuracy, "balanced_accuracy": _mean_over_classes(per_class["sensitivity"])}
    if len(classes) == 2:
        return shared | {name: values[:, 1] for name, values in per_class.items()}
    malignant = np.isin(classes, malignant_classes(len(classes)))
    shared["malignant_auroc"], _ = _areas(probabilities[:, malignant].sum(axis=1), malignant[labels], weights)
    return shared | {f"macro_{name}": _mean_over_classes(values) for name, values in per_class.items()}


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


def _areas(score: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of each replicate, shape (replicates,); NaN without positives or negatives.

    AUROC is the chance that a positive scores higher than a negative, ties counting half (Hanley & McNeil, Radiology
    143:29, 1982). Images of one score make one step of either curve.
    """
    order = np.argsort(-score, kind="stable")
    sorted_score = score[order]
    first_of_step = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])
    ordered = weights[:, order]
    everyone = np.add.reduceat(ordered, first_of_step, axis=1)
    positives = np.add.reduceat(ordered * is_positive[order], first_of_step, axis=1)
    negatives = everyone - positives
    positive, negative = positives.sum(axis=1), negatives.sum(axis=1)
    lower = negative[:, None] - negatives.cumsum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (positives * (lower + negatives / 2)).sum(axis=1) / (positive * negative)
        # A step that nobody of the replicate is on changes nothing, whatever its precision.
        precision = np.nan_to_num(positives.cumsum(axis=1) / everyone.cumsum(axis=1))
        auprc = (positives * precision).sum(axis=1) / positive
    auprc[negative == 0] = np.nan
    return auroc, auprc
