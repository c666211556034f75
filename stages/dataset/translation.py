"""CSV tables of any dataset, and their columns and labels translated into HAM10000's."""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from stages.dataset.images import EXTENSIONS
from stages.dataset.taxonomy import DIAGNOSES, ISIC_DIAGNOSES
from stages.errors import InputError

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
OPTIONAL_COLUMNS = ["dataset"]
PATIENT = "patient_id"  # groups images where there is no lesion_id
OURS = [*COLUMNS, *OPTIONAL_COLUMNS, PATIENT]
UNKNOWN = "unknown"

# Our columns under the names of the ISIC challenges of 2019 and 2020.
ISIC_COLUMNS = {
    "image": "image_id",
    "image_name": "image_id",
    "diagnosis": "dx",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "anatom_site_general_challenge": "localization",
}
# Their tables of diagnoses have a column for each, with a 1 in one of them.
ONE_HOT = ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK")
GROUND_TRUTH = "_GroundTruth.csv"
MISSING = {"", "na", "n/a", "nan", "none", "null", UNKNOWN}  # how tables of others say that a cell is empty
MOST_SHOWN = 30  # columns in a message
LONGEST = 100  # characters of a column's name there

Rows = list[tuple[int, dict[str, str]]]  # a row's number, as a spreadsheet counts, and its cells by column


def check_mappings(columns: Mapping[str, str | None], classes: Mapping[str, str | None]) -> None:
    """Check `data.columns` and `data.classes`.

    Raises:
        InputError: naming each entry with a column or diagnosis that we do not have.
    """
    problems = [
        f"data.columns.{name} is no column of ours; those are {', '.join(OURS)}" for name in columns if name not in OURS
    ]
    problems += [
        f"data.classes maps {label!r} to {dx!r}; it must be one of {', '.join(DIAGNOSES)}, or null to leave it out"
        for label, dx in classes.items()
        if dx is not None and dx not in DIAGNOSES
    ]
    if problems:
        raise InputError("\n  ".join(problems))


def read_rows(path: Path) -> tuple[list[str], Rows, list[str]]:
    """The header of a CSV file, its rows, and a line for each row that does not fit the header.

    Raises:
        InputError: the file is no CSV file in UTF-8, or a column stands in it twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = next(reader, [])
        # Rows, not lines: a quoted field may hold a line break.
        lines = [(number, line) for number, line in enumerate(reader, start=2) if line]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {line}") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {reader.line_num}") from None
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{path}: column {', '.join(name[:LONGEST] for name in twice[:MOST_SHOWN])} stands twice")
    rows, problems = [], []
    for number, line in lines:
        if len(line) == len(header):
            rows.append((number, dict(zip(header, (field.strip() for field in line)))))
        else:
            problems.append(f"{path.name} row {number}: {len(line)} fields; the header has {len(header)}")
    return header, rows, problems


def is_foreign(header: list[str]) -> bool:
    """Whether a table has columns that are the ISIC challenges' and not HAM10000's."""
    return any(name in ISIC_COLUMNS or name in ONE_HOT or name == PATIENT for name in header)


def translate(path: Path, header: list[str], rows: Rows, columns: Mapping[str, str | None]) -> tuple[Rows, list[str]]:
    """Translate a table's columns; its labels stay as they are.

    Args:
        path: the table; its diagnoses may lie beside it, in `…_GroundTruth.csv`.
        header: its columns.
        rows: as of `read_rows`.
        columns: `data.columns`.

    Returns:
        The rows that have a label, with the columns `OURS`, empty where the table has nothing, and the label as dx;
        and one line for each problem.

    Raises:
        InputError: it is not clear which column holds what.
    """
    theirs = _column_names(path, header, columns)
    truth = None if _has_labels(header, theirs) else _ground_truth_beside(path)
    if truth:
        labels, problems = _labels_from(truth, path, rows, theirs["image_id"])
    else:
        labels, problems = _labels(path, header, rows, theirs)
    translated = []
    for number, row in rows:
        if number in labels:
            cells = {name: row.get(theirs.get(name), "") for name in OURS}
            cells = {name: "" if cell.lower() in MISSING else cell for name, cell in cells.items()}
            translated.append((number, cells | {"image_id": _image_id(row, theirs), "dx": labels[number]}))
    return translated, problems


def _column_names(path: Path, header: list[str], columns: Mapping[str, str | None]) -> dict[str, str]:
    """The table's own name of each of our columns that it has."""
    problems = [
        f"data.columns.{ours} is {name!r}, which is no column of it"
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


def _image_id(row: dict[str, str], theirs: dict[str, str]) -> str:
    name = row[theirs["image_id"]]
    return name[: -len(Path(name).suffix)] if name.lower().endswith(EXTENSIONS) else name


def _has_labels(header: list[str], theirs: dict[str, str]) -> bool:
    return "dx" in theirs or any(name in ONE_HOT for name in header)


def _ground_truth_beside(path: Path) -> Path | None:
    tables = [table for table in path.parent.glob(f"*{GROUND_TRUTH}") if table != path]
    return tables[0] if len(tables) == 1 else None


def _labels(path: Path, header: list[str], rows: Rows, theirs: dict[str, str]) -> tuple[dict[int, str], list[str]]:
    """The label of each row by its number, from a column of labels or from one column for each."""
    if "dx" in theirs:
        return {number: row[theirs["dx"]] for number, row in rows}, []
    one_hot = [name for name in header if name in ONE_HOT]
    if not one_hot:
        raise InputError(
            f"{path}: no column is known to hold the diagnosis; name it in data.columns, as {{dx: label}}; "
            f"{_shown(header)}"
        )
    labels, problems = {}, []
    for number, row in rows:
        wrong = [f"{name} is {row[name]!r}" for name in one_hot if row[name] not in ("0", "0.0", "1", "1.0")]
        ones = [name for name in one_hot if row[name] in ("1", "1.0")]
        if wrong:
            problems.append(f"{path.name} row {number}: {', '.join(wrong)}; it must be 0 or 1")
        elif len(ones) != 1:
            found = f"{' and '.join(ones)} are 1" if ones else f"none of {', '.join(one_hot)} is 1"
            problems.append(f"{path.name} row {number}: {found}; exactly one must be")
        else:
            labels[number] = ones[0]
    return labels, problems


def _labels_from(truth: Path, path: Path, rows: Rows, image_column: str) -> tuple[dict[int, str], list[str]]:
    """The label of each row of the table at `path`, from the table of diagnoses at `truth`."""
    header, truth_rows, problems = read_rows(truth)
    theirs = _column_names(truth, header, {})
    labels, more = _labels(truth, header, truth_rows, theirs)
    problems += more
    row_of: dict[str, int] = {}
    for number, row in truth_rows:
        image_id = row[theirs["image_id"]]
        if image_id in row_of:
            problems.append(f"{truth.name} row {number}: {image_id!r} stands in row {row_of[image_id]} already")
        row_of.setdefault(image_id, number)
    found = {number: row_of.get(row[image_column]) for number, row in rows}
    problems += [
        f"{path.name} row {number}: {row[image_column]!r} is not in {truth.name}"
        for number, row in rows
        if found[number] is None
    ]
    known = {row[image_column] for _, row in rows}
    problems += [
        f"{truth.name} row {number}: {image_id!r} is not in {path.name}"
        for image_id, number in row_of.items()
        if image_id not in known
    ]
    return {number: labels[place] for number, place in found.items() if place in labels}, problems


def fill_lesion_ids(path: Path, rows: Rows) -> tuple[bool, list[str]]:
    """Give a lesion to each image that has none: its patient, whose images may show the same one, or itself.

    Where one lesion is missing and patients are known, all images are grouped by patient: an image without a lesion
    may show any of its patient's.

    Returns:
        Whether they are grouped by patient, and what the user should know.
    """
    missing = sum(not row["lesion_id"] for _, row in rows)
    if not missing:
        return False, []
    # Of a lesion, too, whose patient is named with another of its images only: it stays whole.
    patient_of = {row["lesion_id"]: row[PATIENT] for _, row in rows if row["lesion_id"] and row[PATIENT]}
    by_patient = any(row[PATIENT] for _, row in rows)
    for _, row in rows:
        lesion = row["lesion_id"]
        row["lesion_id"] = patient_of.get(lesion) or row[PATIENT] or lesion or row["image_id"]
    consequence = (
        f", so all are grouped by {PATIENT}: a patient counts as a lesion"
        if by_patient
        else "; each counts as a lesion of its own"
    )
    return by_patient, [f"{path.name}: {missing} of {len(rows)} images have no lesion_id{consequence}"]


def diagnosis_of(label: str, foreign: bool) -> str | None:
    """The diagnosis that a label names; case matters in HAM10000's own table only."""
    name = label.lower() if foreign else label
    return name if name in DIAGNOSES else ISIC_DIAGNOSES.get(name) if foreign else None
