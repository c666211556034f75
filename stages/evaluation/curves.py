"""Curves over all thresholds with their confidence bands, for tables and pictures."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from stages.evaluation.decisions import net_benefit
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import SHARE, Statistic, count_lesions, effective_lesions, measure, score_interval
from stages.evaluation.weighted import unit_weights, weighted_rates, weighted_sensitivity_at, weighted_steps

DECISION_THRESHOLDS = np.linspace(0.01, 0.8, 80)  # nobody waits for more than 80 % before a biopsy
THRESHOLDS = np.linspace(0, 1, 101)
_GRID = np.linspace(0, 1, 101)  # of specificities and sensitivities, at which bands are computed


def roc_table(is_positive: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """The ROC curve: columns fpr (1 − specificity), tpr (sensitivity) and threshold, one row per corner.

    Args:
        is_positive: bool, shape (n,).
        score: shape (n,), higher for positives.

    Returns:
        No rows where all images are of one kind: there is no curve then.
    """
    if len(np.unique(is_positive)) < 2:
        return pd.DataFrame({"fpr": [], "tpr": [], "threshold": []}, dtype=float)
    true, false, threshold = _positives(is_positive, score)
    corner = np.ones(len(true), bool)
    corner[1:-1] = (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0)  # between others like it, a point adds nothing
    fpr, tpr = (np.r_[0, part[corner]] / part[-1] for part in (false, true))
    # At the first threshold no image is positive; 1 says so and fits an axis.
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": np.r_[1, threshold[corner]]})


def precision_recall_table(is_positive: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """The precision–recall curve: columns recall (sensitivity) and precision, one row per threshold, recall rising.

    Args:
        is_positive: bool, shape (n,).
        score: shape (n,), higher for positives.

    Returns:
        No rows where no image is positive.
    """
    if not is_positive.any():
        return pd.DataFrame({"recall": [], "precision": []}, dtype=float)
    true, false, _ = _positives(is_positive, score)
    end = np.ones(len(true), bool)
    end[1:-1] = (np.diff(true[:-1]) != 0) | (np.diff(true[1:]) != 0)  # of a vertical line
    true, false = true[end], false[end]
    return pd.DataFrame({"recall": np.r_[0, true / true[-1]], "precision": np.r_[1, true / (true + false)]})


def _positives(is_positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at each score as the threshold, and these, falling; each of shape (steps,)."""
    true, false = (np.cumsum(steps) for steps in weighted_steps(score, is_positive, unit_weights(score)))
    return true, false, -np.unique(-score)


def roc_with_band(test: Predictions, replicates: int, confidence: float) -> pd.DataFrame:
    """`roc_table` of malignancy with columns lower and upper: the band of the sensitivity at each fpr.

    Pointwise, not simultaneous: at each specificity the interval holds, not everywhere at once.

    Args:
        test: predictions of n images.
        replicates: of the bootstrap over lesions.
        confidence: as 0.95.
    """
    curve, score = roc_table(test.is_malignant, test.malignant_probability), test.malignant_probability

    def sensitivity(weights: np.ndarray) -> np.ndarray:
        return weighted_sensitivity_at(1 - _GRID, score, test.is_malignant, weights)

    curve = _with_band(curve, "fpr", sensitivity, "sensitivity", test, replicates, confidence)
    # At the end all images are called malignant, which chance does not change.
    return curve.assign(lower=np.r_[curve["lower"][:-1], curve["tpr"][-1:]])


def precision_recall_with_band(test: Predictions, replicates: int, confidence: float) -> pd.DataFrame:
    """`precision_recall_table` of malignancy with columns lower and upper: the band of the precision at each recall.

    Arguments and meaning as for `roc_with_band`.
    """
    curve = precision_recall_table(test.is_malignant, test.malignant_probability)

    def precision(weights: np.ndarray) -> np.ndarray:
        heights = np.full((len(weights), len(_GRID)), np.nan)
        steps = weighted_steps(test.malignant_probability, test.is_malignant, weights)
        for height, positives, negatives in zip(heights, *steps):
            if positives.any() and negatives.any():
                true_positives, predicted_positive = np.cumsum(positives), np.cumsum(positives + negatives)
                # The first step with that many of the positives, and at least one image; weights are counts, so
                # anything less than 1e-6 is a rounding error.
                wanted = np.maximum(_GRID * true_positives[-1], 1) - 1e-6
                reached = np.searchsorted(true_positives, wanted, side="left")
                height[:] = true_positives[reached] / predicted_positive[reached]
        return heights

    return _with_band(curve, "recall", precision, "precision", test, replicates, confidence)


def _with_band(
    curve: pd.DataFrame,
    axis: str,
    heights: Callable,
    metric: str,
    test: Predictions,
    replicates: int,
    confidence: float,
) -> pd.DataFrame:
    """A curve with the intervals of its height, which is the metric: of weights, at `_GRID` of the horizontal axis."""
    if not len(curve):
        return curve.assign(lower=0.0, upper=0.0)
    _, *band = _intervals(lambda weights: {"height": heights(weights)}, test, metric, replicates, confidence)["height"]
    lower, upper = (np.interp(curve[axis], _GRID, edge) for edge in band)
    return curve.assign(lower=lower, upper=upper)


def _intervals(
    statistic: Statistic,
    test: Predictions,
    metric: str,
    replicates: int,
    confidence: float,
    bounds: tuple[float | np.ndarray, float] = SHARE,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Value, lower and upper bound of k numbers by name, each of shape (k,) and on as many lesions as the metric."""
    effective = effective_lesions(metric, *count_lesions(test.lesions, test.is_malignant))
    values, drawn = measure(statistic, test.lesions, replicates)
    return {
        name: (value, *score_interval(value, drawn[name], confidence, effective, bounds))
        for name, value in values.items()
    }


def decision_curve_table(test: Predictions, replicates: int, confidence: float) -> pd.DataFrame:
    """Net benefit over `DECISION_THRESHOLDS` of deciding by the model, of treating all and of treating none.

    Returns:
        Columns threshold, model, lower, upper (the interval of `model`), treat_all and treat_none; true positives
        per image.
    """
    is_malignant, score = test.is_malignant, test.malignant_probability

    def benefit(ranked: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rates = weighted_rates(ranked, is_malignant, DECISION_THRESHOLDS, weights)
        total = weights.sum(axis=1, keepdims=True)
        return net_benefit(rates["true_positives"], rates["false_positives"], total, DECISION_THRESHOLDS)

    # An image counts 1 if it is a true positive, and the rate of exchange less than 0 if it is a false one.
    bounds = (-DECISION_THRESHOLDS / (1 - DECISION_THRESHOLDS), 1.0)
    model = _intervals(
        lambda weights: {"model": benefit(score, weights)}, test, "accuracy", replicates, confidence, bounds
    )["model"]
    return pd.DataFrame(
        {
            "threshold": DECISION_THRESHOLDS,
            **dict(zip(("model", "lower", "upper"), model)),
            "treat_all": benefit(np.ones_like(score), unit_weights(score))[0],
            "treat_none": 0.0,
        }
    )


def threshold_table(test: Predictions, replicates: int, confidence: float) -> pd.DataFrame:
    """Sensitivity and specificity of every threshold in `THRESHOLDS`.

    Returns:
        Columns threshold, sensitivity, sensitivity_lower, sensitivity_upper, specificity, specificity_lower and
        specificity_upper.
    """

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = weighted_rates(test.malignant_probability, test.is_malignant, THRESHOLDS, weights)
        return {name: rates[name] for name in ("sensitivity", "specificity")}

    columns = {"threshold": THRESHOLDS}
    for name in ("sensitivity", "specificity"):
        value, lower, upper = _intervals(statistic, test, name, replicates, confidence)[name]
        columns |= {name: value, f"{name}_lower": lower, f"{name}_upper": upper}
    return pd.DataFrame(columns)
