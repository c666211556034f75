"""Sources: the datasets in a folder of several, what each says of itself, and their ids told apart."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

import pandas as pd
import pydantic.dataclasses

from stages.checks import Flag
from stages.config import PARAMETERS, Names, read_yaml
from stages.dataset.images import TABLES, files_below, is_image
from stages.dataset.metadata import ID, read_header
from stages.errors import InputError

SETTINGS = "dataset.yaml"


@pydantic.dataclasses.dataclass(frozen=True, config=PARAMETERS)
class DatasetSettings:
    """What a dataset's own `dataset.yaml` says.

    Attributes:
        columns: as `data.columns`, before which it goes.
        classes: as `data.classes`, likewise.
        train_only: never validated or tested on.
    """

    columns: Names = field(default_factory=dict)
    classes: Names = field(default_factory=dict)
    train_only: Flag = False


def read_settings(folder: Path) -> DatasetSettings:
    """Read a dataset's settings, which need not be there.

    Raises:
        InputError: the file has unknown or disallowed entries, each of them named.
    """
    path = folder / SETTINGS
    return (read_yaml(path, DatasetSettings | None) if path.exists() else None) or DatasetSettings()


def find_datasets(data_dir: Path) -> list[Path]:
    """The datasets in a folder of several, in the order of their names; else the folder itself.

    A folder of several has neither tables nor images nor archives at its top, but folders, of which one has a
    `dataset.yaml`, or each a table and images, the tables not all of the same columns: such are parts of one dataset.

    Raises:
        InputError: a dataset's name cannot stand before an id.
    """
    if not data_dir.is_dir():
        return [data_dir]  # reading it says what is wrong
    # By their names alone: there may be a million files.
    top = sorted(path for path in data_dir.iterdir() if not path.name.startswith("."))
    if any(path.name == SETTINGS or _is_table(path) or _is_picture(path) for path in top):
        return [data_dir]
    datasets = [path for path in top if path.is_dir()]
    if not any((path / SETTINGS).is_file() for path in datasets):
        headers = set()
        for path in datasets:
            files = files_below(path, [])
            tables = [file for file in files if _is_table(file)]
            if not tables or not any(map(_is_picture, files)):
                return [data_dir]
            headers.add(frozenset(tuple(read_header(table)) for table in tables))
        if len(headers) < 2:
            return [data_dir]
    if wrong := [path.name for path in datasets if not ID.fullmatch(path.name)]:
        rule = "letters, digits, '_', '-' and '.'"
        raise InputError(f"{data_dir} holds the dataset {wrong[0]!r}; rename its folder: the name must be {rule}")
    return datasets


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES or path.name == "HAM10000_metadata"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".zip" or is_image(path.name)


def tell_apart(data_dir: Path, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables of several datasets, with the dataset's name as `dataset`, and no id in two of them.

    An image or a lesion whose id a dataset before it has gets the name of its own in front of it.

    Raises:
        InputError: there is an image or a lesion that has this id already.
    """
    taken: dict[str, set[str]] = {"image_id": set(), "lesion_id": set()}
    result = {}
    for name, table in tables.items():
        result[name] = told = table.assign(dataset=name)
        for column, ids in taken.items():
            told[column] = table[column].where(~table[column].isin(ids), f"{name}." + table[column])
            if again := set(told[column][told[column] != table[column]]) & (set(table[column]) | ids):
                raise InputError(f"{data_dir / name}: {column} {min(again)} would be that of two; rename the folder")
            ids |= set(told[column])
    return result
