"""Pictures of two revisions over each other, from the tables in plots/ that Git has of both."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.figures.style import (
    BAND,
    BLUE,
    GREY,
    MIN_SHARE,
    MOST_COUNTED,
    ORANGE,
    SMALL,
    describe,
    frame_matrix,
    matrix_height,
    new_figure,
)
from stages.reporting import rounded_percent

# The new revision is drawn last, over the other.
_STYLES = ({"color": ORANGE, "linestyle": "--"}, {"color": BLUE, "linestyle": "-"})
_FULL_COLOR = 0.3  # change of a share in the confusion matrix from which on the color is the darkest


def draw_curves(name: str, tables: dict[str, pd.DataFrame], confidence: float) -> Figure:
    """The curves of two models of malignancy.

    Args:
        name: roc, precision_recall or reliability.
        tables: plots/{name}.csv by the words of the legend, the base first.
        confidence: of the intervals, as 0.95.
    """
    draw, title, x_label, y_label, explained = _CURVES[name]
    figure, axes = new_figure(6.4)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    for (label, table), style in zip(tables.items(), _STYLES):
        draw(axes, table, {"label": label, **style})
    if name != "precision_recall":
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    figure.legend(loc="outside lower left", alignment="left")
    describe(figure, title, explained.format(f"{100 * confidence:g} % intervals, bootstrap over lesions."))
    return figure


def _draw_roc(axes: Axes, curve: pd.DataFrame, style: dict) -> None:
    axes.fill_between(curve["fpr"], curve["lower"], curve["upper"], color=style["color"], **BAND)
    axes.plot(curve["fpr"], curve["tpr"], **style)


def _draw_precision_recall(axes: Axes, curve: pd.DataFrame, style: dict) -> None:
    axes.fill_between(curve["recall"], curve["lower"], curve["upper"], step="pre", color=style["color"], **BAND)
    # As in the pictures of one revision: the first point of each sensitivity.
    corners = curve.drop_duplicates("recall")
    axes.step(corners["recall"], corners["precision"], where="pre", **style)


def _draw_reliability(axes: Axes, bins: pd.DataFrame, style: dict) -> None:
    bins = bins.dropna(subset=["predicted", "observed", "lower", "upper"])  # bins only of uncalibrated ones
    reach = (bins["observed"] - bins["lower"], bins["upper"] - bins["observed"])
    axes.errorbar(bins["predicted"], bins["observed"], reach, marker="o", capsize=3, **style)


_CURVES = {
    "roc": (_draw_roc, "ROC curve", "1 − specificity", "sensitivity", "Bands: {} Dotted: chance."),
    "precision_recall": (
        *(_draw_precision_recall, "Precision–recall curve", "sensitivity (recall)", "precision (PPV)", "Bands: {}"),
    ),
    "reliability": (
        *(_draw_reliability, "Reliability", "predicted probability of malignancy", "observed fraction malignant"),
        "Bins of equally many images. Bars: {} Dotted: perfect.",
    ),
}


def draw_confusion(base: pd.DataFrame, new: pd.DataFrame, classes: list[str]) -> Figure:
    """One confusion matrix of the classes that were decided for, with the images of both revisions in each cell.

    Args:
        base: columns actual and predicted of plots/confusion_matrix.csv, one row per image.
        new: the same of the second revision.
        classes: of both, in their order.
    """
    count = len(classes)
    many = count > MOST_COUNTED
    figure, axes = new_figure(matrix_height(classes) if many else 1.6 + count * (1.1 if count == 2 else 0.7))
    counts = [
        pd.crosstab(table["actual"], table["predicted"])
        .reindex(index=classes, columns=classes, fill_value=0)
        .to_numpy()
        for table in (base, new)
    ]
    shares = [matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) for matrix in counts]
    gain = (shares[1] - shares[0]) * np.where(np.eye(count), 1, -1)
    axes.imshow(gain, cmap="PuOr", vmin=-_FULL_COLOR, vmax=_FULL_COLOR, aspect="auto")
    for row, column in np.ndindex(count, count):
        text = " → ".join(str(matrix[row, column]) for matrix in counts)
        if many:
            change = abs(gain[row, column])
            text = f"{100 * change:.0f}" if change >= MIN_SHARE else ""
        if count == 2:  # more classes leave no room
            text += "\n" + " → ".join(rounded_percent(matrix[row, column]) for matrix in shares)
        color = "white" if not -0.7 < gain[row, column] / _FULL_COLOR < 0.5 else "black"
        axes.text(column, row, text, fontsize=SMALL, ha="center", va="center", color=color)
    frame_matrix(axes, classes)
    shown = f"By how much, in percent, from {MIN_SHARE:.0%} on." if many else ""
    describe(
        figure, "Confusion matrix, base → new",
        f"Images by the class decided for. Orange: the share of the row got worse; violet: it got better. {shown}",
    )  # fmt: skip
    return figure
