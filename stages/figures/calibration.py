"""The reliability diagram."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.evaluation.predictions import Predictions
from stages.figures.style import BLUE, GREY, ORANGE, VERMILION, describe, new_figure
from stages.reporting import estimate, number, percent

_HISTOGRAM = np.linspace(0, 1, 21)


def reliability_table(details: dict) -> pd.DataFrame:
    """The reliability diagram, one row per bin of the probability of malignancy.

    Args:
        details: what metrics/details.json holds.

    Returns:
        Columns predicted (its mean), observed (fraction malignant), lower, upper (the interval of `observed`) and
        images after temperature scaling, and the same with the suffix `_before`; fewer bins of one than of the other
        leave fields empty.
    """
    reliability = details["test"]["calibration"]["reliability"]
    after, before = (_bins(reliability[name]) for name in ("after", "before"))
    return pd.concat([after, before.add_suffix("_before")], axis=1)


def _bins(bins: list[dict]) -> pd.DataFrame:
    rows = [
        {
            "predicted": one["predicted"],
            "observed": one["observed"]["value"],
            **dict(zip(("lower", "upper"), one["observed"]["interval"])),
            "images": one["images"],
        }
        for one in bins
    ]
    return pd.DataFrame(rows).astype({"images": "Int64"})  # stays whole beside an empty field


def draw_reliability(predictions: Predictions, details: dict, bins: pd.DataFrame) -> Figure:
    """Observed against predicted probability of malignancy, before and after temperature scaling, and a histogram.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        bins: what `reliability_table` gives.
    """
    figure, (axes, below) = new_figure(8, rows=2, sharex=True, height_ratios=[4, 1])
    calibration = details["test"]["calibration"]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.5, label="perfect")
    axes.plot(
        bins["predicted_before"], bins["observed_before"], "s--", color=ORANGE, linewidth=1.5, markerfacecolor="white",
        label=f"before temperature scaling: ECE {estimate(calibration['before']['ece'])}",
    )  # fmt: skip
    height = bins["observed"]
    axes.errorbar(
        bins["predicted"], height, (height - bins["lower"], bins["upper"] - height), fmt="o-", color=BLUE, capsize=3,
        label=f"after: ECE {estimate(calibration['after']['ece'])}",
    )  # fmt: skip
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), ylabel="observed fraction malignant")
    figure.legend(loc="outside lower left", alignment="left")
    is_malignant, score = predictions.is_malignant, predictions.malignant_probability
    below.hist(
        [score[~is_malignant], score[is_malignant]], _HISTOGRAM, stacked=True, color=[GREY, VERMILION],
        label=["benign", "malignant"],
    )  # fmt: skip
    below.legend(ncols=2, loc="upper right")
    below.set(xlabel="predicted probability of malignancy", ylabel="images")
    describe(
        figure, "Reliability", predictions,
        f"Bins of equally many images; bars: {percent(details['confidence'])} intervals, bootstrap over lesions. "
        f"Temperature {number(details['calibration']['temperature'])}. ECE is that of the most probable class.",
    )  # fmt: skip
    return figure
