"""Pictures of what follows from the choice of a threshold."""

import pandas as pd
from matplotlib.figure import Figure

from stages.evaluation.predictions import Predictions
from stages.figures.style import BAND, BLACK, BLUE, GREEN, GREY, ORANGE, describe, new_figure
from stages.reporting import OPERATING_POINTS, estimate, number, percent, rounded_percent


def draw_decision_curve(predictions: Predictions, details: dict, curve: pd.DataFrame) -> Figure:
    """Net benefit of deciding by the model, of treating all and of treating none, against the threshold.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        curve: what `decision_curve_table` gives for them.
    """
    figure, axes = new_figure(5.6)
    threshold = details["calibration"]["threshold"]
    axes.plot(curve["threshold"], curve["treat_all"], "--", color=ORANGE, label="treat all")
    axes.plot(curve["threshold"], curve["treat_none"], "-.", color=GREY, label="treat none")
    axes.plot(curve["threshold"], curve["model"], color=BLUE, label="model")
    axes.fill_between(curve["threshold"], curve["lower"], curve["upper"], color=BLUE, **BAND)
    axes.axvline(threshold, color=BLACK, linestyle=":", linewidth=1.5, label=f"decision threshold {number(threshold)}")
    # Treating all falls without bound; below here there is nothing to see.
    highest = max(curve["upper"].max(), curve["treat_all"].max(), min(predictions.is_malignant.mean() or 1, 0.05))
    axes.set(xlim=(0, curve["threshold"].max()), ylim=(-0.25 * highest, 1.05 * highest))
    axes.set(xlabel="threshold probability", ylabel="net benefit [true positives per image]")
    figure.legend(loc="outside lower left", ncols=2, alignment="left")
    describe(
        figure, "Decision curve", predictions,
        f"Band: {percent(details['confidence'])} intervals, bootstrap over lesions. "
        f"Net benefit depends on prevalence, here {rounded_percent(predictions.is_malignant.mean())} of the images.",
    )  # fmt: skip
    return figure


def draw_thresholds(predictions: Predictions, details: dict, curves: pd.DataFrame) -> Figure:
    """Sensitivity and specificity against the threshold, with the two thresholds that the validation images gave.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        curves: what `threshold_table` gives for them.
    """
    figure, axes = new_figure(6.4)
    lines = ("sensitivity", BLUE, "-"), ("specificity", ORANGE, "--")
    marks = ("target_sensitivity", BLACK, "-"), ("youden", GREEN, ":")
    # In turns, for a legend of two columns.
    for (name, colour, style), (key, mark_colour, mark_style) in zip(lines, marks):
        axes.plot(curves["threshold"], curves[name], style, color=colour, label=name)
        bounds = curves[f"{name}_lower"], curves[f"{name}_upper"]
        axes.fill_between(curves["threshold"], *bounds, color=colour, **BAND)
        point = details["test"]["operating_points"][key]
        label = (
            f"{OPERATING_POINTS[key]}: {number(point['threshold'])}\nsensitivity {estimate(point['sensitivity'])}\n"
            f"specificity {estimate(point['specificity'])}"
        )
        axes.axvline(point["threshold"], color=mark_colour, linestyle=mark_style, label=label)
    axes.set(xlim=(0, 1), ylim=(-0.01, 1.01), xlabel="threshold of the probability of malignancy")
    axes.set_ylabel("sensitivity, specificity")
    chosen = "The two marked thresholds were chosen on the validation images."
    if "folds" in details:
        chosen += " Each fold has its own, by which the numbers below are; marked are their medians."
    tight = {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 0.8}
    figure.legend(loc="outside lower left", ncols=2, alignment="left", **tight)
    describe(
        figure, "Sensitivity and specificity against threshold", predictions,
        f"Bands: {percent(details['confidence'])} intervals, bootstrap over lesions. {chosen}",
    )  # fmt: skip
    return figure
