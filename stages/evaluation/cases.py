"""Images that are worth looking at: the clearest decisions for malignancy, and the clearest mistakes."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.errors import regenerate
from stages.evaluation.predictions import Predictions
from stages.files import read_array, read_csv, replacing, write_array, write_csv

KINDS = ("true positive", "false negative", "false positive")
CASES = "cases.csv"
HEATMAPS = "heatmaps.npy"


def choose_cases(predictions: Predictions, threshold: float, count: int) -> pd.DataFrame:
    """The clearest images of each kind at a decision threshold, at most one of a lesion in a kind.

    Args:
        predictions: of n images.
        threshold: an image is called malignant at or above this probability of malignancy.
        count: maximum of each kind.

    Returns:
        Columns case and image_id. First true positives, the highest probability first; then false negatives, the lowest
        first; then false positives, the highest first. Images with the same probability keep their order; a kind
        without images has no rows.
    """
    probability, is_malignant = predictions.malignant_probability, predictions.is_malignant
    called = probability >= threshold
    kinds = (
        (is_malignant & called, -probability),
        (is_malignant & ~called, probability),
        (~is_malignant & called, -probability),
    )
    chosen = [_first_of_lesions(predictions, among, rank, count) for among, rank in kinds]
    return pd.DataFrame(
        {
            "case": np.repeat(KINDS, [len(rows) for rows in chosen]),
            "image_id": predictions.table["image_id"].to_numpy()[np.concatenate(chosen)],
        }
    )


def most_confident_mistakes(predictions: Predictions, threshold: float, count: int) -> np.ndarray:
    """The images that are decided for a class that is not theirs, the most confident first, at most one of a lesion.

    Args:
        predictions: of n images.
        threshold: by which benign and malignant are decided.
        count: maximum.

    Returns:
        Rows of `predictions`, shape (at most count,); images of the same confidence keep their order.
    """
    decided = predictions.decided(threshold)
    confidence = predictions.probabilities[np.arange(len(decided)), decided]
    return _first_of_lesions(predictions, decided != predictions.labels, -confidence, count)


def _first_of_lesions(predictions: Predictions, among: np.ndarray, rank: np.ndarray, count: int) -> np.ndarray:
    """The rows of `among` by rising `rank`, the first of each lesion, at most `count`."""
    order = np.argsort(rank, kind="stable")
    rows = order[among[order]]
    return rows[~pd.Index(predictions.lesions[rows]).duplicated()][:count]


def write_cases(folder: Path, cases: pd.DataFrame, heatmaps: np.ndarray) -> None:
    """Write what `choose_cases` gives with the heatmap of each case, uint8 of shape (cases, cells, cells)."""
    with replacing(folder) as partial:
        partial.mkdir()
        write_csv(partial / CASES, cases)
        write_array(partial / HEATMAPS, heatmaps)


def read_cases(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Read what `write_cases` wrote.

    Raises:
        InputError: a file is missing, damaged, or not of the other.
    """
    cases = read_csv(folder / CASES, ["case", "image_id"])
    heatmaps = read_array(folder / HEATMAPS)
    is_of_cases = heatmaps.dtype == np.uint8 and heatmaps.ndim == 3 and len(heatmaps) == len(cases)
    is_of_cases &= heatmaps.shape[1:2] == heatmaps.shape[2:]
    if not is_of_cases or not cases["case"].isin(KINDS).all():
        raise regenerate(f"{folder}: {CASES} and {HEATMAPS} do not hold one uint8 heatmap for each known case")
    return cases, heatmaps
