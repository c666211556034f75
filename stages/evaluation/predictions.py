"""The table of predictions that `evaluate` writes and every later reader reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.dataset.taxonomy import class_names, malignant_classes
from stages.errors import regenerate
from stages.files import DECIMALS, read_csv

COLUMNS = ["image_id", "lesion_id", "split", "label"]
PREFIX = "probability_"


@dataclass(frozen=True)
class Predictions:
    """Predictions of images of one or more splits, which `of` selects by split.

    Attributes:
        table: columns image_id, lesion_id, split, label (a class) and one `probability_` column per class.
        classes: in the order of the columns.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """Shape (n, classes)."""
        return self.table[[PREFIX + name for name in self.classes]].to_numpy(np.float64)

    @property
    def predicted(self) -> np.ndarray:
        """The number of the most probable class of each image, shape (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def lesions(self) -> np.ndarray:
        """The lesion of each image, shape (n,)."""
        return self.table["lesion_id"].to_numpy()

    @property
    def labels(self) -> np.ndarray:
        """Numbers of classes, shape (n,)."""
        return self.table["label"].map(self.classes.index).to_numpy(np.int64)

    @property
    def malignant_probability(self) -> np.ndarray:
        """Shape (n,)."""
        return malignant_probability(self.probabilities)

    @property
    def is_malignant(self) -> np.ndarray:
        """bool, shape (n,)."""
        return self.table["label"].isin(malignant_classes(len(self.classes))).to_numpy()

    @property
    def benign_or_malignant(self) -> "Predictions":
        """The same predictions with the classes benign and malignant; of two classes already, they stay as they are.

        The sums are not rounded, so that at every threshold they decide as `malignant_probability` does.
        """
        names = class_names(2)
        if self.classes == names:
            return self
        score = self.malignant_probability
        probabilities = {PREFIX + name: column for name, column in zip(names, (1 - score, score))}
        labels = [names[malignant] for malignant in self.is_malignant.astype(int)]
        return Predictions(self.table[COLUMNS].assign(label=labels, **probabilities), names)

    def of(self, split: str) -> "Predictions":
        """The predictions of one split."""
        return Predictions(pd.DataFrame(self.table[self.table["split"] == split]).reset_index(drop=True), self.classes)


def malignant_probability(probabilities: np.ndarray) -> np.ndarray:
    """The sum over the malignant classes, shape (n,), of probabilities of shape (n, classes)."""
    count = probabilities.shape[1]
    malignant = np.isin(class_names(count), malignant_classes(count))
    return np.minimum(probabilities[:, malignant].sum(axis=1), 1)  # a sum may be 1 and a rounding error


def predictions_table(images: pd.DataFrame, split: str, labels: list[str], probabilities: np.ndarray) -> pd.DataFrame:
    """The rows of the table for the images of one split.

    Rounded as they will be written, so that metrics computed now and from the file are the same.

    Args:
        images: columns image_id and lesion_id, n rows.
        labels: the class of each image.
        probabilities: shape (n, 2) or (n, 7).
    """
    table = images[["image_id", "lesion_id"]].assign(split=split, label=labels)
    for name, column in zip(class_names(probabilities.shape[1]), probabilities.round(DECIMALS).T):
        table[PREFIX + name] = column
    return table


def read_predictions(path: Path) -> Predictions:
    """Read the table that `evaluate` wrote.

    Raises:
        InputError: the file is missing, lacks a column or an id, or holds something else than classes and
            probabilities.
    """
    table = read_csv(path, COLUMNS)
    names = tuple(column.removeprefix(PREFIX) for column in table.columns if column.startswith(PREFIX))
    if names not in (class_names(2), class_names(7)):
        raise regenerate(f"{path}: probabilities are of {', '.join(names) or 'no classes'}")
    probabilities = table.filter(like=PREFIX).apply(pd.to_numeric, errors="coerce").to_numpy()
    wrong = {
        "an image has no image_id or lesion_id": table[["image_id", "lesion_id"]].isna().any(axis=None),
        "an image is duplicated": table["image_id"].duplicated().any(),
        "no image is in the split test": "test" not in set(table["split"]),
        f"a label is none of {', '.join(names)}": not table["label"].isin(names).all(),
        "the probabilities of an image are not at least 0 with the sum 1": (
            not np.allclose(probabilities.sum(axis=1), 1, atol=1e-6) or (probabilities < 0).any()
        ),
    }
    for problem, found in wrong.items():
        if found:
            raise regenerate(f"{path}: {problem}")
    return Predictions(table, names)
