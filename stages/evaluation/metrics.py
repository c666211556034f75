"""How good predictions are: the metrics of a set of images, and the headline that a pull request shows."""

import numpy as np

from stages.dataset.taxonomy import Classes
from stages.evaluation.calibration import weighted_calibration
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import (
    EffectiveLesions,
    Statistic,
    combine,
    count_lesions,
    effective_lesions,
    unit_weights,
)
from stages.evaluation.weighted import CLASS_METRICS, is_mean_over_classes, weighted_metrics, weighted_rates


def compute_metrics(probabilities: np.ndarray, labels: np.ndarray, classes: Classes) -> dict:
    """The metrics of a set of predictions, as `weighted_metrics` defines them; None where a number does not exist.

    Means over classes leave those without a number out. Average precision is the step-wise sum (Davis & Goadrich, ICML
    2006), not the trapezoid.

    Args:
        probabilities: shape (n, classes), in [0, 1], rows that sum to 1.
        labels: numbers of classes, shape (n,).
        classes: what they are of.

    Returns:
        `metrics`: name to number; `classes`: the metrics of each class by its name, for diagnoses;
        `confusion_matrix`: counts, a row for each true class and a column for each predicted one.

    Raises:
        ValueError: no images, or numbers that are not probabilities.
    """
    # A NaN fails every comparison, so ask for what is right rather than for what is wrong.
    if not (len(labels) and (probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)):
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
    names, drawn = classes.names, weighted_metrics(probabilities, labels, unit_weights(labels), classes)
    values = {name: of[0] for name, of in drawn.items()}
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    result = {
        "metrics": {name: _number(combine(name, value)) for name, value in values.items()},
        "confusion_matrix": matrix.tolist(),
    }
    if not classes.are_diagnoses:
        return result
    return result | {
        "classes": {
            name: {metric: _number(values[f"macro_{metric}"][number]) for metric in CLASS_METRICS}
            for number, name in enumerate(names)
        }
    }


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def headline(predictions: Predictions, threshold: float) -> Statistic:
    """The few numbers of metrics/evaluation.json: metrics, those at the decision threshold, and calibration errors."""
    probabilities, labels = predictions.probabilities, predictions.labels
    called, is_malignant = predictions.called_malignant(threshold), predictions.is_malignant

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        decided = weighted_rates(called, is_malignant, np.array([True]), weights)
        return {
            **weighted_metrics(probabilities, labels, weights, predictions.classes),
            "sensitivity_at_threshold": decided["sensitivity"][:, 0],
            "specificity_at_threshold": decided["specificity"][:, 0],
            **weighted_calibration(probabilities, labels, weights),
        }

    return statistic


def effective_lesions_of(predictions: Predictions) -> EffectiveLesions:
    """From a metric's name to `effective_lesions`; of a mean over classes, those of each class, shape (classes,)."""
    of_malignancy = count_lesions(predictions.lesions, predictions.is_malignant)
    is_class = predictions.labels[:, None] == np.arange(len(predictions.classes.names))
    of_classes = np.transpose([count_lesions(predictions.lesions, members) for members in is_class.T])
    return lambda metric: effective_lesions(metric, *(of_classes if is_mean_over_classes(metric) else of_malignancy))
