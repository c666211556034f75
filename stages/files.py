"""The files that pass between the stages: where they are, and writers that are atomic and byte-stable.

Paths are relative to the repository's root, where DVC runs the stages.
"""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.checks import checked
from stages.errors import DiskFullError, no_space, printable, regenerate

if TYPE_CHECKING:
    import pandas as pd

PREPARED = Path("data/prepared")
SPLIT = Path("data/split.csv")
PREDICTIONS = Path("data/predictions.csv")
GRADCAM = Path("data/gradcam")
AUGMENTED = Path("data/augmented.npy")
MODELS = Path("models")
MODEL_CARD = Path("models/model_card.md")
MODEL_DESCRIPTION = Path("models/model.json")
MODEL_WEIGHTS = Path("models/model.safetensors")
SPLIT_METRICS = Path("data/split.json")
TRAINING_METRICS = Path("data/training")
# No DVC output: of the same weights, made on another machine, it stays as it is.
ENVIRONMENT = Path("metrics/environment.json")
EVALUATION = Path("metrics/evaluation.json")
DETAILS = Path("data/details.json")
PLOTS = Path("plots")
TABLES = Path("plots/tables")
PICTURES = Path("plots/pictures")
REPORT = Path("plots/report.html")
# What Git holds beside dvc.lock, for people and for other commits to read: copies that `publish` makes. DVC restores a
# stage from its run cache only if it keeps all outputs of the stage itself, and what it keeps cannot be in Git.
PUBLISHED = {
    SPLIT_METRICS: Path("metrics/split.json"),
    TRAINING_METRICS: Path("metrics/training"),
    PREDICTIONS: Path("metrics/predictions.csv"),
    DETAILS: Path("metrics/details.json"),
    MODEL_CARD: Path("models/README.md"),
}
# No DVC output: `dvc` deletes a stage's outputs before it runs, and checkpoints must outlive that.
CHECKPOINTS = Path("checkpoints")
PROFILES = Path("profiles")
WANDB = Path("wandb")
LOGS = Path("logs")  # of the loggers tensorboard, mlflow and csv

# They stay text: the lesion "007" is not 7, and a dataset may be called "2018".
TEXT_COLUMNS = (
    "image_id",
    "lesion_id",
    "dx",
    "dx_type",
    "sex",
    "localization",
    "dataset",
    "skin_type",
    "split",
    "label",
    "decided",
    "case",
)
DECIMALS = 8  # of numbers in tables: ranks of confident predictions differ in late decimals only
JSON_DECIMALS = 6  # of metrics


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write a file or fill a folder at; it replaces `path` only if the block succeeds.

    If the block raises, nothing is left of it and `path` is as it was. The next call clears what a killed process left.

    Raises:
        DiskFullError: there is no space for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        if path.is_dir() or partial.is_dir():
            _remove(path)
        partial.replace(path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, Exception) and (full := no_space(error)) is not None:
            raise DiskFullError(path, full.strerror) from None
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # of a link, what it leads to stays
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(content: bytes) -> str:
    """The MD5 of a file's content, as DVC has it in dvc.lock."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` with sorted keys and rounded floats, the same bytes for the same content.

    Floats have `JSON_DECIMALS` decimals. Those with as many significant digits stay as they are: a threshold of 9e-7 is
    neither 0 nor 1e-6.
    """
    text = json.dumps(_rounded(content), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return content if float(f"{content:.{JSON_DECIMALS}g}") == content else round(content, JSON_DECIMALS)
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return content


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as a .npy file."""
    # NumPy writes to real files by itself, and does not say why it cannot.
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    with replacing(path) as partial:
        partial.write_bytes(content.getbuffer())


def read_array(path: Path) -> np.ndarray:
    """Read an array that an earlier stage wrote.

    Raises:
        InputError: the file is missing, or holds no array.
    """
    # A header is parsed as Python, and fails with whatever Python has for it.
    with _made_by_the_pipeline(path, "not an array", Exception), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` without its index, floats with `DECIMALS` digits and `\\n` line ends on every platform."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n", encoding="utf-8")


def read_csv(path: Path, columns: list[str], separator: str = ",", dtype: Any = None) -> "pd.DataFrame":
    """Read a table that an earlier stage wrote.

    Args:
        path: the file.
        columns: that it must have, among others.
        separator: between two fields.
        dtype: str leaves numbers as they are written: pandas before 3.1 takes some with 16 digits for their neighbours.

    Raises:
        InputError: the file is missing, is not a table, or lacks one of `columns`.
    """
    import pandas as pd

    with _made_by_the_pipeline(path, "not a table this pipeline wrote"):
        # Only empty fields are missing values: a lesion may well be called "NA".
        types: Any = dtype or dict.fromkeys(TEXT_COLUMNS, str)
        table = pd.read_csv(path, sep=separator, dtype=types, keep_default_na=False, na_values=[""], encoding="utf-8")
    if missing := [column for column in columns if column not in table.columns]:
        raise regenerate(f"{path} lacks the column {', '.join(missing)}")
    return table


def read_json(path: Path, kind: Any = dict) -> Any:
    """Read a JSON file that an earlier stage wrote.

    Args:
        path: the file.
        kind: the pydantic type that it holds.

    Raises:
        InputError: the file is missing, not JSON, or holds something else; every value that is wrong is named.
    """
    with _made_by_the_pipeline(path, "not JSON"):
        content = parse_json(path.read_bytes())
    try:
        return checked(content, kind)
    except ValueError as error:
        raise regenerate(f"{path}: {error}") from None


def parse_json(content: bytes) -> Any:
    """What a JSON file holds, as Python takes it: NaN and infinite numbers too.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(content.decode("utf-8"), parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole_number(text: str) -> float | int:
    """Infinite where no float holds it, as 1e999 is: computing with it would fail."""
    return int(text) if math.isfinite(float(text)) else float(text)


@contextmanager
def _made_by_the_pipeline(
    path: Path, wrong: str, errors: type[Exception] | tuple[type[Exception], ...] = (OSError, ValueError)
) -> Iterator[None]:
    """Say what to do where a block cannot read the file at `path`; pandas' own errors are ValueErrors."""
    try:
        yield
    except FileNotFoundError:
        raise regenerate(f"{path} does not exist") from None
    except errors as error:
        raise regenerate(f"{path} is {wrong} ({printable(error)})") from None
