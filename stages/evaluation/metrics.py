"""How good predictions are: the metrics of a set of images, and the headline that a pull request shows."""

import numpy as np

from stages.dataset.taxonomy import Classes
from stages.evaluation.calibration import weighted_calibration
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import EffectiveLesions, Statistic, combine, count_lesions, effective_lesions
from stages.evaluation.weighted import (
    CLASS_METRICS,
    DECIDED,
    is_mean_over_classes,
    unit_weights,
    weighted_decisions,
    weighted_metrics,
    weighted_rates_of,
)

_IN_HEADLINE = ("accuracy", "balanced_accuracy")  # of decisions


def compute_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Classes, decided: np.ndarray | None = None
) -> dict:
    """The metrics of a set of predictions, as `weighted_metrics` defines them; None where a number does not exist.

    Means over classes leave those without a number out. Average precision is the step-wise sum (Davis & Goadrich, ICML
    2006), not the trapezoid.

    Args:
        probabilities: shape (n, classes), in [0, 1], rows that sum to 1.
        labels: numbers of classes, shape (n,).
        classes: what they are of.
        decided: numbers of the classes that were decided for, shape (n,); None: the most probable ones.

    Returns:
        `metrics`: name to number; `classes`: the metrics of each class by its name, for diagnoses;
        `confusion_matrix`: counts, a row for each true class and a column for each that was decided for. The first is
        of the most probable classes, the others of the decisions.
    """
    chosen = probabilities.argmax(axis=1) if decided is None else decided
    names, drawn = classes.names, weighted_metrics(probabilities, labels, unit_weights(labels), classes)
    values = {name: of[0] for name, of in drawn.items()}
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (labels, chosen), 1)
    result = {
        "metrics": {name: _number(combine(name, value)) for name, value in values.items()},
        "confusion_matrix": matrix.tolist(),
    }
    if not classes.are_diagnoses:
        return result
    values |= {name: of[0] for name, of in weighted_decisions(chosen, labels, unit_weights(labels), classes).items()}
    return result | {
        "classes": {
            name: {metric: _number(values[f"macro_{metric}"][number]) for metric in CLASS_METRICS}
            for number, name in enumerate(names)
        }
    }


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def headline(predictions: Predictions, threshold: float, by_cost: bool = False) -> Statistic:
    """The few numbers of metrics/evaluation.json: metrics, those at the decision threshold, and calibration errors.

    Args:
        predictions: of n images.
        threshold: of the probability of malignancy.
        by_cost: whether to add those of the decision for the class of the lowest expected cost.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    called, is_malignant = predictions.called_malignant(threshold), predictions.is_malignant

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = weighted_rates_of(called, is_malignant, weights)
        cheapest = weighted_decisions(predictions.predicted, labels, weights, predictions.classes) if by_cost else {}
        return {
            **weighted_metrics(probabilities, labels, weights, predictions.classes),
            "sensitivity_at_threshold": rates["sensitivity"],
            "specificity_at_threshold": rates["specificity"],
            **weighted_calibration(probabilities, labels, weights),
            **{DECIDED + name: cheapest[name] for name in _IN_HEADLINE if cheapest},
        }

    return statistic


def headline_numbers(test: dict) -> dict[str, dict]:
    """The numbers of metrics/evaluation.json with their intervals, at most 15.

    Where the decision is not for the most probable class, its own are among them, and not `macro_sensitivity`, which is
    another name of `balanced_accuracy`.

    Args:
        test: that section of metrics/details.json.
    """
    if "decided" not in test:
        return test["metrics"]
    others = {name: number for name, number in test["metrics"].items() if name != "macro_sensitivity"}
    return others | {DECIDED + name: test["decided"][name] for name in _IN_HEADLINE}


def of_malignancy(test: dict) -> dict[str, dict]:
    """The headline read as that of a model of benign and malignant, from that section of metrics/details.json."""
    return test.get("malignancy", test)["metrics"]


def effective_lesions_of(predictions: Predictions) -> EffectiveLesions:
    """From a metric's name to `effective_lesions`; of a mean over classes, those of each class, shape (classes,)."""
    of_malignancy = count_lesions(predictions.lesions, predictions.is_malignant)
    is_class = predictions.labels[:, None] == np.arange(len(predictions.classes.names))
    of_classes = np.transpose([count_lesions(predictions.lesions, members) for members in is_class.T])
    return lambda metric: effective_lesions(metric, *(of_classes if is_mean_over_classes(metric) else of_malignancy))
