"""Evaluate: predict the validation and test images, calibrate on the former, and assess the latter.

Reads `models/`, `data/prepared/`, `data/split.csv` and `data/split.json`, writes `data/predictions.csv`,
`data/gradcam/`, `models/calibration.json`, `metrics/evaluation.json` and `data/details.json`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from stages import files
from stages.classifier.calibration import Calibration, apply_temperature, save_calibration
from stages.classifier.gradcam import gradcam_heatmaps
from stages.classifier.hardware import set_up_device
from stages.classifier.inference import extract_features, predict_probabilities
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.classifier.weights import load_model
from stages.config import MOST_PROBABLE, Config, EvaluationConfig, load_config
from stages.dataset.encoding import MetadataEncoding
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import Classes
from stages.errors import InputError, regenerate
from stages.evaluation.assessment import describe_evaluation, fit_calibration
from stages.evaluation.baselines import assess_baselines
from stages.evaluation.cases import choose_cases, write_cases
from stages.evaluation.decisions import decision_costs, read_decision
from stages.evaluation.details import SplitAudit
from stages.evaluation.metrics import compute_metrics, headline_numbers
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.sources import file_properties, tell_sources, trivial_properties
from stages.gpus import lease_gpus
from stages.launch import run_stage
from stages.progress import progress_bar
from stages.reporting import estimate


class Evaluation(NamedTuple):
    """The result of `evaluate_model`.

    Attributes:
        predictions: calibrated, of the validation and test images.
        calibration: what was fitted on the validation images.
        details: the content of metrics/details.json but for what `split` says; docs/details.schema.json describes it.
        cases: test images that are worth looking at.
        heatmaps: Grad-CAM of them.
    """

    predictions: Predictions
    calibration: Calibration
    details: dict
    cases: pd.DataFrame
    heatmaps: np.ndarray


def main() -> None:
    config = load_config()
    leakage, sources = read_audit(files.SPLIT_METRICS)
    lease_gpus(1, wait=False)
    predictions, calibration, details, cases, heatmaps = evaluate_model(config)
    metrics = headline_numbers(details["test"])
    files.write_csv(files.PREDICTIONS, predictions.table)
    write_cases(files.GRADCAM, cases, heatmaps)
    save_calibration(calibration)
    if "sources" in details:
        details["sources"] |= sources
    files.write_json(files.DETAILS, {**details, "leakage": leakage})
    files.write_json(files.EVALUATION, values(metrics))
    print_metrics(metrics)
    if config.evaluation.decision != MOST_PROBABLE and not predictions.classes.are_diagnoses:
        print(
            f"evaluation.decision={config.evaluation.decision} is for models of diagnoses "
            "(model.num_classes=diagnoses): malignant or benign is decided by the threshold alone"
        )
    if told := details.get("sources", {}).get("told"):
        kinds = {"files": "their files", "properties": "trivial properties", "features": "the model's features"}
        numbers = ", ".join(f"{told[name]:.2f} from {kind}" for name, kind in kinds.items())
        print(f"sources told apart (balanced accuracy): {numbers}, {told['chance']:.2f} by chance")


def evaluate_model(
    config: Config, models: Path = files.MODELS, prepared: Path = files.PREPARED, split: Path = files.SPLIT
) -> Evaluation:
    """Predict the validation and test images with the trained model, calibrate on the former and assess the latter.

    Args:
        config: the parameters.
        models: folder of the trained model.
        prepared: folder of the pixel store.
        split: table of the splits.

    Raises:
        InputError: a file is missing or does not fit the others.
    """
    settings, device = config.evaluation, set_up_device(config.runtime.cpu_threads)
    network, description = load_model(models)
    store = PixelStore(prepared)
    if store.image_size != description.image_size:
        raise InputError(
            f"{models} is for images of {description.image_size} pixels, {prepared} holds {store.image_size}; "
            "run `dvc repro` to train for these"
        )
    classes = description.told_apart
    if description.taxonomy != store.taxonomy:
        raise regenerate(f"{models} and {prepared} are not of one taxonomy")
    rule, encoding = read_decision(settings.decision, classes.names), description.metadata
    train, val, test = (
        SplitImages(store, name, split, len(classes.names), encoding=encoding) for name in ("train", "val", "test")
    )
    predicted = [(val, val.metadata), (test, test.metadata), *([] if encoding is None else [(test, None)])]
    with progress_bar() as progress:
        bar = progress.add_task("predicting", total=sum(len(images) for images, _ in predicted))

        def batches(images: SplitImages) -> Iterator[torch.Tensor]:
            for batch in Batches(images, settings.batch_size, device):
                yield batch.images
                progress.advance(bar, len(batch.images))

        raw = [
            predict_probabilities(network, batches(images), device, settings.test_time_augmentation, metadata)
            for images, metadata in predicted
        ]
    calibration = fit_calibration(raw[0], val.labels.numpy(), classes, settings)
    calibrated = [apply_temperature(each, calibration.temperature).round(files.DECIMALS) for each in raw[:2]]
    counts = np.bincount(train.labels.numpy(), minlength=len(classes.names))
    costs = decision_costs(rule, calibrated[0], val.labels.numpy(), counts)
    calibration = replace(calibration, costs=costs.tolist())
    tables = []
    for name, images, probabilities in zip(("val", "test"), (val, test), calibrated):
        labels = [classes.names[number] for number in images.labels]
        tables.append(predictions_table(images.table, name, labels, probabilities, classes))
    predictions = Predictions(pd.concat(tables, ignore_index=True), classes, calibration.costs)
    validated, tested = predictions.of("val"), predictions.of("test")
    measured = compute_metrics(validated.probabilities, validated.labels, classes, validated.predicted)
    count, classed = (settings.bootstrap_replicates, settings.confidence), train.labels.numpy()
    alone = None if encoding is None else apply_temperature(raw[2], calibration.temperature)
    judged = tested, raw[1], test.table, store.taxonomy, calibration, settings
    details = describe_evaluation(
        *judged,
        val={
            "images": len(validated.table),
            "lesions": len(np.unique(validated.lesions)),
            "metrics": measured["metrics"],
            "confusion_matrix": measured["confusion_matrix"],
        },
        baselines=assess_baselines(tested, test.table, train.table, classed, *count, alone),
    )
    if store.sources:
        table = pd.concat([val.table, test.table])
        each = [Batches(images, settings.batch_size, device) for images in (val, test)]
        properties = [trivial_properties(batch.images.cpu().numpy()) for batches in each for batch in batches]
        features = [extract_features(network, (batch.images for batch in batches), device) for batches in each]
        evidence = {
            "files": file_properties(table),
            "properties": np.concatenate(properties),
            "features": np.concatenate(features),
        }
        columns = (table[name].to_numpy(str) for name in ("dataset", "lesion_id"))
        details["sources"] = {"told": tell_sources(evidence, *columns)}
    cases, heatmaps = explain(network, classes, store, tested, calibration.threshold, device, settings, encoding)
    return Evaluation(predictions, calibration, details, cases, heatmaps)


def explain(
    network: NormalizedNetwork | Ensemble,
    classes: Classes,
    store: PixelStore,
    test: Predictions,
    threshold: float,
    device: torch.device,
    settings: EvaluationConfig,
    encoding: MetadataEncoding | None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Grad-CAM heatmaps of the test images that `choose_cases` picks, `evaluation.gradcam_cases` of each kind.

    The network's outputs are of `classes`, which need not be what it was judged for; `encoding` is of its metadata.

    Returns:
        The cases, and their heatmaps, uint8 of shape (cases, cells, cells); neither has a row where the network has no
        feature maps that are fine enough.
    """
    cases = choose_cases(test, threshold, settings.gradcam_cases)
    rows = store.indices_of(pd.Series(cases["image_id"]))
    pixels = store.read(rows)
    if not len(cases):
        return cases, pixels[..., 0]
    metadata = None if encoding is None else encoding.encode(store.manifest.iloc[rows])
    images = torch.from_numpy(pixels)
    heatmaps = gradcam_heatmaps(network, images, classes, device, settings.batch_size, metadata)
    return (cases.head(0), pixels[:0, ..., 0]) if heatmaps is None else (cases, heatmaps)


def read_audit(path: Path) -> tuple[dict, dict]:
    """Read which lesions and images `split` found in more than one split, and what it found of several sources.

    Raises:
        InputError: the file is missing or damaged.
    """
    audit = files.read_json(path, SplitAudit)
    sources = {} if audit.sources is None else audit.sources.model_dump(exclude={"near_duplicates"})
    return audit.leakage.model_dump(mode="json", by_alias=True), sources


def values(metrics: dict[str, dict]) -> dict[str, float | None]:
    """The numbers without their intervals."""
    return {name: number["value"] for name, number in metrics.items()}


def print_metrics(metrics: dict[str, dict]) -> None:
    """One line per metric with its interval."""
    for name, number in metrics.items():
        print(f"{name}: {estimate(number)}")


if __name__ == "__main__":
    run_stage(main, __doc__)
