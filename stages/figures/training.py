"""Pictures of the course of training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.figures.style import BLUE, GREEN, GREY, ORANGE, new_figure


def draw_training_curves(history: pd.DataFrame) -> Figure:
    """Loss, validation accuracy and learning rate against the epoch; the epoch that was kept is marked.

    Args:
        history: columns epoch, train_loss, val_loss, val_acc and learning_rate.
    """
    figure, (loss, accuracy, rate) = new_figure(6, 8, rows=3, sharex=True, gridspec_kw={"height_ratios": [2, 2, 1]})
    epoch = history["epoch"]
    kept = epoch[history["val_loss"].idxmin()]
    loss.plot(epoch, history["train_loss"], "o-", color=BLUE, markersize=4, label="training")
    loss.plot(epoch, history["val_loss"], "s-", color=ORANGE, markersize=4, label="validation")
    loss.set(ylabel="cross-entropy [nats]", ylim=(0, None))
    loss.set_title(f"Training: epoch {kept} of {len(history)} was kept")
    accuracy.plot(epoch, history["val_acc"], "s-", color=ORANGE, markersize=4, label="validation")
    accuracy.set(ylabel="accuracy")
    rate.plot(epoch, history["learning_rate"], "o-", color=GREEN, markersize=4)
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, accuracy, rate):
        axes.axvline(kept, color=GREY, linestyle=":", linewidth=1.5)
    loss.legend()
    return figure
