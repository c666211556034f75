"""The metadata table of a dataset: found, read, and checked row by row."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.dataset.taxonomy import DIAGNOSES
from stages.dataset.translation import (
    COLUMNS,
    GROUND_TRUTH,
    LONGEST,
    MOST_SHOWN,
    OPTIONAL_COLUMNS,
    UNKNOWN,
    check_mappings,
    diagnosis_of,
    fill_lesion_ids,
    is_foreign,
    read_rows,
    translate,
)
from stages.errors import InputError

# Ids become file names, table cells and HTML: nothing in them may mean anything there.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_AGE = re.compile(r"[0-9]{1,3}(\.[0-9]*)?")  # float() takes 5_5 and Arabic digits, too
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./()-]{0,99}")


def find_metadata(data_dir: Path) -> Path:
    """The metadata table in `data_dir`: `HAM10000_metadata.csv`, else the only CSV file there.

    A table of diagnoses as the ISIC challenges publish it, `…_GroundTruth.csv`, may lie beside the only other one.

    Raises:
        InputError: `data_dir` is no folder, or it is not clear which file is the table.
    """
    if not data_dir.is_dir():
        raise InputError(f"data.data_dir is {str(data_dir)!r}; there is no such folder")
    # The repository that publishes HAM10000 names the file without an ending.
    for name in ("HAM10000_metadata.csv", "HAM10000_metadata"):
        if (data_dir / name).is_file():
            return data_dir / name
    tables = sorted(path for path in data_dir.glob("*.csv") if path.is_file())
    others = [table for table in tables if not table.name.endswith(GROUND_TRUTH)]
    if len(tables) == 2 and len(others) == 1:
        return others[0]
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "no CSV file"
        raise InputError(f"{data_dir} must hold one CSV table, or HAM10000_metadata.csv among several; found {found}")
    return tables[0]


def read_metadata(
    path: Path, columns: Mapping[str, str | None] | None = None, classes: Mapping[str, str | None] | None = None
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read the table, translate it, and check every row.

    A table with the columns of HAM10000 must have all of them and no others. One with column names of the ISIC
    challenges, or with `columns`, needs an image id and a diagnosis; what else it lacks is unknown, and what is not
    known in it is passed over. Its diagnoses may lie beside it, in `…_GroundTruth.csv`.

    Args:
        path: the table.
        columns: its name of each of `COLUMNS`, `OPTIONAL_COLUMNS` and `PATIENT` that has another; None: it has none.
        classes: the diagnosis of each of its labels that is none; None: leave the label's images out.

    Returns:
        The rows without a problem in the file's order, columns `COLUMNS` and `OPTIONAL_COLUMNS` (age in years, NaN
        where unknown); one line for each problem, with its row as a spreadsheet numbers it; and one line for each
        thing that the user should know.

    Raises:
        InputError: the file is not a table with the right columns, so that its rows cannot be read, or `columns` or
            `classes` is wrong.
    """
    columns, classes = columns or {}, classes or {}
    check_mappings(columns, classes)
    header, rows, problems = read_rows(path)
    notes: list[str] = []
    by_patient = False
    if foreign := bool(columns) or is_foreign(header):
        rows, more = translate(path, header, rows, columns)
        problems += more
        by_patient, notes = fill_lesion_ids(path, rows)
    else:
        _check_header(path, header)
    if not rows and not problems:
        problems.append(f"{path.name}: no rows; one for each image is needed")

    kept, left_out, unknown = [], Counter(), {}
    for number, row in rows:
        row = dict.fromkeys(OPTIONAL_COLUMNS, UNKNOWN) | row
        label = row["dx"]
        if classes.get(label, "") is None:
            left_out[label] += 1
            continue
        row["dx"] = classes.get(label) or diagnosis_of(label, foreign)
        row_problems = _row_problems(row)
        problems += [f"{path.name} row {number}: {problem}" for problem in row_problems]
        if row["dx"] is None:
            unknown.setdefault(label, []).append(number)
        elif not row_problems:
            row["age"] = float(row["age"]) if row["age"] else math.nan
            kept.append({"row": number, **row})
    problems += [f"{path.name} {_unknown_label(label, numbers)}" for label, numbers in unknown.items()]
    if left_out:
        counts = ", ".join(f"{label!r} {count}" for label, count in sorted(left_out.items()))
        images = f"{left_out.total()} image{'s' * (left_out.total() != 1)}"
        notes.append(f"{path.name}: left out {images} that data.classes maps to null: {counts}")
    table = pd.DataFrame(kept, columns=["row", *COLUMNS, *OPTIONAL_COLUMNS])
    problems += [f"{path.name} {problem}" for problem in _table_problems(table, by_patient)]
    return table.drop(columns="row"), problems, notes


def _check_header(path: Path, header: list[str]) -> None:
    """Check the header of a table that has HAM10000's columns."""
    problems = [f"column {name} is missing" for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL_COLUMNS]
    problems += [f"column {name[:LONGEST]!r} is not known" for name in unknown[:MOST_SHOWN]]
    if problems:
        expected = f"expected are {', '.join(COLUMNS)} and, if you have it, {', '.join(OPTIONAL_COLUMNS)}"
        renamed = "data.columns must name yours, as {lesion_id: null} for one that is not there"
        raise InputError(f"{path}: {'; '.join(problems)}; {expected}, or {renamed}")


def _unknown_label(label: str, rows: list[int]) -> str:
    key = label if _TEXT.fullmatch(label) else repr(label)
    return (
        f"row {rows[0]}: unknown diagnosis {label!r}; dx must be one of {', '.join(DIAGNOSES)}: data.classes can say "
        f"which, as {{{key}: nv}}, or {{{key}: null}} to leave out the images so labelled ({len(rows)})"
    )


def _row_problems(row: dict[str, str]) -> list[str]:
    problems = []
    for column in ("image_id", "lesion_id"):
        if not _ID.fullmatch(row[column]):
            problems.append(f"{column} is {row[column]!r}; it must be letters, digits, '_', '-' and '.'")
    for column in ("dx_type", "sex", "localization", "dataset"):
        row[column] = row[column] or UNKNOWN
        if not _TEXT.fullmatch(row[column]):
            problems.append(f"{column} is {row[column]!r}; it must be plain words")
    if row["age"] and not (_AGE.fullmatch(row["age"]) and float(row["age"]) <= 120):
        problems.append(f"age is {row['age']!r}; it must be years from 0 to 120, or empty")
    return problems


def _table_problems(table: pd.DataFrame, by_patient: bool) -> list[str]:
    problems = []
    first_rows: dict[str, int] = {}
    for row, image_id in zip(table["row"], table["image_id"]):
        if image_id in first_rows:
            problems.append(f"row {row}: image_id {image_id} stands in row {first_rows[image_id]} already")
        first_rows.setdefault(image_id, row)
    if by_patient:  # a patient may have several diagnoses
        return problems
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
