"""What Git has of a revision: metrics, parameters and curves, which are there without any DVC remote."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.commands.compare import WORKSPACE, RevisionFiles, one_line, parameters_in
from stages.config import PARAMS
from stages.errors import InputError
from stages.files import DETAILS, ENVIRONMENT, EVALUATION, PLOTS, SPLIT_METRICS

CURVES = {
    "roc": ["fpr", "tpr", "lower", "upper"],
    "precision_recall": ["recall", "precision", "lower", "upper"],
    "reliability": ["predicted", "observed", "lower", "upper"],
    "confusion_matrix": ["actual", "predicted"],
}
# What metrics/environment.json tells of the run; all else in it says on what it ran.
OF_THE_RUN = {"commit", "dirty", "training_images_per_second", "training_seconds"}


class Snapshot(NamedTuple):
    """What Git has of a revision.

    Attributes:
        name: as it was given.
        metrics: by name `{"value", "interval"}`, of the test images; no interval in a commit that has none.
        details: the content of metrics/details.json; empty if there is none.
        parameters: the entries of params.yaml by dotted name.
        split: the content of metrics/split.json; empty if there is none.
        environment: the content of metrics/environment.json; empty if there is none.
        curves: the tables of `CURVES` that there are.
    """

    name: str
    metrics: dict[str, dict]
    details: dict
    parameters: dict[str, Any]
    split: dict
    environment: dict
    curves: dict[str, pd.DataFrame]


def read_snapshot(name: str) -> Snapshot:
    """Read what Git has of a revision, or the same files of the workspace.

    Args:
        name: a commit, branch, tag or experiment, or "workspace".

    Raises:
        InputError: there is no such revision, or one of its files is damaged.
    """
    read = _read_here if name == WORKSPACE else RevisionFiles(name).read
    details = _json(read, name, DETAILS)
    evaluation = {metric: {"value": value, "interval": None} for metric, value in _json(read, name, EVALUATION).items()}
    curves = {curve: _table(read, name, PLOTS / f"{curve}.csv", columns) for curve, columns in CURVES.items()}
    return Snapshot(
        name=name,
        metrics=details["test"]["metrics"] if "test" in details else evaluation,
        details=details,
        parameters=parameters_in(read(PARAMS)),
        split=_json(read, name, SPLIT_METRICS),
        environment=_json(read, name, ENVIRONMENT),
        curves={curve: table for curve, table in curves.items() if table is not None},
    )


def environment_differences(base: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    """Where two runs computed differently equipped: both values of each such entry of metrics/environment.json."""
    keys = sorted((base | new).keys() - OF_THE_RUN)
    return {key: (base.get(key), new.get(key)) for key in keys if base.get(key) != new.get(key)}


def _read_here(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _json(read: Callable[[Path], bytes | None], revision: str, path: Path) -> dict:
    try:
        return json.loads(read(path) or b"{}")
    except ValueError as error:
        raise InputError(f"{revision}:{path.as_posix()} is not JSON ({error}); `dvc repro` makes it again") from None


def _table(read: Callable[[Path], bytes | None], revision: str, path: Path, columns: list[str]) -> pd.DataFrame | None:
    content = read(path)
    if content is None:
        return None
    try:
        return pd.read_csv(io.BytesIO(content))[columns]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{revision}:{path.as_posix()} is not a table this pipeline wrote ({one_line(error)}); "
            "`dvc repro` makes it again"
        ) from None
