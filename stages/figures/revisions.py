"""Pictures of two revisions over each other, from the tables in plots/ that Git has of both."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.figures.style import BAND, BLUE, GREY, ORANGE, SMALL, describe, new_figure
from stages.figures.wording import rounded_percent

# The new revision is drawn last, over the other.
_STYLES = ({"color": ORANGE, "linestyle": "--"}, {"color": BLUE, "linestyle": "-"})

_FULL_COLOUR = 0.3  # change of a share in the confusion matrix from which on the colour is the darkest


def draw_roc_of(curves: dict[str, pd.DataFrame], explained: str) -> Figure:
    """ROC curves of malignancy.

    Args:
        curves: by the words of the legend, the base first: columns fpr, tpr, lower and upper of plots/roc.csv.
        explained: what the bands are.
    """
    figure, axes = new_figure(6.4)
    for (label, curve), style in zip(curves.items(), _STYLES):
        axes.fill_between(curve["fpr"], curve["lower"], curve["upper"], color=style["color"], **BAND)
        axes.plot(curve["fpr"], curve["tpr"], label=_plain(label), **style)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", ylabel="sensitivity")
    figure.legend(loc="outside lower left", alignment="left")
    describe(figure, "ROC curve", f"{explained} Dotted: chance.")
    return figure


def draw_precision_recall_of(curves: dict[str, pd.DataFrame], explained: str) -> Figure:
    """Precision–recall curves of malignancy.

    Args:
        curves: by the words of the legend, the base first: columns recall, precision, lower and upper of
            plots/precision_recall.csv.
        explained: what the bands are.
    """
    figure, axes = new_figure(6.4)
    for (label, curve), style in zip(curves.items(), _STYLES):
        axes.fill_between(
            curve["recall"], curve["lower"], curve["upper"], step="pre", color=style["color"], **BAND
        )  # fmt: skip
        # As in the pictures of one revision: the first point of each sensitivity.
        corners = curve.drop_duplicates("recall")
        axes.step(corners["recall"], corners["precision"], where="pre", label=_plain(label), **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="sensitivity (recall)", ylabel="precision (PPV)")
    figure.legend(loc="outside lower left", alignment="left")
    describe(figure, "Precision–recall curve", explained)
    return figure


def draw_reliability_of(bins: dict[str, pd.DataFrame], explained: str) -> Figure:
    """Observed against predicted probability of malignancy, after temperature scaling.

    Args:
        bins: by the words of the legend, the base first: columns predicted, observed, lower and upper of
            plots/reliability.csv.
        explained: what the bars are.
    """
    figure, axes = new_figure(6.4)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    for (label, table), style in zip(bins.items(), _STYLES):
        table = table.dropna(subset=["predicted", "observed", "lower", "upper"])  # bins only of before the scaling
        height = table["observed"]
        reach = (height - table["lower"], table["upper"] - height)
        axes.errorbar(table["predicted"], height, reach, label=_plain(label), marker="o", capsize=3, **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    axes.set(xlabel="predicted probability of malignancy", ylabel="observed fraction malignant")
    figure.legend(loc="outside lower left", alignment="left")
    describe(figure, "Reliability", f"Bins of equally many images. {explained} Dotted: perfect.")
    return figure


def draw_confusion_of(base: pd.DataFrame, new: pd.DataFrame, classes: list[str]) -> Figure:
    """One confusion matrix of the most probable class, with the images of both revisions in each cell.

    Args:
        base: columns actual and predicted of plots/confusion_matrix.csv, one row an image.
        new: the same of the second revision.
        classes: of both, in their order.
    """
    count = len(classes)
    figure, axes = new_figure(1.6 + count * (1.1 if count == 2 else 0.7))
    counts = [
        pd.crosstab(table["actual"], table["predicted"])
        .reindex(index=classes, columns=classes, fill_value=0)
        .to_numpy()
        for table in (base, new)
    ]
    shares = [matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) for matrix in counts]
    gain = (shares[1] - shares[0]) * np.where(np.eye(count), 1, -1)
    axes.imshow(gain, cmap="PuOr", vmin=-_FULL_COLOUR, vmax=_FULL_COLOUR, aspect="auto")
    for row, column in np.ndindex(count, count):
        text = " → ".join(str(matrix[row, column]) for matrix in counts)
        if count == 2:  # more classes leave no room
            text += "\n" + " → ".join(rounded_percent(matrix[row, column]) for matrix in shares)
        axes.text(
            column, row, text, fontsize=SMALL, ha="center", va="center",
            color="white" if not -0.7 < gain[row, column] / _FULL_COLOUR < 0.5 else "black",
        )  # fmt: skip
    axes.set_xticks(range(count), classes)
    axes.set_yticks(range(count), classes)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    describe(
        figure, "Confusion matrix, base → new",
        "Images by their most probable class. Orange: the share of the row got worse; violet: it got better.",
    )  # fmt: skip
    return figure


def _plain(text: str) -> str:
    """`text` in which matplotlib finds no mathematics: a branch may well be called $x$."""
    return text.replace("$", r"\$")
