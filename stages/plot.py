"""Plot: draw what training and evaluation found, as tables for `dvc plots` and as pictures.

Reads `data/predictions.csv`, `data/prepared/` and `metrics/training/`, writes `plots/`.
"""

import pandas as pd

from stages.dataset.pixels import PixelStore
from stages.errors import run
from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.history import read_history
from stages.evaluation.predictions import Predictions, read_predictions
from stages.figures.performance import draw_confusion_matrix, draw_precision_recall, draw_roc
from stages.figures.samples import draw_samples
from stages.figures.style import save
from stages.figures.training import draw_training_curves
from stages.files import PICTURES, PLOTS, PREDICTIONS, PREPARED, TRAINING_METRICS, replacing, write_csv


def confusion_table(predictions: Predictions) -> pd.DataFrame:
    """One row an image: columns actual and predicted, which DVC's confusion template counts."""
    predicted = [predictions.classes[number] for number in predictions.predicted]
    return pd.DataFrame({"actual": predictions.table["label"], "predicted": predicted})


def main() -> None:
    test = read_predictions(PREDICTIONS).of("test")
    history = read_history(TRAINING_METRICS)
    store = PixelStore(PREPARED)

    write_csv(PLOTS / "roc.csv", roc_table(test.is_malignant, test.malignant_probability))
    write_csv(PLOTS / "precision_recall.csv", precision_recall_table(test.is_malignant, test.malignant_probability))
    write_csv(PLOTS / "confusion_matrix.csv", confusion_table(test))
    write_csv(PLOTS / "training.csv", history)

    pictures = {
        "roc": draw_roc(test),
        "precision_recall": draw_precision_recall(test),
        "confusion_matrix": draw_confusion_matrix(test),
        "training_curves": draw_training_curves(history),
        "sample_predictions": draw_samples(test, store),
    }
    with replacing(PICTURES) as folder:
        folder.mkdir()
        for name, figure in pictures.items():
            save(figure, folder / f"{name}.png")
    print(f"drew {len(pictures)} pictures in {PICTURES}")


if __name__ == "__main__":
    run(main)
