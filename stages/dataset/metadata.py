"""The metadata table of a dataset in HAM10000's layout: read, and checked row by row."""

import csv
import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from stages.dataset.taxonomy import DIAGNOSES
from stages.errors import InputError

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
OPTIONAL_COLUMNS = ["dataset"]
UNKNOWN = "unknown"

# Ids become file names, table cells and HTML: nothing in them may mean anything there.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./()-]{0,99}")


def find_metadata(data_dir: Path) -> Path:
    """The metadata table in `data_dir`: `HAM10000_metadata.csv`, else the only CSV file there.

    Raises:
        InputError: `data_dir` is no folder, or it is not clear which file is the table.
    """
    if not data_dir.is_dir():
        raise InputError(f"data.data_dir is {str(data_dir)!r}; there is no such folder")
    # The repository that publishes HAM10000 names the file without an ending.
    for name in ("HAM10000_metadata.csv", "HAM10000_metadata"):
        if (data_dir / name).is_file():
            return data_dir / name
    tables = sorted(data_dir.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "no CSV file"
        raise InputError(f"{data_dir} must hold HAM10000_metadata.csv; found {found}")
    return tables[0]


def read_metadata(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the table and check every row.

    Returns:
        The rows without a problem in the file's order, columns `COLUMNS` and `OPTIONAL_COLUMNS` (age in years, NaN
        where unknown), and one line for each problem, with its row as a spreadsheet numbers it.

    Raises:
        InputError: the file is not a table with the right columns, so that its rows cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            # Rows, not lines: a quoted field may hold a line break.
            lines = [(number, line) for number, line in enumerate(reader, start=2) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from None
    _check_header(path, header)

    problems, rows = [], []
    for number, line in lines:
        if len(line) != len(header):
            problems.append(f"{path.name} row {number}: {len(line)} fields; the header has {len(header)}")
            continue
        row = dict.fromkeys(OPTIONAL_COLUMNS, UNKNOWN) | dict(zip(header, (field.strip() for field in line)))
        row_problems = _row_problems(row)
        problems += [f"{path.name} row {number}: {problem}" for problem in row_problems]
        if not row_problems:
            row["age"] = float(row["age"]) if row["age"] else math.nan
            rows.append({"row": number, **row})
    if not lines:
        problems.append(f"{path.name}: no rows; one for each image is needed")
    table = pd.DataFrame(rows, columns=["row", *COLUMNS, *OPTIONAL_COLUMNS])
    problems += [f"{path.name} {problem}" for problem in _table_problems(table)]
    return table.drop(columns="row"), problems


def _check_header(path: Path, header: list[str]) -> None:
    problems = [f"column {name} is missing" for name in COLUMNS if name not in header]
    problems += [f"column {name!r} is not known" for name in header if name not in COLUMNS + OPTIONAL_COLUMNS]
    problems += [f"column {name} stands twice" for name, count in Counter(header).items() if count > 1]
    if problems:
        expected = f"expected are {', '.join(COLUMNS)} and, if you have it, {', '.join(OPTIONAL_COLUMNS)}"
        raise InputError(f"{path}: {'; '.join(problems)}; {expected}")


def _row_problems(row: dict[str, str]) -> list[str]:
    problems = []
    for column in ("image_id", "lesion_id"):
        if not _ID.fullmatch(row[column]):
            problems.append(f"{column} is {row[column]!r}; it must be letters, digits, '_', '-' and '.'")
    if row["dx"] not in DIAGNOSES:
        problems.append(f"unknown diagnosis {row['dx']!r}; dx must be one of {', '.join(DIAGNOSES)}")
    for column in ("dx_type", "sex", "localization", "dataset"):
        row[column] = row[column] or UNKNOWN
        if not _TEXT.fullmatch(row[column]):
            problems.append(f"{column} is {row[column]!r}; it must be plain words")
    if row["age"]:
        try:
            valid = 0 <= float(row["age"]) <= 120
        except ValueError:
            valid = False
        if not valid:
            problems.append(f"age is {row['age']!r}; it must be years from 0 to 120, or empty")
    return problems


def _table_problems(table: pd.DataFrame) -> list[str]:
    problems = []
    first_rows: dict[str, int] = {}
    for row, image_id in zip(table["row"], table["image_id"]):
        if image_id in first_rows:
            problems.append(f"row {row}: image_id {image_id} stands in row {first_rows[image_id]} already")
        first_rows.setdefault(image_id, row)
    diagnoses: dict[str, str] = {}
    for row, lesion_id, dx in zip(table["row"], table["lesion_id"], table["dx"]):
        if diagnoses.setdefault(lesion_id, dx) != dx:
            problems.append(f"row {row}: lesion {lesion_id} is {dx} here and {diagnoses[lesion_id]} above")
    return problems


def subsample_lesions(table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Keep about `fraction` of the lesions of each diagnosis, whole, at least one of each.

    Lesions are ranked by a hash of their id: no seed to choose, a smaller fraction is a subset of a larger one, and
    a lesion added to the dataset displaces few others.
    """
    lesions = table[["lesion_id", "dx"]].drop_duplicates()
    rank = lesions["lesion_id"].map(lambda lesion_id: hashlib.sha256(lesion_id.encode()).hexdigest())
    lesions = lesions.assign(rank=rank).sort_values("rank")
    kept = [
        lesion_id
        for _, same_dx in lesions.groupby("dx")
        for lesion_id in same_dx["lesion_id"].head(max(1, round(fraction * len(same_dx))))
    ]
    return table[table["lesion_id"].isin(kept)].reset_index(drop=True)
