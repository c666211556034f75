"""Curves of two revisions over each other, from the tables in plots/ that Git has of both."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.figures.performance import plot_precision_recall, plot_roc
from stages.figures.style import BLUE, GREY, ORANGE, describe, new_figure

# The new revision is drawn last, over the other.
_STYLES = ({"color": ORANGE, "linestyle": "--"}, {"color": BLUE, "linestyle": "-"})


def draw_curves(name: str, tables: dict[str, pd.DataFrame], confidence: float) -> Figure:
    """The curves of two models of malignancy.

    Args:
        name: roc, precision_recall or reliability.
        tables: plots/{name}.csv by the words of the legend, the base first.
        confidence: of the intervals, as 0.95.
    """
    plot, title, x_label, y_label, explained = _CURVES[name]
    figure, axes = new_figure(6.4)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    for (label, table), style in zip(tables.items(), _STYLES):
        plot(axes, table, label=label, **style)
    if name != "precision_recall":
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5)
    figure.legend(loc="outside lower left", alignment="left")
    describe(figure, title, explained.format(f"{100 * confidence:g} % intervals, bootstrap over lesions."))
    return figure


def _plot_reliability(axes: Axes, bins: pd.DataFrame, **style: Any) -> None:
    bins = bins.dropna(subset=["predicted", "observed", "lower", "upper"])  # bins only of uncalibrated ones
    reach = (bins["observed"] - bins["lower"], bins["upper"] - bins["observed"])
    axes.errorbar(bins["predicted"], bins["observed"], reach, marker="o", capsize=3, **style)


_CURVES = {
    "roc": (plot_roc, "ROC curve", "1 − specificity", "sensitivity", "Bands: {} Dotted: chance."),
    "precision_recall": (
        plot_precision_recall, "Precision–recall curve", "sensitivity (recall)", "precision (PPV)", "Bands: {}",
    ),
    "reliability": (
        _plot_reliability, "Reliability", "predicted probability of malignancy", "observed fraction malignant",
        "Bins of equally many images. Bars: {} Dotted: perfect.",
    ),
}  # fmt: skip
