"""Evaluate: predict the validation and test images; say how good the predictions of the test images are.

Reads `models/`, `data/prepared/` and `data/split.csv`, writes `data/predictions.csv`, `metrics/evaluation.json` and
`metrics/details.json`.
"""

from pathlib import Path

import pandas as pd

from stages.classifier.hardware import set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.config import Config, EvaluationConfig, load_config
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError, run
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.uncertainty import bootstrap_intervals
from stages.files import DETAILS, EVALUATION, MODELS, PREDICTIONS, PREPARED, SPLIT, write_csv, write_json


def evaluate_model(
    config: Config,
    models: Path = MODELS,
    prepared: Path = PREPARED,
    split: Path = SPLIT,
) -> tuple[Predictions, dict]:
    """Predict the validation and test images with the trained model.

    Args:
        config: the parameters.
        models: folder of the trained model.
        prepared: folder of the pixel store.
        split: table of the splits.

    Returns:
        The predictions of both splits, and for each split what `compute_metrics` says of it, with the `intervals` of
        its metrics.

    Raises:
        InputError: a file is missing or does not fit the others.
    """
    device = set_up_device(config.training.cpu_threads)
    network, description = load_model(models)
    store = PixelStore(prepared)
    if store.image_size != description.image_size:
        raise InputError(
            f"{models} is for images of {description.image_size} pixels, {prepared} holds {store.image_size}; "
            "`dvc repro` trains for these"
        )
    tables, details = [], {}
    for name in ("val", "test"):
        images = SplitImages(store, name, split, len(description.classes))
        probabilities = predict_probabilities(network, Batches(images, config.evaluation.batch_size, device))
        labels = [description.classes[number] for number in images.labels]
        tables.append(predictions_table(images.table, name, labels, probabilities))
    predictions = Predictions(pd.concat(tables, ignore_index=True), tuple(description.classes))
    for name in ("val", "test"):
        details[name] = _judge(predictions.of(name), config.evaluation)
    return predictions, {"classes": description.classes, **details}


def _judge(predictions: Predictions, config: EvaluationConfig) -> dict:
    probabilities, labels, lesions = predictions.probabilities, predictions.labels, predictions.table["lesion_id"]
    return compute_metrics(probabilities, labels) | {
        "intervals": bootstrap_intervals(
            probabilities, labels, lesions, config.bootstrap_replicates, config.confidence
        ),
        "images": len(lesions),
        "lesions": int(lesions.nunique()),
    }


def main() -> None:
    predictions, details = evaluate_model(load_config())
    write_csv(PREDICTIONS, predictions.table)
    write_json(DETAILS, details)
    write_json(EVALUATION, details["test"]["metrics"])
    for name, value in details["test"]["metrics"].items():
        interval = details["test"]["intervals"][name]
        print(f"{name}: none" if interval is None else f"{name}: {value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]")


if __name__ == "__main__":
    run(main)
