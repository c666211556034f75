"""The picture of the course of training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILION, describe, new_figure


def draw_training_curves(history: pd.DataFrame, details: dict, description: dict) -> Figure:
    """Loss, validation accuracy and learning rate against the epoch; the epoch that was kept is marked.

    Args:
        history: columns epoch, train_loss, val_loss, val_calibrated_loss, val_acc and learning_rate.
        details: what metrics/details.json holds of the validation images.
        description: what models/model.json holds; of several networks this is the first.
    """
    figure, (loss, accuracy, rate) = new_figure(7, rows=3, sharex=True, gridspec_kw={"height_ratios": [2, 2, 1]})
    epoch = history["epoch"]
    kept = description["epochs"][0] + 1  # which may have been validated more than once
    loss.plot(epoch, history["train_loss"], "o-", color=BLUE, markersize=4, label="training")
    loss.plot(epoch, history["val_loss"], "s-", color=ORANGE, markersize=4, label="validation")
    calibrated = history["val_calibrated_loss"]
    loss.plot(epoch, calibrated, "^--", color=VERMILION, markersize=4, label="validation, calibrated")
    loss.set(ylabel="cross-entropy [nats]", ylim=(0, None))
    accuracy.plot(epoch, history["val_acc"], "s-", color=ORANGE, markersize=4)
    accuracy.set(ylabel="validation accuracy")
    rate.plot(epoch, history["learning_rate"], "o-", color=GREEN, markersize=4)
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, accuracy, rate):
        axes.axvline(kept, color=GREY, linestyle=":", linewidth=1.5)
    loss.legend()
    figure.align_ylabels()
    networks, folds = len(description["epochs"]), description["validation_folds"]
    which = f", first of {networks} networks" if networks > 1 else ""
    count = f"n = {details['val']['images']} validation images of {details['val']['lesions']} lesions"
    describe(
        figure, f"Training: epoch {kept} of {len(history)} was kept{which}",
        f"{f'Validation images: fold {folds[0]}' if folds else count}. Dotted: the best epoch on them.",
    )  # fmt: skip
    return figure
