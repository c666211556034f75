"""The table of predictions that `evaluate` writes and every later reader reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.classifier.calibration import cost_matrix, decide
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT, Classes, Diagnosis
from stages.errors import regenerate
from stages.files import DECIMALS, DETAILS, read_csv

COLUMNS = ["image_id", "lesion_id", "split", "label"]
PREFIX = "probability_"
THRESHOLDS, DECIDED = ("threshold", "youden_threshold"), "decided"
MOST_PROBABLE_CLASS, CHEAPEST_CLASS = "the most probable class", "the class of the lowest expected cost"


@dataclass(frozen=True)
class Predictions:
    """Predictions of images of one or more splits, which `of` selects by split.

    Attributes:
        table: columns image_id, lesion_id, split, label (a class) and one `probability_` column per class; of pooled
            folds also `THRESHOLDS`, those of the fold that judged the image, and `DECIDED`, the class that it decided
            for by its costs.
        classes: what they are of, in the order of the columns.
        costs: of the decisions, as in a `Calibration`.
    """

    table: pd.DataFrame
    classes: Classes
    costs: Sequence[Sequence[float]] | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Shape (n, classes)."""
        return self.table[[PREFIX + name for name in self.classes.names]].to_numpy(np.float64)

    @property
    def cost_matrix(self) -> np.ndarray:
        """Shape (classes, classes)."""
        return cost_matrix(self.costs, len(self.classes.names))

    @property
    def is_most_probable(self) -> bool:
        """Whether it is the most probable class that is decided for, as every mistake costs the same."""
        usual = cost_matrix(None, len(self.classes.names))
        return DECIDED not in self.table and np.array_equal(self.cost_matrix, usual)

    @property
    def decision(self) -> str:
        """Which class is decided for, in words."""
        return MOST_PROBABLE_CLASS if self.is_most_probable else CHEAPEST_CLASS

    @property
    def predicted(self) -> np.ndarray:
        """The number of the class that is decided for, of each image, shape (n,)."""
        if DECIDED in self.table:
            return self.table[DECIDED].map(self.classes.names.index).to_numpy(np.int64)
        return decide(self.probabilities, self.cost_matrix)

    @property
    def lesions(self) -> np.ndarray:
        """The lesion of each image, shape (n,)."""
        return self.table["lesion_id"].to_numpy()

    @property
    def labels(self) -> np.ndarray:
        """Numbers of classes, shape (n,)."""
        return self.table["label"].map(self.classes.names.index).to_numpy(np.int64)

    @property
    def malignant_probability(self) -> np.ndarray:
        """Shape (n,)."""
        return malignant_probability(self.probabilities, self.classes)

    @property
    def is_malignant(self) -> np.ndarray:
        """bool, shape (n,)."""
        return self.table["label"].isin(self.classes.malignant).to_numpy()

    def called_malignant(self, threshold: float, name: str = "threshold") -> np.ndarray:
        """Whether the probability of malignancy reaches the threshold, bool, shape (n,).

        Args:
            threshold: of all images, unless the table has one of each in its column `name`.
            name: one of `THRESHOLDS`.
        """
        of_each = self.table[name].to_numpy() if name in self.table else threshold
        return self.malignant_probability >= of_each

    def decided(self, threshold: float) -> np.ndarray:
        """The number of the class in use, shape (n,): of benign and malignant the one that the threshold gives.

        Args:
            threshold: as for `called_malignant`.
        """
        return self.predicted if self.classes.are_diagnoses else self.called_malignant(threshold).astype(np.int64)

    @property
    def benign_or_malignant(self) -> "Predictions":
        """The same predictions with the classes benign and malignant; of two classes already, they stay as they are.

        The sums are not rounded, so that at every threshold they decide as `malignant_probability` does.
        """
        if not self.classes.are_diagnoses:
            return self
        names = BENIGN_OR_MALIGNANT.names
        columns = as_malignancy(self.probabilities, self.classes).T
        probabilities = {PREFIX + name: column for name, column in zip(names, columns)}
        labels = [names[malignant] for malignant in self.is_malignant.astype(int)]
        kept = self.table.filter([*COLUMNS, *THRESHOLDS])
        return Predictions(kept.assign(label=labels, **probabilities), BENIGN_OR_MALIGNANT)

    def of(self, split: str) -> "Predictions":
        """The predictions of one split."""
        return self.where((self.table["split"] == split).to_numpy())

    def where(self, members: np.ndarray) -> "Predictions":
        """Those of some images: bool, shape (n,)."""
        return replace(self, table=pd.DataFrame(self.table[members]).reset_index(drop=True))


def malignant_probability(probabilities: np.ndarray, classes: Classes) -> np.ndarray:
    """The sum over the malignant classes, shape (n,), of probabilities of shape (n, classes)."""
    return np.minimum(probabilities[:, classes.is_malignant].sum(axis=1), 1)  # a sum may be 1 and a rounding error


def as_malignancy(probabilities: np.ndarray, classes: Classes) -> np.ndarray:
    """Probabilities of benign and malignant, shape (n, 2), from those of diagnoses, shape (n, classes)."""
    score = malignant_probability(probabilities, classes)
    return np.stack([1 - score, score], axis=1)


def predictions_table(
    images: pd.DataFrame, split: str, labels: list[str], probabilities: np.ndarray, classes: Classes
) -> pd.DataFrame:
    """The rows of the table for the images of one split.

    Rounded as they will be written, so that metrics computed now and from the file are the same.

    Args:
        images: columns image_id and lesion_id, n rows.
        split: its name.
        labels: the class of each image.
        probabilities: shape (n, classes).
        classes: what they are of.
    """
    table = images[["image_id", "lesion_id"]].assign(split=split, label=labels)
    for name, column in zip(classes.names, probabilities.round(DECIMALS).T):
        table[PREFIX + name] = column
    return table


def describe_classes(classes: Classes, taxonomy: Mapping[str, Diagnosis]) -> dict:
    """What metrics/details.json says of the classes: their names and, of diagnoses, what these are."""
    described = {
        code: {"name": diagnosis.name, "malignant": diagnosis.malignant} for code, diagnosis in taxonomy.items()
    }
    return {"classes": list(classes.names)} | ({"taxonomy": described} if classes.are_diagnoses else {})


def read_predictions(
    path: Path, taxonomy: Mapping[str, Any] | None, costs: Sequence[Sequence[float]] | None = None
) -> Predictions:
    """Read the table that `evaluate` wrote.

    Args:
        path: the file.
        taxonomy: what `describe_classes` said of the diagnoses; None: nothing, of benign and malignant.
        costs: of the decisions, as in a `Calibration`.

    Raises:
        InputError: the file is missing, lacks a column or an id, or holds something else than probabilities of such
            classes.
    """
    table = read_csv(path, COLUMNS)
    names = tuple(column.removeprefix(PREFIX) for column in table.columns if column.startswith(PREFIX))
    expected = tuple(sorted(taxonomy)) if taxonomy else BENIGN_OR_MALIGNANT.names
    if names != expected:
        found, others = ", ".join(names) or "no classes", ", ".join(expected)
        raise regenerate(f"{path}: probabilities are of {found}; {DETAILS} describes {others}")
    if costs is not None and len(costs) != len(names):
        raise regenerate(f"{DETAILS}: calibration.costs are of {len(costs)} classes; {path} has {len(names)}")
    malignant = [code for code in names if taxonomy[code]["malignant"]] if taxonomy else BENIGN_OR_MALIGNANT.malignant
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
    return Predictions(table, Classes(names, tuple(malignant)), costs)
