"""What `evaluate` might have found, for tests of the pages that tell of it."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

from benchmarks.plain import HAM10000, PLAIN, told_apart
from stages.classifier.calibration import described
from stages.evaluation.assessment import assess, fit_calibration
from stages.evaluation.baselines import assess_baselines
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, describe_classes, predictions_table

# The pictures of `plot`.
DRAWN = (
    "roc", "precision_recall", "reliability", "decision_curve", "confusion_matrix", "thresholds", "subgroups",
    "training_curves", "sample_predictions", "mistakes", "gradcam", "augmentation",
)  # fmt: skip
LEAKAGE = {
    "lesions_in_more_than_one_split": 0,
    "known_duplicates_apart": [],
    "near_duplicates": {
        "hash": "phash, 24×24 bits",
        "largest_distance": 120,
        "pairs": [{"image_ids": ["I004", "I999"], "splits": ["test", "train"], "distance": 5}],
    },
}


def decided_by_cost(details: dict) -> dict:
    """`details` of a model of diagnoses, with other numbers for a decision by cost."""
    names = ("accuracy", "balanced_accuracy", "macro_sensitivity", "macro_specificity", "macro_precision", "macro_f1")
    decided = {name: {"value": 0.111 + 0.1 * number, "interval": [0.1, 0.9]} for number, name in enumerate(names)}
    return details | {"test": details["test"] | {"decided": decided}}


def details_of(classes: int, labels: tuple[int, ...] | None = None) -> dict:
    """The content of metrics/details.json for 70 images of 2 or 7 classes, or for images of certain classes."""
    return deepcopy(_details_of(classes, labels or tuple(range(classes)) * (70 // classes)))


@cache
def _details_of(classes: int, labels: tuple[int, ...]) -> dict:
    config = replace(PLAIN.evaluation, bootstrap_replicates=100)
    val, val_images = _predict(classes, tuple(range(classes)) * 10)
    test, images = _predict(classes, labels)
    calibration = fit_calibration(val.probabilities, val.labels, val.classes, config)
    return {
        **describe_classes(test.classes, HAM10000),
        "confidence": config.confidence,
        "bootstrap_replicates": config.bootstrap_replicates,
        "calibration": described(calibration),
        "val": {
            "images": len(val.labels),
            "lesions": len(np.unique(val.lesions)),
            **{
                key: compute_metrics(val.probabilities, val.labels, val.classes)[key]
                for key in ("metrics", "confusion_matrix")
            },
        },
        "test": assess(test, test.probabilities, images, calibration, config),
        "baselines": assess_baselines(
            test, images, val_images, val.labels, config.bootstrap_replicates, config.confidence
        ),
        "leakage": LEAKAGE,
    }


def _predict(classes: int, labels: tuple[int, ...]) -> tuple[Predictions, pd.DataFrame]:
    """Predictions that are more right than wrong, and the rows of the manifest."""
    number, told = np.arange(len(labels)), told_apart(classes)
    names = told.names
    odds = np.exp(np.random.default_rng(0).normal(size=(len(labels), classes)))
    odds[number, labels] *= 3
    ids = pd.DataFrame({"image_id": [f"I{n:03d}" for n in number], "lesion_id": [f"L{n // 2:03d}" for n in number]})
    images = ids.assign(
        dx=[{"benign": "nv", "malignant": "mel"}.get(names[label], names[label]) for label in labels],
        dx_type=np.where(number % 2, "histo", "follow_up"),
        age=np.where(number == 3, np.nan, 20.0 + number % 60),
        sex=np.where(number % 3 == 0, "female", "male"),
        localization="back",
        dataset="unknown",
    )
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    table = predictions_table(ids, "test", [names[label] for label in labels], probabilities, told)
    return Predictions(table, told), images
