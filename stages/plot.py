"""Plot: turn the results into tables for `dvc plots`, pictures, a report page and a model card.

Reads `data/predictions.csv`, `data/prepared/`, `data/split.csv`, `data/augmented.npy`, `data/gradcam/`, `models/`,
`data/details.json` and `data/training/`, writes `plots/` and `models/model_card.md`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from stages import files
from stages.classifier.description import read_description
from stages.config import load_config
from stages.dataset.folds import read_split
from stages.dataset.pixels import PixelStore
from stages.errors import regenerate
from stages.evaluation.cases import read_cases
from stages.evaluation.curves import decision_curve_table, precision_recall_with_band, roc_with_band, threshold_table
from stages.evaluation.details import read_details
from stages.evaluation.history import read_history
from stages.evaluation.metrics import headline_numbers
from stages.evaluation.predictions import Predictions, read_predictions
from stages.figures.attention import draw_gradcam
from stages.figures.calibration import draw_reliability, reliability_table
from stages.figures.confusion import draw_confusion_matrix
from stages.figures.decisions import draw_decision_curve, draw_thresholds
from stages.figures.model_card import write_model_card
from stages.figures.performance import draw_precision_recall, draw_roc
from stages.figures.report import describe_run, write_report
from stages.figures.samples import draw_augmentation, draw_mistakes, draw_samples
from stages.figures.style import save_all
from stages.figures.subgroups import draw_subgroups, flat_subgroups
from stages.figures.training import draw_training_curves
from stages.launch import run_stage

MOST_EXAMPLES = 100  # pictures of what augmentation makes


def confusion_table(predictions: Predictions) -> pd.DataFrame:
    """One row per image: columns actual and predicted, which DVC's confusion template counts."""
    predicted = [predictions.classes.names[number] for number in predictions.predicted]
    return pd.DataFrame({"actual": predictions.table["label"], "predicted": predicted})


def draw_tables(predictions: Predictions, details: dict) -> dict[str, pd.DataFrame]:
    """What the pictures show, as tables by the name of their file.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them: confidence, bootstrap_replicates, and test.
    """
    settings = details["bootstrap_replicates"], details["confidence"]
    return {
        "roc": roc_with_band(predictions, *settings),
        "precision_recall": precision_recall_with_band(predictions, *settings),
        "reliability": reliability_table(details),
        "decision_curve": decision_curve_table(predictions, *settings),
        "thresholds": threshold_table(predictions, *settings),
        "confusion_matrix": confusion_table(predictions),
        "subgroups": flat_subgroups(details),
    }


def draw_pictures(
    predictions: Predictions, details: dict, tables: dict[str, pd.DataFrame], store: PixelStore
) -> dict[str, Figure]:
    """The pictures of predictions, by the name of their file.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them: confidence, bootstrap_replicates, calibration and test.
        tables: what `draw_tables` gives.
        store: that holds their pixels.
    """
    return {
        "roc": draw_roc(predictions, details, tables["roc"]),
        "precision_recall": draw_precision_recall(predictions, details, tables["precision_recall"]),
        "reliability": draw_reliability(predictions, details, tables["reliability"]),
        "decision_curve": draw_decision_curve(predictions, details, tables["decision_curve"]),
        "thresholds": draw_thresholds(predictions, details, tables["thresholds"]),
        "confusion_matrix": draw_confusion_matrix(predictions, details),
        "subgroups": draw_subgroups(predictions, details, tables["subgroups"]),
        "sample_predictions": draw_samples(predictions, details, store),
        "mistakes": draw_mistakes(predictions, details, store),
    }


def write_plots(folder: Path, tables: dict[str, pd.DataFrame], pictures: dict[str, Figure]) -> None:
    """Write all tables as CSV files into `folder`/tables, and all pictures as PNG files into `folder`/pictures."""
    with files.replacing(folder / files.TABLES.name) as partial:
        for name, table in tables.items():
            files.write_csv(partial / f"{name}.csv", table)
    with files.replacing(folder / files.PICTURES.name) as partial:
        partial.mkdir()
        save_all(pictures, partial)


def write_results(
    folder: Path,
    predictions: Predictions,
    details: dict,
    store: PixelStore,
    explained: tuple[pd.DataFrame, np.ndarray] | None,
    **page: Any,
) -> None:
    """Write what `evaluate` and `plot` write, of other images than those of the pipeline's test fold.

    Args:
        folder: where to.
        predictions: of the images.
        details: the content of metrics/details.json.
        store: that holds their pixels.
        explained: the images that Grad-CAM explains, and their heatmaps; None: there is no network to explain any.
        page: of the report page, what `write_report` takes.
    """
    files.write_csv(folder / files.PREDICTIONS.name, predictions.table)
    files.write_json(folder / files.DETAILS.name, details)
    metrics = headline_numbers(details["test"])
    files.write_json(folder / files.EVALUATION.name, {name: number["value"] for name, number in metrics.items()})
    tables, plots = draw_tables(predictions, details), folder / files.PLOTS
    pictures = draw_pictures(predictions, details, tables, store)
    if explained is not None:
        pictures["gradcam"] = draw_gradcam(predictions, details, *explained, store)
    write_plots(plots, tables, pictures)
    write_report(plots / files.REPORT.name, details, plots / files.PICTURES.name, store.manifest, **page)


def check_images(test: Predictions, cases: pd.DataFrame, store: PixelStore) -> None:
    """Raise an InputError unless the prepared images are those of the predictions, and these those of the heatmaps."""
    if not test.table["image_id"].isin(store.manifest["image_id"]).all():
        raise regenerate(f"{files.PREDICTIONS} is of images that {files.PREPARED} does not hold")
    if not cases["image_id"].isin(test.table["image_id"]).all():
        raise regenerate(f"{files.GRADCAM} is not of the test images in {files.PREDICTIONS}")


def read_examples(path: Path) -> np.ndarray:
    """Read what `train` made of some images.

    Returns:
        uint8, shape (examples, versions, size, size, 3).

    Raises:
        InputError: the file is missing, or does not hold some pictures.
    """
    examples = files.read_array(path)
    is_images = examples.dtype == np.uint8 and examples.shape[4:] == (3,) and examples.size
    if not is_images or examples.shape[0] * examples.shape[1] > MOST_EXAMPLES:
        raise regenerate(f"{path} holds {examples.dtype} {examples.shape}, no images")
    return examples


def main() -> None:
    config = load_config()
    # NumPy's matrix products, by which replicates are summed, would use one thread per core.
    threadpool_limits(config.runtime.cpu_threads)
    details = read_details(files.DETAILS)
    costs = details["calibration"].get("costs")
    test = read_predictions(files.PREDICTIONS, details.get("taxonomy"), costs).of("test")
    description = asdict(read_description(files.MODEL_DESCRIPTION))
    history = read_history(files.TRAINING_METRICS)
    cases, heatmaps = read_cases(files.GRADCAM)
    store = PixelStore(files.PREPARED)
    split = read_split(files.SPLIT, store.manifest)
    check_images(test, cases, store)

    tables = draw_tables(test, details) | {"training": history}
    pictures = draw_pictures(test, details, tables, store)
    pictures["gradcam"] = draw_gradcam(test, details, cases, heatmaps, store)
    pictures["training_curves"] = draw_training_curves(history, details, description)
    pictures["augmentation"] = draw_augmentation(read_examples(files.AUGMENTED))
    write_plots(files.PLOTS, tables, pictures)
    described = describe_run(description, config, store.manifest)
    write_report(files.REPORT, details, files.PICTURES, store.manifest, described)
    write_model_card(files.MODEL_CARD, details, description, files.MODEL_WEIGHTS, config, store.manifest, split)
    shown = f"{files.REPORT} shows them all, {files.MODEL_CARD} is the model card"
    print(f"drew {len(pictures)} pictures in {files.PICTURES}; {shown}")


if __name__ == "__main__":
    run_stage(main, __doc__)
