"""The headline metrics: the few numbers that metrics/evaluation.json holds and a pull request shows."""

import numpy as np

from stages.evaluation.calibration import weighted_calibration
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import Statistic
from stages.evaluation.weighted import weighted_metrics, weighted_rates


def headline(predictions: Predictions, threshold: float) -> Statistic:
    """The headline metrics: those of `compute_metrics`, those at the decision threshold, and the calibration errors."""
    probabilities, labels = predictions.probabilities, predictions.labels
    score, is_malignant = predictions.malignant_probability, predictions.is_malignant

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        decided = weighted_rates(score, is_malignant, np.array([threshold]), weights)
        return {
            **weighted_metrics(probabilities, labels, weights),
            "sensitivity_at_threshold": decided["sensitivity"][:, 0],
            "specificity_at_threshold": decided["specificity"][:, 0],
            **weighted_calibration(probabilities, labels, weights),
        }

    return statistic
