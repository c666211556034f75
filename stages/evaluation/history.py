"""The course of training, from what DVCLive logged."""

from pathlib import Path

import pandas as pd

from stages.errors import regenerate
from stages.files import read_csv

CURVES = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_calibrated_loss": "val/calibrated_loss",
    "val_acc": "val/acc",
    "learning_rate": "learning_rate",
}


def read_history(training_metrics: Path) -> pd.DataFrame:
    """One row per epoch: epoch (from 1), the losses (nats), val_acc (fraction) and learning_rate, as in `CURVES`.

    Of an epoch with several validations, the last counts.

    Raises:
        InputError: DVCLive wrote no such curves.
    """
    folder = training_metrics / "plots" / "metrics"
    curves = {name: _curve(folder / f"{path}.tsv") for name, path in CURVES.items()}
    steps = pd.Series(curves["train_loss"]["step"])
    columns = {name: _at_epoch_ends(curve, steps) for name, curve in curves.items()}
    return pd.DataFrame({"epoch": range(1, len(steps) + 1), **{name: list(values) for name, values in columns.items()}})


def _at_epoch_ends(curve: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """The values of a curve at the ends of the epochs."""
    if len(curve) == len(steps):  # also where an epoch is one step: DVCLive writes step 0 as a later one
        return pd.Series(curve["value"])
    return pd.Series(pd.merge_asof(steps.sort_values().to_frame(), curve.sort_values("step"), on="step")["value"])


def _curve(path: Path) -> pd.DataFrame:
    """Columns step, of the training, and value."""
    table = read_csv(path, ["step"], separator="\t", dtype=str)
    try:
        values = table.iloc[:, -1].map(float)  # a value that is not a number is logged as nan, which stays text
        steps = table["step"].astype(int)
    except (ValueError, OverflowError) as error:
        raise regenerate(f"{path} is not a curve of numbers ({error})") from None
    # DVCLive writes step 0 as a later one.
    if table.empty or table.shape[1] < 2 or not steps.iloc[1:].is_monotonic_increasing:
        raise regenerate(f"{path} is not a curve over rising steps")
    return pd.DataFrame({"step": steps, "value": values})
