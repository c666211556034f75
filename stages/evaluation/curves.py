"""Curves over all thresholds, for tables and pictures."""

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve


def roc_table(is_positive: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """The ROC curve: columns fpr (1 − specificity), tpr (sensitivity) and threshold, one row a corner.

    Args:
        is_positive: bool, shape (n,).
        score: shape (n,), higher for positives.

    Returns:
        No rows where all images are of one kind: there is no curve then.
    """
    if len(np.unique(is_positive)) < 2:
        return pd.DataFrame({"fpr": [], "tpr": [], "threshold": []}, dtype=float)
    fpr, tpr, threshold = roc_curve(is_positive, score)
    # The first threshold is infinite: no image is positive there. 1 says the same and fits an axis.
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": np.minimum(threshold, 1)})


def precision_recall_table(is_positive: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """The precision–recall curve: columns recall (sensitivity) and precision, one row a threshold, recall rising.

    Args:
        is_positive: bool, shape (n,).
        score: shape (n,), higher for positives.

    Returns:
        No rows where no image is positive.
    """
    if not is_positive.any():
        return pd.DataFrame({"recall": [], "precision": []}, dtype=float)
    precision, recall, _ = precision_recall_curve(is_positive, score, drop_intermediate=True)
    return pd.DataFrame({"recall": recall[::-1], "precision": precision[::-1]})
