"""What evaluation says: the calibration of a model, and the section `test` of metrics/details.json."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stages.classifier.calibration import Calibration, as_written, described
from stages.classifier.temperature import fit_temperature
from stages.config import EvaluationConfig
from stages.dataset.taxonomy import Classes, Diagnosis
from stages.evaluation.calibration import reliability_bins, weighted_calibration, weighted_observed
from stages.evaluation.decisions import choose_thresholds, predictive_values
from stages.evaluation.metrics import compute_metrics, effective_lesions_of, headline
from stages.evaluation.predictions import THRESHOLDS, Predictions, describe_classes, malignant_probability
from stages.evaluation.subgroups import assess_subgroups, not_assessable, subgroup_table
from stages.evaluation.uncertainty import EffectiveLesions, Statistic, count_lesions, estimate
from stages.evaluation.weighted import weighted_decisions, weighted_rates, weighted_sensitivity_at

Estimator = Callable[..., dict]  # `estimate` with its settings: of a statistic and its effective lesions
LEVELS = (0.8, 0.9, 0.95)  # of sensitivity and specificity, at which the other is stated


def fit_calibration(
    probabilities: np.ndarray, labels: np.ndarray, classes: Classes, config: EvaluationConfig
) -> Calibration:
    """Choose the temperature and the thresholds on the validation images.

    Args:
        probabilities: as the network gives them, shape (n, classes).
        labels: numbers of classes, shape (n,).
        classes: what they are of.
        config: whether test-time augmentation was on, and the sensitivity to reach.

    Raises:
        InputError: the images are all benign or all malignant.
        ValueError: these are not probabilities.
    """
    temperature = as_written(fit_temperature(probabilities, labels))
    sensitivity = config.target_sensitivity
    threshold, youden = choose_thresholds(
        probabilities, temperature, classes.is_malignant[labels], classes, sensitivity
    )
    return Calibration(config.test_time_augmentation, temperature, threshold, sensitivity, youden)


def describe_evaluation(
    predictions: Predictions,
    uncalibrated: np.ndarray,
    images: pd.DataFrame,
    taxonomy: Mapping[str, Diagnosis],
    calibration: Calibration,
    config: EvaluationConfig,
    **others: Any,
) -> dict:
    """The content of metrics/details.json: the section `test`, and others, of which the usual ones may be None.

    Arguments as for `assess`, and the diagnoses of the dataset.
    """
    return {
        **describe_classes(predictions.classes, taxonomy),
        "confidence": config.confidence,
        "bootstrap_replicates": config.bootstrap_replicates,
        "calibration": described(calibration),
        "test": assess(predictions, uncalibrated, images, calibration, config),
        **dict.fromkeys(("val", "baselines", "leakage")),
        **others,
    }


def assess(
    predictions: Predictions,
    uncalibrated: np.ndarray,
    images: pd.DataFrame,
    calibration: Calibration,
    config: EvaluationConfig,
) -> dict:
    """Assess the predictions of a test set, every number with its interval; docs/details.schema.json describes all.

    Args:
        predictions: the calibrated predictions of n images.
        uncalibrated: their probabilities before temperature scaling, shape (n, classes).
        images: their rows of the manifest.
        calibration: as it was fixed on the validation images; nothing is fitted here. Of pooled folds, whose thresholds
            the predictions have, what stands for all.
        config: replicates, confidence and prevalences.
    """
    score, is_malignant, labels = predictions.malignant_probability, predictions.is_malignant, predictions.labels
    lesions, classes, decided = predictions.lesions, predictions.classes, predictions.predicted
    total, malignant, _ = count_lesions(lesions, is_malignant)
    settings, of_these = (config.bootstrap_replicates, config.confidence), effective_lesions_of(predictions)

    def estimated(statistic: Statistic, effective: EffectiveLesions = of_these) -> dict:
        return estimate(statistic, lesions, *settings, effective)

    measured = compute_metrics(predictions.probabilities, labels, classes, decided)
    metrics, others = estimated(headline(predictions, calibration.threshold)), {}
    if not predictions.is_most_probable:
        others["decided"] = estimated(lambda weights: weighted_decisions(decided, labels, weights, classes))
    if classes.are_diagnoses:
        two_classes, others["classes"] = predictions.benign_or_malignant, measured["classes"]
        of_two = estimated(headline(two_classes, calibration.threshold), effective_lesions_of(two_classes))
        others["malignancy"] = {"metrics": of_two}
    return {
        "images": len(lesions),
        "lesions": total,
        "malignant_images": int(is_malignant.sum()),
        "malignant_lesions": malignant,
        "metrics": metrics,
        **others,
        "confusion_matrix": measured["confusion_matrix"],
        "operating_points": {
            key: _operating_point(predictions, name, getattr(calibration, name), config.prevalences, estimated)
            for key, name in zip(("target_sensitivity", "youden"), THRESHOLDS)
        },
        **_at_levels(score, is_malignant, estimated),
        "calibration": {
            "before": estimated(lambda weights: weighted_calibration(uncalibrated, labels, weights)),
            "after": {name: metrics[name] for name in ("ece", "brier", "nll")},
            "reliability": {
                "before": _reliability(malignant_probability(uncalibrated, classes), is_malignant, lesions, estimated),
                "after": _reliability(score, is_malignant, lesions, estimated),
            },
        },
        "subgroups": assess_subgroups(predictions, calibration.threshold, subgroup_table(images), *settings),
        "not_assessable": not_assessable(images),
    }


def _operating_point(
    predictions: Predictions, name: str, threshold: float, prevalences: tuple[float, ...], estimated: Estimator
) -> dict:
    called, is_malignant = predictions.called_malignant(threshold, name), predictions.is_malignant

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = weighted_rates(called, is_malignant, np.array([True]), weights)
        expected = predictive_values(rates["sensitivity"], rates["specificity"], np.array(prevalences))
        here = {name: rates[name][:, 0] for name in ("sensitivity", "specificity", "ppv", "npv")}
        return here | dict(zip(("ppv elsewhere", "npv elsewhere"), expected))

    _, positive, negative = count_lesions(predictions.lesions, called)
    of_called, by_name = {"ppv": max(1, positive), "npv": max(1, negative)}, effective_lesions_of(predictions)
    numbers = estimated(statistic, lambda name: of_called.get(name) or by_name(name))
    # Where no replicate has a false positive, or negative, how rare they might be is known from these two only.
    rates = np.array([numbers[name]["interval"] or [np.nan] * 2 for name in ("sensitivity", "specificity")])
    bounds = [
        predictive_values(sensitivity, specificity, np.array(prevalences)) for sensitivity, specificity in rates.T
    ]
    for name, low, high in zip(("ppv elsewhere", "npv elsewhere"), *bounds):
        for number, *interval in zip(numbers[name], low.tolist(), high.tolist()):
            if number["value"] in (0, 1):
                number["interval"] = interval
    elsewhere = zip(prevalences, numbers.pop("ppv elsewhere"), numbers.pop("npv elsewhere"))
    at_prevalence = [{"prevalence": prevalence, "ppv": ppv, "npv": npv} for prevalence, ppv, npv in elsewhere]
    return {"threshold": threshold, **numbers, "at_prevalence": at_prevalence}


def _at_levels(score: np.ndarray, is_malignant: np.ndarray, estimated: Estimator) -> dict:
    numbers = estimated(
        lambda weights: {
            "sensitivity": weighted_sensitivity_at(np.array(LEVELS), score, is_malignant, weights),
            "specificity": weighted_sensitivity_at(np.array(LEVELS), -score, ~is_malignant, weights),
        }
    )
    return {
        f"{name}_at_{other}": [{other: level, name: number} for level, number in zip(LEVELS, numbers[name])]
        for name, other in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
    }


def _reliability(score: np.ndarray, is_malignant: np.ndarray, lesions: np.ndarray, estimated: Estimator) -> list[dict]:
    bins = reliability_bins(score)
    in_bin = np.array([len(np.unique(lesions[bins == number])) for number in range(bins.max() + 1)])
    observed = estimated(lambda weights: {"observed": weighted_observed(bins, is_malignant, weights)}, lambda _: in_bin)
    return [
        {"predicted": float(score[bins == number].mean()), "observed": fraction, "images": int((bins == number).sum())}
        for number, fraction in enumerate(observed["observed"])
    ]
