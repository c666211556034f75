"""Lesions whose label is doubtful, by what networks say that have not learned it."""

import numpy as np
import pandas as pd

from stages.evaluation.predictions import PREFIX, Predictions


def doubtful_labels(predictions: Predictions) -> pd.DataFrame:
    """The lesions for which a model is confident in another class than their label.

    Confident learning (Northcutt, Jiang & Chuang, Journal of Artificial Intelligence Research 70:1373, 2021): a model
    is confident in a class where its probability reaches the mean of that over the lesions with this label, which
    allows for classes that it is never sure of. Of several such classes the most probable counts. What is listed are
    the cells outside of the diagonal of their confident joint, by the margin between the probability of the label and
    that of the most probable other class, as they rank it.

    Args:
        predictions: of networks that have not trained on the image, for all images; of a lesion its mean counts.

    Returns:
        One row for each lesion and label: lesion_id, label, suggested (the class), margin, image_ids (joined by spaces)
        and one `probability_` column per class; the most doubtful, with the lowest margin, first.
    """
    names = predictions.classes.names
    columns = [PREFIX + name for name in names]
    groups = predictions.table.groupby(["lesion_id", "label"])
    lesions = groups[columns].mean().reset_index()
    lesions["image_ids"] = groups["image_id"].agg(" ".join).to_numpy()
    probabilities = lesions[columns].to_numpy()
    labels = lesions["label"].map(names.index).to_numpy()
    is_label = labels[:, None] == np.arange(len(names))
    with np.errstate(invalid="ignore"):  # of a class without lesions: NaN, which no probability reaches
        usual = (probabilities * is_label).sum(axis=0) / is_label.sum(axis=0)
    confident = np.where(probabilities >= usual, probabilities, -1)
    suggested = confident.argmax(axis=1)
    is_doubtful = (confident.max(axis=1) >= 0) & (suggested != labels)
    others = np.where(is_label, -1, probabilities).max(axis=1)
    lesions["suggested"] = np.array(names)[suggested]
    lesions["margin"] = probabilities[is_label] - others
    found = lesions[is_doubtful].sort_values(["margin", "lesion_id"], ignore_index=True)
    return found[["lesion_id", "label", "suggested", "margin", "image_ids", *columns]]
