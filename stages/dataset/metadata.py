"""The metadata tables of a dataset: found, joined, columns and labels translated into ours, checked row by row."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.dataset.images import EXTENSIONS, TABLES, files_below
from stages.dataset.taxonomy import Diagnosis, fold, meanings_of
from stages.errors import InputError, Problem, printable

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
OPTIONAL_COLUMNS = ["dataset", "skin_type"]
PATIENT = "patient_id"  # groups images where there is no lesion_id
OURS = [*COLUMNS, *OPTIONAL_COLUMNS, PATIENT]
UNKNOWN = "unknown"
MISSING = {"", "na", "n/a", "nan", "none", "null", UNKNOWN}  # how a cell says that it is empty, in any case

# Our columns under the names of the ISIC archive and its challenges, of PAD-UFES-20 and of Derm7pt.
_ALIASES = {
    "image_id": ("image", "image_name", "isic_id", "img_id", "derm"),
    "age": ("age_approx", "age_approximate"),
    "sex": ("gender",),
    "localization": ("anatom_site_general", "anatom_site_general_challenge", "location", "region"),
    "dx_type": ("diagnosis_confirm_type", "biopsed"),
    "skin_type": ("fitzpatrick_skin_type", "fitspatrick"),
}
KNOWN_COLUMNS = {name: ours for ours, names in _ALIASES.items() for name in names}
# Columns that may hold a label, the finest first: an image has the first label that the taxonomy knows.
LABELS = (
    *("dx", "diagnosis", "diagnostic"),
    *(f"{name}_{level}" for name in ("diagnosis", "iddx") for level in range(5, 0, -1)),
    *("benign_malignant", "target"),
)
BITS = ("0", "0.0", "1", "1.0")  # in tables that have a column for each diagnosis, with a 1 in one of them
_REFERENCE_STANDARDS = {
    "histopathology": "histo",
    "true": "histo",  # of a biopsy
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "false": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}
_SKIN_TYPES = {
    f"{number}{decimal}": roman
    for number, roman in enumerate(("I", "II", "III", "IV", "V", "VI"), start=1)
    for decimal in ("", ".0")
}
_ISIC_ID, _NO_HEADER = re.compile(r"ISIC_\d{7}"), ["image", "diagnosis"]  # of 2016, whose tables have none
MOST_SHOWN = 30  # columns in a message
LONGEST = 100  # characters of a column's name there

# Ids become file names, table cells and HTML: nothing in them may mean anything there.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./()-]{0,99}")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.()-]*([/\\][A-Za-z0-9][A-Za-z0-9 _.()-]*)+")
_AGE = re.compile(r"[0-9]{1,3}(\.[0-9]*)?")  # float() takes 5_5 and Arabic digits, too


def _is_age(cell: str) -> bool:
    return not cell or (_AGE.fullmatch(cell) is not None and float(cell) <= 120)


_RULES = {
    **dict.fromkeys(("image_id", "lesion_id"), (ID.fullmatch, "letters, digits, '_', '-' and '.'")),
    **dict.fromkeys(("dx_type", "sex", "localization", "dataset", "skin_type"), (_TEXT.fullmatch, "plain words")),
    "age": (_is_age, "years from 0 to 120, or empty"),
}


class _Table(NamedTuple):
    """A table of one or more files of the same columns.

    Attributes:
        path: of the first file.
        header: of its columns.
        rows: columns file, row (as a spreadsheet counts), image_id, those of ours that it has and, if it has labels,
            label; all text.
        problems: of its rows.
    """

    path: Path
    header: list[str]
    rows: pd.DataFrame
    problems: list[Problem]

    @property
    def has_labels(self) -> bool:
        return "label" in self.rows

    @property
    def ids(self) -> set[str]:
        return set(_distinct(self.rows["image_id"]))


def find_tables(data_dir: Path) -> list[Path]:
    """The tables of a dataset: `HAM10000_metadata` at the top alone, else all CSV files in `data_dir` and below it.

    Raises:
        InputError: `data_dir` is not a directory, or has no table.
    """
    if not data_dir.is_dir():
        raise InputError(f"data.data_dir is {str(data_dir)!r}; there is no such directory")
    # The repository that publishes HAM10000 names the file without an ending, or with .tab.
    for name in ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"):
        if (data_dir / name).is_file():
            return [data_dir / name]
    tables = [path for path in files_below(data_dir, []) if path.suffix.lower() in TABLES and path.is_file()]
    if not tables:
        raise _no_table(data_dir, tables)
    return tables


def _no_table(data_dir: Path, tables: Iterable[Path]) -> InputError:
    found = ", ".join(path.relative_to(data_dir).as_posix() for path in tables) or "no CSV file"
    return InputError(
        f"{data_dir} must hold one CSV table, or one of diagnoses and one of what else is known of the same images, or "
        f"HAM10000_metadata.csv among several; found {found}"
    )


def read_metadata(
    data_dir: Path,
    taxonomy: Mapping[str, Diagnosis],
    columns: Mapping[str, str | None] | None = None,
    classes: Mapping[str, str | None] | None = None,
    *,
    only_known: bool = False,
) -> tuple[pd.DataFrame, list[Problem], list[str]]:
    """Read the tables of a dataset, translate them, and check every row.

    A table with the columns of HAM10000 must have all of them and no others. One with other known column names, or with
    `columns`, needs an image id and a diagnosis, which may lie in another table; what else it lacks is unknown, and
    what is not known in it is ignored. Files with the same columns are parts of one table.

    Args:
        data_dir: the folder of the dataset.
        taxonomy: the diagnoses that there are, by their codes.
        columns: the table's name of each of `OURS` that has another; None: it has none.
        classes: the diagnosis of each of its labels that is none; None: leave the label's images out.
        only_known: leave out images of diagnoses that there are not; else these are a problem.

    Returns:
        The rows without a problem in the file's order, columns `COLUMNS` and dataset (age in years, NaN where unknown),
        and skin_type if that of an image is known; one line for each problem, with its row as a spreadsheet numbers it;
        and one line for each thing that the user should know.

    Raises:
        InputError: there is no table with the right columns, so that no row can be read, or `columns` or `classes` is
            wrong.
    """
    columns, classes, meanings = columns or {}, classes or {}, meanings_of(taxonomy)
    _check_mappings(columns, classes, taxonomy)
    known = meanings.keys() | {fold(label) for label in classes}
    main, notes = _join(data_dir, find_tables(data_dir), columns, known)
    name, problems = main.path.name, [*main.problems]
    rows = main.rows.reindex(columns=["file", "row", "label", *OURS], fill_value="")
    by_patient = _is_foreign(main.header, columns, known) and _fill_lesion_ids(name, rows, notes)
    rows = rows[rows["label"].notna()].reset_index(drop=True)
    if rows.empty and not problems:
        problems.append(Problem(f"{name}: no rows; one for each image is needed", "no rows"))
    for column in ("dx_type", "sex", "localization", *OPTIONAL_COLUMNS):
        rows[column] = _or_unknown(rows[column])

    rows["dx"] = _mapped(rows["label"], lambda label: classes.get(label, meanings.get(fold(label))))
    is_left_out = rows["label"].isin([label for label, dx in classes.items() if dx is None])
    is_unknown = rows["dx"].isna() & ~is_left_out
    is_wrong, more = _wrong_cells(rows[~is_left_out])
    problems += more
    unknown = rows[is_unknown]
    if only_known and len(unknown):
        which = f"whose diagnosis is none of {', '.join(taxonomy)}"
        notes.append(f"{_left_out(name, unknown['label'], which)}; --classes or --taxonomy can say which they are")
        if is_left_out.sum() + len(unknown) == len(rows):
            problems.append(Problem(f"no image is left: {notes.pop()}", "no image is left"))
    else:
        counts = Counter(unknown["label"])
        first = unknown.drop_duplicates("label")
        told = first.assign(told=[_unknown_label(label, counts[label], taxonomy) for label in first["label"]])
        problems += _problems(told, "unknown diagnosis", "{told}")
    if is_left_out.any():
        notes.append(_left_out(name, rows.loc[is_left_out, "label"], "that are to be left out"))
    kept = rows[~(is_left_out | is_unknown | rows.index.isin(is_wrong))].reset_index(drop=True)
    problems += _contradictions(kept, by_patient)
    kept = kept.assign(age=_years(kept["age"]))
    optional = [name for name in OPTIONAL_COLUMNS if name == "dataset" or (kept[name] != UNKNOWN).any()]
    return kept[[*COLUMNS, *optional]], problems, notes


def read_covariates(path: Path, columns: Mapping[str, str | None] | None = None) -> pd.DataFrame:
    """Read age, sex and localization of images from one table, as `read_metadata` does; what else it has is ignored.

    An image may also stand in a column `file`, as in what `predict` writes.

    Args:
        path: the table.
        columns: the table's name of each of `OURS` that has another; None: it has none.

    Returns:
        Columns age (years, NaN where unknown), sex and localization, by the ids of the images.

    Raises:
        InputError: there is no such table, or rows have a mistake, each of them named.
    """
    names, columns = ["age", "sex", "localization"], dict(columns or {})
    _check_mappings(columns, {}, {})
    header = read_header(path)
    if "file" in header and not _names_image(header, columns):
        columns["image_id"] = "file"
    table = _read_table(path, {"dx": None} | columns, (), alone=True)
    if not set(names) & set(table.rows):
        raise InputError(f"{path}: no column is known to hold age, sex or localization; {_shown(table.header)}")
    rows = table.rows.reindex(columns=["file", "row", "image_id", *names], fill_value="")
    for name in names[1:]:
        rows[name] = _or_unknown(rows[name])
    _, problems = _wrong_cells(rows.drop(columns="image_id"))
    # The names that files have, not only such as are ids in a dataset.
    rows["image_id"] = [re.split(r"[/\\:]", cell)[-1] for cell in rows["image_id"]]
    rows = rows.drop_duplicates(["image_id", *names])
    says = "{image_id!r} has other values in row {first}"
    if problems := [*table.problems, *problems, *_repeated(rows, "other values", says)]:
        more = [f"and {len(problems) - MOST_SHOWN} more"] * (len(problems) > MOST_SHOWN)
        raise InputError("\n  ".join([f"{path}:", *map(printable, problems[:MOST_SHOWN]), *more]))
    return rows.assign(age=_years(rows["age"])).set_index("image_id")[names]


def _problems(rows: pd.DataFrame, kind: str, told: str) -> list[Problem]:
    """A line for each row: its file and number, and what is `told` of its cells, as in "{image_id} is unknown"."""
    told = "{file} row {row}: " + told
    return [Problem(told.format_map(row), kind) for row in rows.to_dict("records")]


def _repeated(rows: pd.DataFrame, kind: str, told: str) -> list[Problem]:
    """`_problems` of the rows whose image a row above has, the number of which is {first}."""
    first = dict(zip(rows["image_id"][::-1], rows["row"][::-1]))
    again = rows[rows["image_id"].duplicated()]
    return _problems(again.assign(first=again["image_id"].map(first)), kind, told)


def _wrong_cells(rows: pd.DataFrame) -> tuple[list[int], list[Problem]]:
    """The rows with a cell that breaks one of `_RULES`, by their labels, and a line for each such cell."""
    labels, problems = [], []
    for column, (is_valid, expected) in _RULES.items():
        if column in rows:
            wrong = rows[~rows[column].isin({cell for cell in _distinct(rows[column]) if is_valid(cell)})]
            labels += wrong.index.tolist()
            told = f"{column} is {{{column}!r}}; it must be {expected}"
            problems += _problems(wrong, f"{column} must be {expected}", told)
    return labels, problems


def _or_unknown(cells: pd.Series) -> pd.Series:
    return cells.mask(cells == "", UNKNOWN)


def _mapped(cells: pd.Series, function: Callable[[str], Any]) -> pd.Series:
    """What a function makes of each cell, asked once for each different one."""
    return cells.map({cell: function(cell) for cell in _distinct(cells)})


def _distinct(cells: pd.Series) -> list[str]:
    # Through NumPy: iterating over a column of pandas' own text takes longer than reading it from the file.
    return pd.unique(cells.to_numpy(object)).tolist()


def _years(cells: pd.Series) -> pd.Series:
    # Beyond float('55.0'), an empty cell is a missing age.
    return pd.to_numeric(cells.mask(cells == "")).astype(float)


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


def _join(
    data_dir: Path, paths: list[Path], columns: Mapping[str, str | None], known: Iterable[str]
) -> tuple[_Table, list[str]]:
    """The tables of a dataset as one, and what was passed over."""
    headers = {path: read_header(path) for path in paths}
    usable = [path for path in paths if _names_image(headers[path], columns)]
    if len(paths) == 1:
        usable = paths  # reading it says what is wrong
    mapped = {name for name in columns.values() if name} - {name for path in usable for name in headers[path]}
    if len(usable) != 1 and mapped:
        raise InputError(f"{data_dir}: data.columns names {', '.join(sorted(mapped))}, which no table has")
    parts: dict[tuple[str, ...], _Table] = {}
    for path in usable:
        table = _read_table(path, columns, known, alone=len(usable) == 1)
        if other := parts.get(header := tuple(table.header)):
            if other.ids & table.ids:
                raise _no_table(data_dir, usable)
            rows = pd.concat([other.rows, table.rows], ignore_index=True)
            table = other._replace(rows=rows, problems=other.problems + table.problems)
        parts[header] = table
    tables = [*parts.values()]
    with_labels = [table for table in tables if table.has_labels]
    labelled = set().union(*(table.ids for table in with_labels))
    others = [table for table in tables if not table.has_labels and (not labelled or table.ids & labelled)]
    if len(with_labels) > 1 or len(others) > 1 or not tables:
        raise _no_table(data_dir, usable or paths)
    passed = [path.relative_to(data_dir).as_posix() for path in paths if path not in usable]
    if not with_labels:
        missing = "no column is known to hold the diagnosis; name it in data.columns, as {dx: label}"
        said = [f"{tables[0].path}: {missing}", _shown(tables[0].header), *_passed_over(passed)]
        raise InputError("; ".join(said))
    main = _add_labels(others[0], with_labels[0]) if others else with_labels[0]
    joined = {table.path for table in (*others, *with_labels)}
    return main, _passed_over(passed + [table.path.name for table in tables if table.path not in joined])


def _passed_over(tables: list[str]) -> list[str]:
    return [f"passed over {', '.join(tables)}, which name no image of the dataset"] if tables else []


def _separator(path: Path, line: str) -> str:
    return "\t" if path.suffix.lower() in (".tab", ".tsv") or ("\t" in line and "," not in line) else ","


def read_header(path: Path) -> list[str]:
    """The names of a table's columns; none of a file that is no table."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(1_000_000)
        header = next(csv.reader([line], delimiter=_separator(path, line)), [])
    except (OSError, ValueError, csv.Error):
        return []
    return _NO_HEADER if _has_no_header(header) else header


def _has_no_header(cells: list[str]) -> bool:
    return len(cells) == 2 and _ISIC_ID.fullmatch(cells[0]) is not None


def _names_image(header: list[str], columns: Mapping[str, str | None]) -> bool:
    own = columns.get("image_id")
    return own in header if own else any(KNOWN_COLUMNS.get(name, name) == "image_id" for name in header)


def _is_foreign(header: list[str], columns: Mapping[str, str | None], known: Iterable[str]) -> bool:
    """Whether a table has other columns than HAM10000's."""
    others = {PATIENT, *KNOWN_COLUMNS, *LABELS[1:]}
    return bool(columns) or any(name in others or fold(name) in known for name in header)


def _read_table(path: Path, columns: Mapping[str, str | None], known: Iterable[str], alone: bool) -> _Table:
    """Read a file and translate its columns.

    Args:
        path: the file.
        columns: as of `read_metadata`.
        known: labels that mean something, as of `fold`.
        alone: whether it is the only table of the dataset, which must have all that `columns` names.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {line}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(path, text.partition("\n")[0]))
    try:
        # Rows, not lines: a quoted field may hold a line break.
        header, numbered = next(reader, []), enumerate(reader, start=2)
        if _has_no_header(header):
            header, numbered = _NO_HEADER, enumerate(chain([header], reader), start=1)
        if repeated := [name for name, count in Counter(header).items() if count > 1]:
            names = ", ".join(name[:LONGEST] for name in repeated[:MOST_SHOWN])
            raise InputError(f"{path}: column {names} is duplicated")
        if alone and not _is_foreign(header, columns, known):
            _check_header(path, header)
        names = _column_names(path, header, columns, alone)
        own = columns.get("dx")
        labels = [own] if own and own in header else [name for name in LABELS if name in header]
        has_bits = not labels and "dx" not in columns and any(fold(name) in known for name in header)
        others = [name for name in header if has_bits and name not in names.values()]
        wanted = list(dict.fromkeys([*names.values(), *labels, *others]))
        places = [header.index(name) for name in wanted]
        numbers, cells, problems = [], [], []
        for number, fields in numbered:
            if len(fields) == len(header):
                numbers.append(number)
                cells.append([fields[place].strip() for place in places])
            elif fields:
                found = f"{path.name} row {number}: {len(fields)} fields; the header has {len(header)}"
                problems.append(Problem(found, "another number of fields than the header"))
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}, in line {reader.line_num}") from None
    table = pd.DataFrame(cells, columns=pd.Index(wanted), dtype=object)
    rows = pd.DataFrame({"file": path.name, "row": numbers}).astype({"file": object})
    for ours, name in names.items():
        rows[ours] = _translated(table[name], ours)
    if labels:
        rows["label"] = _finest([table[name] for name in labels], known)
    if has_bits:
        rows["label"], more = _label_of_bits(path, rows["row"], table, others, known)
        problems += more
    return _Table(path, header, rows, problems)


def _check_header(path: Path, header: list[str]) -> None:
    """Check the header of a table that has HAM10000's columns."""
    problems = [f"column {name} is missing" for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + OPTIONAL_COLUMNS]
    problems += [f"column {name[:LONGEST]!r} is not known" for name in unknown[:MOST_SHOWN]]
    if problems:
        expected = f"expected are {', '.join(COLUMNS)} and, if you have it, {', '.join(OPTIONAL_COLUMNS)}"
        renamed = "data.columns must name yours, as {lesion_id: null} for one that is not there"
        raise InputError(f"{path}: {'; '.join(problems)}; {expected}, or {renamed}")


def _column_names(path: Path, header: list[str], columns: Mapping[str, str | None], alone: bool) -> dict[str, str]:
    """The table's own name of each of our columns that it has, but that of the label."""
    problems = [
        f"data.columns.{ours} is {name!r}, which is not one of its columns"
        for ours, name in columns.items()
        if alone and name is not None and name not in header
    ]
    found = {ours: [name] for ours, name in columns.items() if name in header}
    for name in header:
        ours = KNOWN_COLUMNS.get(name, name)
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
    return {ours: names[0] for ours, names in found.items() if ours != "dx"}


def _shown(header: list[str]) -> str:
    if len(header) < 2:
        return f"its header is {','.join(header)[: MOST_SHOWN * LONGEST]!r}, where commas must separate the columns"
    names = [name if name.isprintable() else repr(name) for name in (name[:LONGEST] for name in header[:MOST_SHOWN])]
    return f"its columns are {', '.join(names)}{', …' if len(header) > MOST_SHOWN else ''}"


def _translated(cells: pd.Series, ours: str) -> pd.Series:
    """The cells of one of our columns; those that are unknown are empty."""
    translations: dict[str, Callable[[str], str]] = {
        "image_id": _image_id,
        "lesion_id": lambda cell: cell,
        "sex": lambda cell: _known_cell(cell).lower(),
        "dx_type": lambda cell: _REFERENCE_STANDARDS.get(cell.lower(), _known_cell(cell)),
        "skin_type": lambda cell: _SKIN_TYPES.get(cell, _known_cell(cell)),
    }
    return _mapped(cells, translations.get(ours, _known_cell))


def _known_cell(cell: str) -> str:
    return "" if cell.lower() in MISSING else cell


def _image_id(cell: str) -> str:
    """The id that a cell names, which may be a path or have the ending of the file."""
    name = re.split(r"[/\\]", cell)[-1] if _PATH.fullmatch(cell) else cell
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in EXTENSIONS else name


def _label_of_bits(
    path: Path, numbers: pd.Series, table: pd.DataFrame, others: list[str], known: Iterable[str]
) -> tuple[pd.Series, list[Problem]]:
    """The label of each row from one column for each, None in a row with a problem; and the problems.

    Other columns of 0 and 1 are of diagnoses that the taxonomy does not have.
    """
    names = [name for name in others if fold(name) in known or table[name].isin(BITS).all()]
    is_one, is_bit = table[names].isin(BITS[2:]).to_numpy(), table[names].isin(BITS).to_numpy()
    count, none_of = is_one.sum(axis=1), f"none of {', '.join(names)}"
    is_right = is_bit.all(axis=1) & ((count == 1) | ((count == 0) & (fold(none_of) in known)))
    label = pd.Series(np.where(count == 1, np.array(names, object)[is_one.argmax(axis=1)], none_of))
    problems = []
    for row in np.flatnonzero(~is_right):
        ones = " and ".join(name for name, one in zip(names, is_one[row]) if one)
        problem, kind = f"{ones + ' are' if ones else none_of + ' is'} 1; exactly one must be", "exactly one must be 1"
        if not is_bit[row].all():
            found = [f"{name} is {table[name][row]!r}" for name, right in zip(names, is_bit[row]) if not right]
            kind = "it must be 0 or 1"
            problem = f"{', '.join(found)}; {kind}"
        problems.append(Problem(f"{path.name} row {numbers[row]}: {problem}", kind))
    return label.mask(~is_right, None), problems


def _finest(candidates: list[pd.Series], known: Iterable[str]) -> pd.Series:
    """Of each row the first label that means something; else the first that is not unknown."""
    result, is_found = candidates[0].copy(), pd.Series(data=False, index=candidates[0].index)
    for says in (lambda label: fold(label) in known, lambda label: label.lower() not in MISSING):
        for labels in candidates:
            here = ~is_found & labels.isin({label for label in _distinct(labels) if says(label)})
            result[here] = labels[here]
            is_found |= here
    return result


def _add_labels(main: _Table, labels: _Table) -> _Table:
    """A table with what another one says of its images; an image that is not in both is a problem."""
    problems = [*labels.problems, *main.problems]
    problems += _repeated(labels.rows, "a duplicate", "{image_id!r} is a duplicate of row {first}")
    for table, other in ((labels, main), (main, labels)):
        alone = table.rows[~table.rows["image_id"].isin(other.rows["image_id"])].assign(other=other.path.name)
        problems += _problems(alone, f"not in {other.path.name}", "{image_id!r} is not in {other}")
    more = labels.rows.drop_duplicates("image_id").drop(columns=["file", "row"])
    shared = [column for column in more if column in main.rows and column != "image_id"]
    return main._replace(rows=main.rows.merge(more.drop(columns=shared), on="image_id"), problems=problems)


def _fill_lesion_ids(name: str, rows: pd.DataFrame, notes: list[str]) -> bool:
    """Give a lesion to each image that has none: its patient, whose images may show the same one, or itself.

    Where one lesion is missing and patients are known, all images are grouped by patient: an image without a lesion
    may show any of its patient's. Adds a line that says so to `notes`.

    Returns:
        Whether they are grouped by patient.
    """
    lesions, patients = _translated(rows["lesion_id"], PATIENT), rows[PATIENT]
    rows["lesion_id"] = lesions
    missing = int((lesions == "").sum())
    if not missing:
        return False
    # Of a lesion, too, whose patient is named with another of its images only: it stays whole.
    both = (lesions != "") & (patients != "")
    by_lesion = lesions.map(dict(zip(lesions[both], patients[both])))
    for others in (patients, lesions, rows["image_id"]):
        by_lesion = by_lesion.where(by_lesion.notna() & (by_lesion != ""), others)
    rows["lesion_id"] = by_lesion
    by_patient = bool((patients != "").any())
    patient = f", so all are grouped by {PATIENT}: a patient counts as a lesion"
    consequence = patient if by_patient else "; each counts as a separate lesion"
    notes.append(f"{name}: {missing} of {len(rows)} images have no lesion_id{consequence}")
    return by_patient


def _left_out(name: str, labels: pd.Series, which: str) -> str:
    shown = ", ".join(f"{label!r} {count}" for label, count in sorted(Counter(labels).items()))
    return f"{name}: left out {len(labels)} image{'s' * (len(labels) != 1)} {which}: {shown}"


def _unknown_label(label: str, images: int, taxonomy: Mapping[str, Diagnosis]) -> str:
    key, example = label if _TEXT.fullmatch(label) else repr(label), next(iter(taxonomy))
    return (
        f"unknown diagnosis {label!r}; dx must be one of {', '.join(taxonomy)}: data.classes can say which, as "
        f"{{{key}: {example}}}, or {{{key}: null}} to leave out the images so labelled ({images})"
    )


def _contradictions(rows: pd.DataFrame, by_patient: bool) -> list[Problem]:
    """One line for each image that occurs twice, and for each lesion with two diagnoses, which a patient may have."""
    problems = _repeated(rows, "a duplicate", "image_id {image_id} is a duplicate of row {first}")
    if by_patient:
        return problems
    above = rows.groupby("lesion_id", sort=False)["dx"].transform("first")
    differing = rows.assign(above=above)[rows["dx"] != above]
    told = "lesion {lesion_id} is {dx} here and {above} above"
    return problems + _problems(differing, "a lesion of two diagnoses", told)


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
