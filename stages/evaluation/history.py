"""The course of training, from what DVCLive logged."""

from pathlib import Path

import pandas as pd

from stages.errors import InputError
from stages.files import read_csv

CURVES = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_acc": "val/acc",
    "learning_rate": "learning_rate",
}


def read_history(training_metrics: Path) -> pd.DataFrame:
    """One row an epoch: epoch (from 1), train_loss and val_loss (nats), val_acc (fraction) and learning_rate.

    Of an epoch with several validations, the last counts.

    Raises:
        InputError: DVCLive wrote no such curves.
    """
    folder = training_metrics / "plots" / "metrics"
    curves = {name: _curve(folder / f"{path}.tsv", name) for name, path in CURVES.items()}
    history = curves["train_loss"]
    for name in list(CURVES)[1:]:
        history = pd.merge_asof(history, curves[name], on="step")
    history = history.drop(columns="step")
    history.insert(0, "epoch", range(1, len(history) + 1))
    return history


def _curve(path: Path, name: str) -> pd.DataFrame:
    """Columns step, of the training, and `name`; of values of one step, the last."""
    table = read_csv(path, ["step"], separator="\t")
    try:
        values = table.iloc[:, -1].map(float)  # a value that is no number is logged as nan, which stays text
        steps = table["step"].astype(int)
    except ValueError as error:
        raise InputError(f"{path} is not a curve of numbers ({error}); `dvc repro` makes it again") from None
    return pd.DataFrame({"step": steps, name: values}).drop_duplicates("step", keep="last")
