"""The metadata table of a dataset: found, its columns and labels translated into HAM10000's, checked row by row."""

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.dataset.images import EXTENSIONS
from stages.dataset.taxonomy import Diagnosis, fold, meanings_of
from stages.errors import InputError

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
OPTIONAL_COLUMNS = ["dataset"]
PATIENT = "patient_id"  # groups images where there is no lesion_id
OURS = [*COLUMNS, *OPTIONAL_COLUMNS, PATIENT]
UNKNOWN = "unknown"
MISSING = {"", "na", "n/a", "nan", "none", "null", UNKNOWN}  # how a cell says that it is empty, in any case

# Our columns under the names of the ISIC challenges of 2019 and 2020.
ISIC_COLUMNS = {
    "image": "image_id",
    "image_name": "image_id",
    "diagnosis": "dx",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "anatom_site_general_challenge": "localization",
}
BITS = ("0", "0.0", "1", "1.0")  # in tables that have a column for each diagnosis, with a 1 in one of them
GROUND_TRUTH = "_GroundTruth.csv"
MOST_SHOWN = 30  # columns in a message
LONGEST = 100  # characters of a column's name there

# Ids become file names, table cells and HTML: nothing in them may mean anything there.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./()-]{0,99}")
_AGE = re.compile(r"[0-9]{1,3}(\.[0-9]*)?")  # float() takes 5_5 and Arabic digits, too
_RULES = [
    (("image_id", "lesion_id"), _ID.fullmatch, "letters, digits, '_', '-' and '.'"),
    (("dx_type", "sex", "localization", "dataset"), _TEXT.fullmatch, "plain words"),
    (
        ("age",),
        lambda cell: not cell or (_AGE.fullmatch(cell) and float(cell) <= 120),
        "years from 0 to 120, or empty",
    ),
]

Rows = list[tuple[int, dict[str, str]]]  # a row's number, as a spreadsheet counts, and its cells by column


def find_metadata(data_dir: Path) -> Path:
    """The metadata table in `data_dir`: `HAM10000_metadata.csv`, else the only CSV file there.

    A table of diagnoses as the ISIC challenges publish it, `…_GroundTruth.csv`, may lie beside the only other one.

    Raises:
        InputError: `data_dir` is not a directory, or it is not clear which file is the table.
    """
    if not data_dir.is_dir():
        raise InputError(f"data.data_dir is {str(data_dir)!r}; there is no such directory")
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
    path: Path,
    taxonomy: Mapping[str, Diagnosis],
    columns: Mapping[str, str | None] | None = None,
    classes: Mapping[str, str | None] | None = None,
    *,
    only_known: bool = False,
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read the table, translate it, and check every row.

    A table with the columns of HAM10000 must have all of them and no others. One with column names of the ISIC
    challenges, or with `columns`, needs an image id and a diagnosis; what else it lacks is unknown, and what is not
    known in it is ignored. Its diagnoses may lie beside it, in `…_GroundTruth.csv`.

    Args:
        path: the table.
        taxonomy: the diagnoses that there are, by their codes.
        columns: its name of each of `OURS` that has another; None: it has none.
        classes: the diagnosis of each of its labels that is none; None: leave the label's images out.
        only_known: leave out images of diagnoses that there are not; else these are a problem.

    Returns:
        The rows without a problem in the file's order, columns `COLUMNS` and `OPTIONAL_COLUMNS` (age in years, NaN
        where unknown); one line for each problem, with its row as a spreadsheet numbers it; and one line for each
        thing that the user should know.

    Raises:
        InputError: the file is not a table with the right columns, so that its rows cannot be read, or `columns` or
            `classes` is wrong.
    """
    columns, classes, meanings = columns or {}, classes or {}, meanings_of(taxonomy)
    _check_mappings(columns, classes, taxonomy)
    header, rows, problems = _read_rows(path)
    foreign = bool(columns) or any(name in ISIC_COLUMNS or fold(name) in meanings or name == PATIENT for name in header)
    if not foreign:
        _check_header(path, header)
    names = _column_names(path, header, columns)
    has_labels = "dx" in names or any(fold(name) in meanings for name in header)
    truth = None if has_labels else _ground_truth_beside(path)
    if truth:
        labels, more = _labels_beside(truth, path, rows, names["image_id"], meanings)
    else:
        labels, more = _labels(path, header, rows, names, meanings)
    problems += more
    translated = [(number, _translate(row, names, labels[number])) for number, row in rows if number in labels]
    by_patient, notes = _fill_lesion_ids(path, translated) if foreign else (False, [])
    if not rows and not problems:
        problems.append(f"{path.name}: no rows; one for each image is needed")

    kept, left_out, unknown = [], Counter(), {}
    for number, row in translated:
        label = row["dx"]
        if classes.get(label, "") is None:
            left_out[label] += 1
            continue
        row_problems = [
            f"{path.name} row {number}: {name} is {row[name]!r}; it must be {expected}"
            for names_of_rule, is_valid, expected in _RULES
            for name in names_of_rule
            if not is_valid(row[name])
        ]
        problems += row_problems
        diagnosis = classes.get(label) or meanings.get(fold(label))
        if diagnosis is None:
            unknown.setdefault(label, []).append(number)
        elif not row_problems:
            kept.append({"row": number, **row, "dx": diagnosis, "age": float(row["age"] or math.nan)})
    if only_known and unknown:
        which = f"whose diagnosis is none of {', '.join(taxonomy)}"
        notes.append(_left_out(path, {label: len(numbers) for label, numbers in unknown.items()}, which))
        if not kept and not problems:
            problems.append(f"{notes.pop()}; no image is left: name theirs with --classes or --taxonomy")
    else:
        problems += [f"{path.name} {_unknown_label(label, numbers, taxonomy)}" for label, numbers in unknown.items()]
    if left_out:
        notes.append(_left_out(path, left_out, "that data.classes maps to null"))
    problems += [f"{path.name} {problem}" for problem in _contradictions(kept, by_patient)]
    return pd.DataFrame(kept, columns=pd.Index([*COLUMNS, *OPTIONAL_COLUMNS])), problems, notes


def _check_mappings(
    columns: Mapping[str, str | None], classes: Mapping[str, str | None], taxonomy: Mapping[str, Diagnosis]
) -> None:
    problems = [
        f"data.columns.{name} is not a column of ours; those are {', '.join(OURS)}"
        for name in columns
        if name not in OURS
    ]
    problems += [
        f"data.classes maps {label!r} to {dx!r}; it must be one of {', '.join(taxonomy)}, or null to leave it out"
        for label, dx in classes.items()
        if dx is not None and dx not in taxonomy
    ]
    if problems:
        raise InputError("\n  ".join(problems))


def _read_rows(path: Path) -> tuple[list[str], Rows, list[str]]:
    """The header of a CSV file, its rows, and a line for each row that does not fit the header."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {line}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header, rows, problems = next(reader, []), [], []
        # Rows, not lines: a quoted field may hold a line break.
        for number, fields in enumerate(reader, start=2):
            if len(fields) == len(header):
                rows.append((number, dict(zip(header, (field.strip() for field in fields)))))
            elif fields:
                problems.append(f"{path.name} row {number}: {len(fields)} fields; the header has {len(header)}")
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {reader.line_num}") from None
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{path}: column {', '.join(name[:LONGEST] for name in repeated[:MOST_SHOWN])} is duplicated")
    return header, rows, problems


def _check_header(path: Path, header: list[str]) -> None:
    """Check the header of a table that has HAM10000's columns."""
    problems = [f"column {name} is missing" for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL_COLUMNS]
    problems += [f"column {name[:LONGEST]!r} is not known" for name in unknown[:MOST_SHOWN]]
    if problems:
        expected = f"expected are {', '.join(COLUMNS)} and, if you have it, {', '.join(OPTIONAL_COLUMNS)}"
        renamed = "data.columns must name yours, as {lesion_id: null} for one that is not there"
        raise InputError(f"{path}: {'; '.join(problems)}; {expected}, or {renamed}")


def _column_names(path: Path, header: list[str], columns: Mapping[str, str | None]) -> dict[str, str]:
    """The table's own name of each of our columns that it has."""
    problems = [
        f"data.columns.{ours} is {name!r}, which is not one of its columns"
        for ours, name in columns.items()
        if name is not None and name not in header
    ]
    found = {ours: [name] for ours, name in columns.items() if name is not None}
    for name in header:
        ours = ISIC_COLUMNS.get(name, name)
        if ours in OURS and ours not in columns:
            found.setdefault(ours, []).append(name)
    problems += [
        f"{' and '.join(names)} may both be {ours}: say which in data.columns, as {{{ours}: {names[0]}}}"
        for ours, names in found.items()
        if len(names) > 1
    ]
    if "image_id" not in found:
        problems.append("no column is known to hold image_id; name it in data.columns, as {image_id: file}")
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}; {_shown(header)}")
    return {ours: names[0] for ours, names in found.items()}


def _shown(header: list[str]) -> str:
    if len(header) < 2:
        return f"its header is {','.join(header)[: MOST_SHOWN * LONGEST]!r}, where commas must separate the columns"
    names = [name if name.isprintable() else repr(name) for name in (name[:LONGEST] for name in header[:MOST_SHOWN])]
    return f"its columns are {', '.join(names)}{', …' if len(header) > MOST_SHOWN else ''}"


def _ground_truth_beside(path: Path) -> Path | None:
    tables = [table for table in path.parent.glob(f"*{GROUND_TRUTH}") if table != path]
    return tables[0] if len(tables) == 1 else None


def _labels(
    path: Path, header: list[str], rows: Rows, names: dict[str, str], meanings: Mapping[str, str]
) -> tuple[dict[int, str], list[str]]:
    """The label of each row by its number, from a column of labels or from one column for each; and problems."""
    if "dx" in names:
        return {number: row[names["dx"]] for number, row in rows}, []
    if not any(fold(name) in meanings for name in header):
        missing = "no column is known to hold the diagnosis; name it in data.columns, as {dx: label}"
        raise InputError(f"{path}: {missing}; {_shown(header)}")
    # Other columns of 0 and 1 are of diagnoses that the taxonomy does not have.
    others = {name for name in header if name not in names.values() and all(row[name] in BITS for _, row in rows)}
    one_hot = [name for name in header if fold(name) in meanings or name in others]
    none_of = f"none of {', '.join(one_hot)}"
    labels, problems = {}, []
    for number, row in rows:
        wrong = [f"{name} is {row[name]!r}" for name in one_hot if row[name] not in BITS]
        ones = [name for name in one_hot if row[name] in ("1", "1.0")]
        if wrong:
            problems.append(f"{path.name} row {number}: {', '.join(wrong)}; it must be 0 or 1")
        elif not ones and fold(none_of) in meanings:
            labels[number] = none_of
        elif len(ones) != 1:
            found = f"{' and '.join(ones)} are 1" if ones else f"{none_of} is 1"
            problems.append(f"{path.name} row {number}: {found}; exactly one must be")
        else:
            labels[number] = ones[0]
    return labels, problems


def _labels_beside(
    truth: Path, path: Path, rows: Rows, image_column: str, meanings: Mapping[str, str]
) -> tuple[dict[int, str], list[str]]:
    """As `_labels`, of the rows of the table at `path`, from the table of diagnoses at `truth`."""
    header, truth_rows, problems = _read_rows(truth)
    names = _column_names(truth, header, {})
    labels, more = _labels(truth, header, truth_rows, names, meanings)
    problems += more
    row_of: dict[str, int] = {}
    known = {row[image_column] for _, row in rows}
    for number, row in truth_rows:
        image_id = row[names["image_id"]]
        if row_of.setdefault(image_id, number) != number:
            problems.append(f"{truth.name} row {number}: {image_id!r} is a duplicate of row {row_of[image_id]}")
        elif image_id not in known:
            problems.append(f"{truth.name} row {number}: {image_id!r} is not in {path.name}")
    for number, row in rows:
        if row[image_column] not in row_of:
            problems.append(f"{path.name} row {number}: {row[image_column]!r} is not in {truth.name}")
    places = {number: row_of.get(row[image_column]) for number, row in rows}
    return {number: labels[place] for number, place in places.items() if place in labels}, problems


def _translate(row: dict[str, str], names: dict[str, str], label: str) -> dict[str, str]:
    """The cells of a row by our names; those that are missing are `UNKNOWN`, or empty where it is not text."""
    cells = {name: row.get(names.get(name, ""), "") for name in OURS}
    for name in set(OURS) - {"image_id", "lesion_id"}:
        if cells[name].lower() in MISSING:
            cells[name] = "" if name in ("age", PATIENT) else UNKNOWN
    stem, dot, ending = cells["image_id"].rpartition(".")
    if dot + ending.lower() in EXTENSIONS:
        cells["image_id"] = stem
    return cells | {"dx": label}


def _fill_lesion_ids(path: Path, rows: Rows) -> tuple[bool, list[str]]:
    """Give a lesion to each image that has none: its patient, whose images may show the same one, or itself.

    Where one lesion is missing and patients are known, all images are grouped by patient: an image without a lesion
    may show any of its patient's.

    Returns:
        Whether they are grouped by patient, and what the user should know.
    """
    for _, row in rows:
        row["lesion_id"] = "" if row["lesion_id"].lower() in MISSING else row["lesion_id"]
    missing = sum(not row["lesion_id"] for _, row in rows)
    if not missing:
        return False, []
    # Of a lesion, too, whose patient is named with another of its images only: it stays whole.
    patient_of = {row["lesion_id"]: row[PATIENT] for _, row in rows if row["lesion_id"] and row[PATIENT]}
    by_patient = any(row[PATIENT] for _, row in rows)
    for _, row in rows:
        lesion = row["lesion_id"]
        row["lesion_id"] = patient_of.get(lesion) or row[PATIENT] or lesion or row["image_id"]
    consequence = "; each counts as a separate lesion"
    if by_patient:
        consequence = f", so all are grouped by {PATIENT}: a patient counts as a lesion"
    return by_patient, [f"{path.name}: {missing} of {len(rows)} images have no lesion_id{consequence}"]


def _left_out(path: Path, counts: Mapping[str, int], which: str) -> str:
    shown = ", ".join(f"{label!r} {count}" for label, count in sorted(counts.items()))
    total = sum(counts.values())
    return f"{path.name}: left out {total} image{'s' * (total != 1)} {which}: {shown}"


def _unknown_label(label: str, rows: list[int], taxonomy: Mapping[str, Diagnosis]) -> str:
    key, example = label if _TEXT.fullmatch(label) else repr(label), next(iter(taxonomy))
    return (
        f"row {rows[0]}: unknown diagnosis {label!r}; dx must be one of {', '.join(taxonomy)}: data.classes can say "
        f"which, as {{{key}: {example}}}, or {{{key}: null}} to leave out the images so labelled ({len(rows)})"
    )


def _contradictions(rows: list[dict], by_patient: bool) -> list[str]:
    """One line for each image that occurs twice, and for each lesion with two diagnoses, which a patient may have."""
    problems = []
    first_rows: dict[str, int] = {}
    diagnoses: dict[str, str] = {}
    for row in rows:
        number, image_id, lesion_id, dx = row["row"], row["image_id"], row["lesion_id"], row["dx"]
        if first_rows.setdefault(image_id, number) != number:
            problems.append(f"row {number}: image_id {image_id} is a duplicate of row {first_rows[image_id]}")
        if not by_patient and diagnoses.setdefault(lesion_id, dx) != dx:
            problems.append(f"row {number}: lesion {lesion_id} is {dx} here and {diagnoses[lesion_id]} above")
    return problems


def subsample_lesions(table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Keep about `fraction` of the lesions of each diagnosis, whole, at least one of each.

    Lesions are ranked by a hash of their id: no seed to choose, a smaller fraction is a subset of a larger one, and
    a lesion added to the dataset displaces few others.
    """
    lesions: dict[str, list[str]] = {}
    pairs = set(zip(table["lesion_id"], table["dx"]))
    for lesion_id, dx in sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest()):
        lesions.setdefault(dx, []).append(lesion_id)
    kept = [name for names in lesions.values() for name in names[: max(1, round(fraction * len(names)))]]
    return table.loc[table["lesion_id"].isin(kept)].reset_index(drop=True)
