"""The course of training, from what DVCLive logged."""

from pathlib import Path

import pandas as pd

from stages.errors import InputError
from stages.files import read_csv

CURVES = {"train_loss": "train/loss", "val_loss": "val/loss", "val_acc": "val/acc"}


def read_history(training_metrics: Path) -> pd.DataFrame:
    """One row an epoch: epoch (from 1), train_loss and val_loss (nats), val_acc (fraction) and learning_rate.

    Raises:
        InputError: DVCLive wrote no such curves.
    """
    folder = training_metrics / "plots" / "metrics"
    rates = sorted(folder.glob("lr-*.tsv")) + sorted(folder.glob("lr-*/*.tsv"))
    if not rates:
        raise InputError(f"{folder} has no curve of the learning rate; `dvc repro` makes it again")
    columns = {name: _curve(folder / f"{path}.tsv") for name, path in CURVES.items()}
    # The parameter groups differ in weight decay only.
    columns["learning_rate"] = _curve(rates[0])
    history = pd.DataFrame(columns)
    history.insert(0, "epoch", range(1, len(history) + 1))
    return history


def _curve(path: Path) -> pd.Series:
    values = read_csv(path, ["step"], separator="\t").iloc[:, -1]
    try:
        return values.map(float)  # a diverged epoch is logged as nan, which `read_csv` leaves as text
    except ValueError as error:
        raise InputError(f"{path} is not a curve of numbers ({error}); `dvc repro` makes it again") from None
