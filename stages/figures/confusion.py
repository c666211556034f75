"""Confusion matrices: of one model, and of two over each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT
from stages.evaluation.predictions import Predictions
from stages.figures.style import SMALL, describe, new_figure
from stages.reporting import number, rounded_percent

MOST_COUNTED = 7  # classes whose matrix has room for numbers of images
MIN_SHARE = 0.05  # of a row, which a matrix of more classes writes down
_ROW, _LETTER = 0.22, 0.09  # inches
_LETTERS_BELOW = 42  # that fit side by side below a matrix
_MOST_NAMED = 24  # columns; of more only the rows, which have the same order, are named
_FULL_COLOR = 0.3  # change of a share from which on the color is the darkest


def draw_confusion_matrix(predictions: Predictions, details: dict) -> Figure:
    """Counts and shares of each true class: by the class decided for, and of malignancy at the decision threshold.

    Of many classes the first has shares alone; the report has a table of the counts.
    """
    classes, threshold = predictions.classes, details["calibration"]["threshold"]
    called = predictions.called_malignant(threshold).astype(int)
    if not classes.are_diagnoses:
        figure, (first, second) = new_figure(3.3, columns=2, sharey=True)
    else:
        height = max(6.4, _height_of_many(classes.names))
        figure, (first, second) = new_figure(height + 2.9, rows=2, height_ratios=[height / 2.9, 1])
    _draw_counts(second, predictions.is_malignant.astype(int), called, BENIGN_OR_MALIGNANT.names)
    second.set_title(f"malignant at or above {number(threshold)}")
    _draw_counts(first, predictions.labels, predictions.predicted, classes.names)
    first.set_title(predictions.decision)
    if not classes.are_diagnoses:
        second.set_ylabel("")
    explained = "Each cell: images, and their share of the row, which is a true class."
    if len(classes.names) > MOST_COUNTED:
        explained += f" Of diagnoses shares from {MIN_SHARE:.0%} on, in percent; the report has the numbers of images."
    describe(figure, "Confusion matrix", predictions, explained)
    return figure


def _draw_counts(axes: Axes, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> None:
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predicted), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = len(classes) > MOST_COUNTED

    def text(cell: tuple[int, ...]) -> str:
        return _few(share[cell]) if many else f"{counts[cell]}\n{rounded_percent(share[cell])}"

    colors = {"cmap": "Blues", "vmin": 0, "vmax": 1}
    _draw_cells(axes, classes, share, text, share > 0.5, aspect="auto" if many else None, **colors)
    if not many:
        named = [f"{name}\nn = {total}" for name, total in zip(classes, counts.sum(axis=1))]
        axes.set_yticks(range(len(classes)), named)


def draw_changed_confusion(base: pd.DataFrame, new: pd.DataFrame, classes: list[str]) -> Figure:
    """One confusion matrix of the classes that were decided for, with the images of both revisions in each cell.

    Args:
        base: columns actual and predicted of plots/confusion_matrix.csv, one row per image.
        new: the same of the second revision.
        classes: of both, in their order.
    """
    count = len(classes)
    many = count > MOST_COUNTED
    figure, axes = new_figure(_height_of_many(classes) if many else 1.6 + count * (1.1 if count == 2 else 0.7))
    crossed = (pd.crosstab(table["actual"], table["predicted"]) for table in (base, new))
    counts = [table.reindex(index=classes, columns=classes, fill_value=0).to_numpy() for table in crossed]
    shares = [matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) for matrix in counts]
    gain = (shares[1] - shares[0]) * np.where(np.eye(count), 1, -1)

    def text(cell: tuple[int, ...]) -> str:
        images = " → ".join(str(matrix[cell]) for matrix in counts)
        if count == 2:  # more classes leave no room
            images += "\n" + " → ".join(rounded_percent(matrix[cell]) for matrix in shares)
        return _few(abs(gain[cell])) if many else images

    colors = {"cmap": "PuOr", "vmin": -_FULL_COLOR, "vmax": _FULL_COLOR}
    is_dark = (gain / _FULL_COLOR <= -0.7) | (gain / _FULL_COLOR >= 0.5)
    _draw_cells(axes, classes, gain, text, is_dark, aspect="auto", **colors)
    shown = f"By how much, in percent, from {MIN_SHARE:.0%} on." if many else ""
    describe(
        figure, "Confusion matrix, base → new",
        f"Images by the class decided for. Orange: the share of the row got worse; violet: it got better. {shown}",
    )  # fmt: skip
    return figure


def _few(share: float) -> str:
    """A share in percent, if it is one that a matrix of many classes writes down."""
    return f"{100 * share:.0f}" if share >= MIN_SHARE else ""


def _height_of_many(classes: Sequence[str]) -> float:
    """The height in inches of a matrix of many classes, with the names below it."""
    return _ROW * len(classes) + _LETTER * max(map(len, classes)) + 1


def _draw_cells(
    axes: Axes,
    classes: Sequence[str],
    shades: np.ndarray,
    text: Callable[[tuple[int, ...]], str],
    is_dark: np.ndarray,
    **options: Any,
) -> None:
    """A row for each true class and a column for each predicted one, of these shades, with the text of each cell."""
    axes.imshow(shades, **options)
    for row, column in np.ndindex(*shades.shape):
        color = "white" if is_dark[row, column] else "black"
        axes.text(column, row, text((row, column)), fontsize=SMALL, ha="center", va="center", color=color)
    wide = len(classes) * max(map(len, classes)) > _LETTERS_BELOW
    axes.set_xticks(range(len(classes)), classes, rotation=90 if wide else 0)
    if len(classes) > _MOST_NAMED:
        axes.set_xticks([])
    axes.set_yticks(range(len(classes)), classes)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
