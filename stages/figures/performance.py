"""Pictures of how good the predictions are."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.predictions import Predictions
from stages.figures.style import BLACK, GREY, PALETTE, new_figure


@dataclass(frozen=True)
class _Target:
    """What is told apart from the rest: its name, the truth and the score of each image, and how its line looks."""

    name: str
    truth: np.ndarray
    score: np.ndarray
    style: dict

    def label(self, area: float) -> str:
        return f"{self.name} {area:.3f} (n = {self.truth.sum()})"


def _targets(predictions: Predictions) -> list[_Target]:
    """Each diagnosis, where there are seven classes, and malignancy, on top of them."""
    diagnoses = []
    if len(predictions.classes) > 2:
        for number, name in enumerate(predictions.classes):
            style = {"color": PALETTE[number]}
            diagnoses.append(_Target(name, predictions.labels == number, predictions.probabilities[:, number], style))
    style = {"color": BLACK, "linewidth": 3, "linestyle": "--"} if diagnoses else {"color": PALETTE[0]}
    malignant = _Target("malignant", predictions.is_malignant, predictions.malignant_probability, style)
    return [*diagnoses, malignant]


def _subtitle(predictions: Predictions) -> str:
    return f"{len(predictions.table)} images of {predictions.table['lesion_id'].nunique()} lesions"


def draw_roc(predictions: Predictions) -> Figure:
    """ROC curves of malignancy and, for seven classes, of each diagnosis against the rest."""
    figure, axes = new_figure(6, 6)
    for target in _targets(predictions):
        curve = roc_table(target.truth, target.score)
        area = np.trapezoid(curve["tpr"], curve["fpr"])
        if len(curve):
            axes.plot(curve["fpr"], curve["tpr"], label=target.label(area), **target.style)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    _finish(axes, f"ROC, test\n{_subtitle(predictions)}", "AUROC", "lower right")
    return figure


def draw_precision_recall(predictions: Predictions) -> Figure:
    """Precision–recall curves of malignancy and, for seven classes, of each diagnosis against the rest."""
    figure, axes = new_figure(6, 6)
    targets = _targets(predictions)
    for target in targets:
        curve = precision_recall_table(target.truth, target.score)
        # Average precision is the step-wise sum, so the curve is drawn in steps.
        area = np.sum(np.diff(curve["recall"]) * curve["precision"][1:].to_numpy())
        if len(curve):
            axes.step(curve["recall"], curve["precision"], where="pre", label=target.label(area), **target.style)
    if len(targets) == 1:
        axes.axhline(targets[0].truth.mean(), color=GREY, linestyle=":", linewidth=1.5)
    axes.set(xlabel="sensitivity (recall)", ylabel="precision")
    _finish(axes, f"Precision–recall, test\n{_subtitle(predictions)}", "AUPRC", "lower left")
    return figure


def _finish(axes: Axes, title: str, legend: str, place: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title=legend, loc=place)


def draw_confusion_matrix(predictions: Predictions) -> Figure:
    """Counts of test images, with the fraction of each true class as the colour."""
    classes = predictions.classes
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (predictions.labels, predictions.predicted), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = 5.5 if len(classes) == 2 else 8
    figure, axes = new_figure(side + 0.5, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        axes.text(
            column, row, f"{counts[row, column]}\n{share[row, column]:.0%}",
            ha="center", va="center", color="white" if share[row, column] > 0.5 else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.grid(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"Confusion matrix, test\n{_subtitle(predictions)}")
    return figure
