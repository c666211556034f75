"""Evaluate: predict the validation and test images, calibrate on the former, and judge the latter.

Reads `models/`, `data/prepared/`, `data/split.csv` and `metrics/split.json`, writes `data/predictions.csv`,
`data/gradcam/`, `models/calibration.json`, `metrics/evaluation.json` and `metrics/details.json`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from stages.classifier.calibration import Calibration, apply_temperature, save_calibration
from stages.classifier.gradcam import gradcam_heatmaps
from stages.classifier.hardware import set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.classifier.weights import load_model
from stages.config import Config, load_config
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.baselines import judge_baselines
from stages.evaluation.cases import choose_cases, write_cases
from stages.evaluation.judgement import fit_calibration, judge
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, predictions_table
from stages.files import (
    DETAILS,
    EVALUATION,
    GRADCAM,
    MODELS,
    PREDICTIONS,
    PREPARED,
    SPLIT,
    SPLIT_METRICS,
    read_json,
    write_csv,
    write_json,
)
from stages.launch import run_stage


class Evaluation(NamedTuple):
    """What `evaluate_model` gives.

    Attributes:
        predictions: calibrated, of the validation and test images.
        calibration: what was fitted on the validation images.
        details: the content of metrics/details.json, which docs/details.schema.json describes.
    """

    predictions: Predictions
    calibration: Calibration
    details: dict


def evaluate_model(
    config: Config,
    models: Path = MODELS,
    prepared: Path = PREPARED,
    split: Path = SPLIT,
) -> Evaluation:
    """Predict the validation and test images with the trained model, calibrate on the former and judge the latter.

    Args:
        config: the parameters.
        models: folder of the trained model.
        prepared: folder of the pixel store.
        split: table of the splits.

    Raises:
        InputError: a file is missing or does not fit the others.
    """
    device = set_up_device(config.runtime.cpu_threads)
    network, description = load_model(models)
    store = PixelStore(prepared)
    if store.image_size != description.image_size:
        raise InputError(
            f"{models} is for images of {description.image_size} pixels, {prepared} holds {store.image_size}; "
            "`dvc repro` trains for these"
        )
    settings, classes = config.evaluation, tuple(description.classes)

    def predict(part: NormalizedNetwork | Ensemble, images: SplitImages) -> np.ndarray:
        batches = (batch.images for batch in Batches(images, settings.batch_size, device))
        return predict_probabilities(part, batches, device, settings.test_time_augmentation)

    train, test = (SplitImages(store, name, split, len(classes)) for name in ("train", "test"))
    # Images that validate one network of an ensemble over folds have trained the others.
    judges = zip(network.members, description.validation_folds) if description.validation_folds else [(network, None)]
    val = [(part, SplitImages(store, "val", split, len(classes), fold)) for part, fold in judges]
    raw_val = np.concatenate([predict(part, images) for part, images in val])
    raw_test = predict(network, test)
    val_labels = np.concatenate([images.labels for _, images in val])
    calibration = fit_calibration(raw_val, val_labels, settings)
    val_table = pd.concat([images.table for _, images in val], ignore_index=True)
    tables = [
        predictions_table(
            table, name, [classes[number] for number in labels], apply_temperature(raw, calibration.temperature)
        )
        for name, table, labels, raw in (
            ("val", val_table, val_labels, raw_val),
            ("test", test.table, test.labels, raw_test),
        )
    ]
    predictions = Predictions(pd.concat(tables, ignore_index=True), classes)
    judged = predictions.of("test")
    details = {
        "classes": list(classes),
        "confidence": settings.confidence,
        "bootstrap_replicates": settings.bootstrap_replicates,
        "calibration": asdict(calibration),
        "val": _summary(predictions.of("val")),
        "test": judge(judged, raw_test, test.table, calibration, settings),
        "baselines": judge_baselines(
            judged, test.table, train.table, settings.bootstrap_replicates, settings.confidence
        ),
    }
    return Evaluation(predictions, calibration, details)


def _summary(predictions: Predictions) -> dict:
    measured = compute_metrics(predictions.probabilities, predictions.labels)
    return {
        "images": len(predictions.table),
        "lesions": int(predictions.table["lesion_id"].nunique()),
        "metrics": measured["metrics"],
        "confusion_matrix": measured["confusion_matrix"],
    }


def explain_model(
    config: Config, test: Predictions, threshold: float, models: Path = MODELS, prepared: Path = PREPARED
) -> tuple[pd.DataFrame, np.ndarray]:
    """Grad-CAM heatmaps of the test images that `choose_cases` picks, `evaluation.gradcam_cases` of each kind.

    Returns:
        The cases, and their heatmaps, uint8 of shape (cases, size, size); neither has a row where the network has no
        feature maps.
    """
    device = set_up_device(config.runtime.cpu_threads)
    network, _ = load_model(models)
    store = PixelStore(prepared)
    cases = choose_cases(test, threshold, config.evaluation.gradcam_cases)
    pixels = store.read(store.indices_of(cases["image_id"]))
    if not len(cases):
        return cases, pixels[..., 0]
    heatmaps = gradcam_heatmaps(network, torch.from_numpy(pixels), test.classes, device, config.evaluation.batch_size)
    return (cases[:0], pixels[:0, ..., 0]) if heatmaps is None else (cases, heatmaps)


def main() -> None:
    config = load_config()
    predictions, calibration, details = evaluate_model(config)
    details["leakage"] = read_leakage(SPLIT_METRICS)
    cases, heatmaps = explain_model(config, predictions.of("test"), calibration.threshold)
    write_csv(PREDICTIONS, predictions.table)
    write_cases(GRADCAM, cases, heatmaps)
    save_calibration(calibration)
    write_json(DETAILS, details)
    write_json(EVALUATION, values(details["test"]["metrics"]))
    print_metrics(details["test"]["metrics"])


def read_leakage(path: Path) -> dict:
    """Read what `split` found to be shared by its splits.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("leakage"), dict):
        raise InputError(f"{path} does not say what leaks between the splits; `dvc repro` makes it again")
    return content["leakage"]


def values(metrics: dict[str, dict]) -> dict[str, float | None]:
    """The numbers without their intervals."""
    return {name: number["value"] for name, number in metrics.items()}


def print_metrics(metrics: dict[str, dict]) -> None:
    """One line a metric with its interval."""
    for name, number in metrics.items():
        if number["value"] is None:
            print(f"{name}: none")
        else:
            low, high = number["interval"]
            print(f"{name}: {number['value']:.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    run_stage(main, __doc__)
