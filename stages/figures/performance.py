"""Pictures of how well the predictions separate the classes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.dataset.taxonomy import class_names, malignant_classes
from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.metrics import effective_lesions_of
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import estimate
from stages.evaluation.weighted import weighted_areas
from stages.figures.style import BAND, BLACK, BLUE, GREY, PALETTE, SMALL, describe, frame_matrix, new_figure, say
from stages.reporting import estimate as with_interval
from stages.reporting import number, percent, rounded_percent


def draw_roc(predictions: Predictions, details: dict, curve: pd.DataFrame) -> Figure:
    """ROC curves of malignancy, with its band and the decision threshold, and of each of seven diagnoses.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them, as in all pictures.
        curve: what `roc_with_band` gives for them.
    """
    figure, axes = _new_square(predictions)
    metrics, point = details["test"]["metrics"], details["test"]["operating_points"]["target_sensitivity"]
    for name, truth, score, style in _diagnoses(predictions):
        drawn = roc_table(truth, score)
        if len(drawn):
            area = number(details["test"]["classes"][name]["auroc"])
            axes.plot(drawn["fpr"], drawn["tpr"], label=f"{name} {area} (n = {truth.sum()})", **style)
    if len(curve):
        style = _malignant_style(predictions)
        area = with_interval(metrics["auroc" if "auroc" in metrics else "malignant_auroc"])
        axes.plot(curve["fpr"], curve["tpr"], label=f"malignant {area}", **style)
        axes.fill_between(curve["fpr"], curve["lower"], curve["upper"], color=style["color"], **BAND)
        axes.plot(
            1 - point["specificity"]["value"], point["sensitivity"]["value"], "D", color=BLACK, markersize=8,
            markerfacecolor="white", markeredgewidth=2, label=f"decision threshold {point['threshold']:.3g}",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    _finish(figure, axes, "AUROC", "all images are of one kind")
    describe(figure, "ROC curve", predictions, f"{_explained(details)} Dotted: chance.")
    return figure


def draw_precision_recall(predictions: Predictions, details: dict, curve: pd.DataFrame) -> Figure:
    """Precision–recall curves of malignancy, with its band, and of each of seven diagnoses.

    Args:
        predictions: of the evaluated images.
        details: see `draw_roc`.
        curve: what `precision_recall_with_band` gives for them.
    """
    figure, axes = _new_square(predictions)
    for name, truth, score, style in _diagnoses(predictions):
        drawn = precision_recall_table(truth, score)
        if len(drawn):
            area = number(details["test"]["classes"][name]["auprc"])
            _draw_steps(axes, drawn, f"{name} {area} (n = {truth.sum()})", style)
    if len(curve):
        style = _malignant_style(predictions)
        _draw_steps(axes, curve, f"malignant {with_interval(_auprc(predictions, details))}", style)
        band = curve["recall"], curve["lower"], curve["upper"]
        axes.fill_between(*band, step="pre", color=style["color"], **BAND)
        axes.axhline(predictions.is_malignant.mean(), color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="sensitivity (recall)", ylabel="precision (PPV)")
    _finish(figure, axes, "AUPRC", "no image is malignant")
    describe(
        figure, "Precision–recall curve", predictions,
        f"{_explained(details)} Dotted: the share of malignant images, which chance reaches.",
    )  # fmt: skip
    return figure


def _diagnoses(predictions: Predictions) -> Iterator[tuple[str, np.ndarray, np.ndarray, dict]]:
    """Where there are seven classes: the name, truth, score and line of each."""
    if len(predictions.classes) > 2:
        malignant = malignant_classes(len(predictions.classes))
        for index, name in enumerate(predictions.classes):
            style = {"color": PALETTE[index], "linestyle": "-" if name in malignant else "--", "linewidth": 1.5}
            yield name, predictions.labels == index, predictions.probabilities[:, index], style


def _draw_steps(axes: Axes, curve: pd.DataFrame, label: str, style: dict) -> None:
    # Average precision is the step-wise sum of the first point of each sensitivity: the curve above that very area.
    corners = curve.drop_duplicates("recall")
    axes.step(corners["recall"], corners["precision"], where="pre", label=label, **style)


def _malignant_style(predictions: Predictions) -> dict:
    return {"color": BLUE} if len(predictions.classes) == 2 else {"color": BLACK, "linewidth": 2.5}


def _auprc(predictions: Predictions, details: dict) -> dict:
    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        _, auprc = weighted_areas(predictions.malignant_probability, predictions.is_malignant, weights)
        return {"auprc": auprc}

    settings = predictions.lesions, details["bootstrap_replicates"], details["confidence"]
    return estimate(statistic, *settings, effective_lesions_of(predictions))["auprc"]


def _new_square(predictions: Predictions) -> tuple[Figure, Axes]:
    figure, axes = new_figure(6.4 if len(predictions.classes) == 2 else 7.1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return figure, axes


def _finish(figure: Figure, axes: Axes, area: str, nothing: str) -> None:
    """A legend below the axes, where no curve runs through it."""
    entries = axes.get_legend_handles_labels()[0]
    if entries:
        figure.legend(title=area, loc="outside lower left", ncols=1 + (len(entries) > 2), alignment="left")
    else:
        say(axes, f"no curve: {nothing}")


def _explained(details: dict) -> str:
    lines = " Solid: malignant diagnoses; dashed: benign ones." if len(details["classes"]) > 2 else ""
    return f"Band: {percent(details['confidence'])} intervals of malignancy, bootstrap over lesions.{lines}"


def draw_confusion_matrix(predictions: Predictions, details: dict) -> Figure:
    """Counts and shares of each true class: by the most probable class, and of malignancy at the decision threshold."""
    classes, threshold = predictions.classes, details["calibration"]["threshold"]
    called = (predictions.malignant_probability >= threshold).astype(int)
    if len(classes) == 2:
        figure, (first, second) = new_figure(3.3, columns=2, sharey=True)
    else:
        figure, (first, second) = new_figure(9.3, rows=2, height_ratios=[2.2, 1])
    _draw_matrix(second, predictions.is_malignant.astype(int), called, class_names(2))
    second.set_title(f"malignant at or above {threshold:.3g}")
    _draw_matrix(first, predictions.labels, predictions.predicted, classes)
    first.set_title("the most probable class")
    if len(classes) == 2:
        second.set_ylabel("")
    describe(
        figure, "Confusion matrix", predictions,
        "Each cell: images, and their share of the row, which is a true class.",
    )  # fmt: skip
    return figure


def _draw_matrix(axes: Axes, labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> None:
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predicted), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        axes.text(
            column, row, f"{counts[row, column]}\n{rounded_percent(share[row, column])}", fontsize=SMALL,
            ha="center", va="center", color="white" if share[row, column] > 0.5 else "black",
        )  # fmt: skip
    frame_matrix(axes, classes)
    axes.set_yticks(range(len(classes)), [f"{name}\nn = {total}" for name, total in zip(classes, counts.sum(axis=1))])
