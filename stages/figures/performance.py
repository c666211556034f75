"""Pictures of how well the predictions separate the classes."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.metrics import of_malignancy
from stages.evaluation.predictions import Predictions
from stages.figures.style import BAND, BLACK, BLUE, GREY, PALETTE, SMALL, WIDTH, describe, new_figure, say
from stages.reporting import estimate, number, percent

_SQUARE = 6.4  # inches, the height of axes as wide as the figure
_PANELS, _PANEL = 3, 1.9  # small axes in a row, and the height of one in inches
_LONG = 10  # letters of a class's name with which a legend of two columns is too wide


def draw_roc(predictions: Predictions, details: dict, curve: pd.DataFrame) -> Figure:
    """ROC curves of malignancy, with its band and the decision threshold, and of each diagnosis.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them, as in all pictures.
        curve: what `roc_with_band` gives for them.
    """
    point = details["test"]["operating_points"]["target_sensitivity"]
    figure, axes = _draw_curves(predictions, details, "auroc", curve, roc_table, plot_roc)
    if len(curve):
        axes.plot(
            1 - point["specificity"]["value"], point["sensitivity"]["value"], "D", color=BLACK, markersize=8,
            markerfacecolor="white", markeredgewidth=2, label=f"decision threshold {number(point['threshold'])}",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    _finish(predictions, axes, "AUROC", "all images are of one kind")
    describe(figure, "ROC curve", predictions, f"{_explained(predictions, details)} Dotted: chance.")
    return figure


def draw_precision_recall(predictions: Predictions, details: dict, curve: pd.DataFrame) -> Figure:
    """Precision–recall curves of malignancy, with its band, and of each diagnosis.

    Args:
        predictions: of the evaluated images.
        details: see `draw_roc`.
        curve: what `precision_recall_with_band` gives for them.
    """
    figure, axes = _draw_curves(predictions, details, "auprc", curve, precision_recall_table, plot_precision_recall)
    if len(curve):
        axes.axhline(predictions.is_malignant.mean(), color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="sensitivity (recall)", ylabel="precision (PPV)")
    _finish(predictions, axes, "AUPRC", "no image is malignant")
    describe(
        figure, "Precision–recall curve", predictions,
        f"{_explained(predictions, details)} Dotted: the share of malignant images, which chance reaches.",
    )  # fmt: skip
    return figure


def plot_roc(axes: Axes, curve: pd.DataFrame, **style: Any) -> None:
    """What `roc_table` gives, with its band if it has one."""
    axes.plot(curve["fpr"], curve["tpr"], **style)
    if "lower" in curve:
        axes.fill_between(curve["fpr"], curve["lower"], curve["upper"], color=style["color"], **BAND)


def plot_precision_recall(axes: Axes, curve: pd.DataFrame, **style: Any) -> None:
    """What `precision_recall_table` gives, with its band if it has one."""
    # Average precision is the step-wise sum of the first point of each sensitivity: the curve above that very area.
    corners = curve.drop_duplicates("recall")
    axes.step(corners["recall"], corners["precision"], where="pre", **style)
    if "lower" in curve:
        band = curve["recall"], curve["lower"], curve["upper"]
        axes.fill_between(*band, step="pre", color=style["color"], **BAND)


def _draw_curves(
    predictions: Predictions, details: dict, area: str, curve: pd.DataFrame, table: Callable, plot: Callable
) -> tuple[Figure, Axes]:
    """A figure with the curves of each diagnosis and of malignancy, and the axes of the latter.

    Curves of a few diagnoses are in the same axes; more, which nobody could tell apart there, have small ones below.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        area: the metric in `details` that belongs to the curve.
        curve: that of malignancy.
        table: gives the curve of a diagnosis from truth and score.
        plot: draws a curve into axes.
    """
    names = predictions.classes.names if predictions.classes.are_diagnoses else ()
    if _has_panels(predictions):
        rows = -(-len(names) // _PANELS)
        figure = Figure(figsize=(WIDTH, _SQUARE + rows * _PANEL))
        parts: Any = figure.subfigures(2, height_ratios=[_SQUARE, rows * _PANEL])
        above, below = parts
        axes = above.subplots()
        panels = below.subplots(rows, _PANELS, sharex=True, sharey=True, squeeze=False).ravel()
        for panel in panels:
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            panel.tick_params(labelbottom=False, labelleft=False)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
    else:
        figure, axes = new_figure(7.1 if names else _SQUARE)
        panels = [axes] * len(names)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    for index, (name, panel) in enumerate(zip(names, panels)):
        truth, value = predictions.labels == index, number(details["test"]["classes"][name][area])
        line = "-" if name in predictions.classes.malignant else "--"
        style = {"color": BLUE, "linestyle": line, "linewidth": 1.5}
        if panel is axes:
            style |= {"color": PALETTE[index], "label": f"{name} {value} (n = {truth.sum()})"}
        else:
            panel.set_title(f"{name}\n{value} (n = {truth.sum()})", fontsize=SMALL)
        if len(drawn := table(truth, predictions.probabilities[:, index])):
            plot(panel, drawn, **style)
    if len(curve):
        alone = _has_panels(predictions) or not names
        style = {"color": BLUE} if alone else {"color": BLACK, "linewidth": 2.5}
        plot(axes, curve, label=f"malignant {estimate(of_malignancy(details['test'])[area])}", **style)
    return figure, axes


def _has_panels(predictions: Predictions) -> bool:
    return len(predictions.classes.names) > len(PALETTE)


def _finish(predictions: Predictions, axes: Axes, area: str, nothing: str) -> None:
    """A legend below the axes, where no curve runs through it."""
    entries = axes.get_legend_handles_labels()[0]
    if entries:
        columns = 1 + (len(entries) > 2 and max(map(len, predictions.classes.names)) < _LONG)
        axes.figure.legend(title=area, loc="outside lower left", ncols=columns, alignment="left")
    else:
        say(axes, f"no curve: {nothing}")


def _explained(predictions: Predictions, details: dict) -> str:
    band = f"Band: {percent(details['confidence'])} intervals of malignancy, bootstrap over lesions."
    if not predictions.classes.are_diagnoses:
        return band
    small = " Small: each diagnosis against the rest, on axes from 0 to 1." if _has_panels(predictions) else ""
    return f"{band}{small} Solid: malignant diagnoses; dashed: benign ones."
