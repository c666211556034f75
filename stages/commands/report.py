"""Report: what a pull request changes, as Markdown with pictures: the verdict first, then what it rests on.

Metrics, parameters, curves and costs come from Git; predictions, and with them the verdict, through DVC from its cache
or remote. Where these are not to be had, the report says so and shows the rest. Nothing is checked out.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from stages.commands.compare import (
    WORKSPACE,
    Revision,
    changed_decisions,
    code,
    compare_revisions,
    difference,
    p_value,
    read_revision,
    summary,
    what_was_compared,
)
from stages.commands.snapshots import CURVES, Snapshot, environment_differences, read_snapshot
from stages.config import load_config
from stages.errors import InputError
from stages.evaluation.comparison import LOWER_IS_BETTER, NO_EVIDENCE
from stages.figures.revisions import draw_confusion_of, draw_precision_recall_of, draw_reliability_of, draw_roc_of
from stages.figures.style import save
from stages.figures.wording import ATTRIBUTES, METRICS, NOTHING, in_order, number
from stages.figures.wording import estimate as with_interval
from stages.files import replacing

EXAMPLES = """\
examples:
  python -m stages report                                the workspace against main
  python -m stages report main HEAD --output report.md   two commits

The pictures lie beside the report, in a folder of its name: report_pictures/ for report.md.
"""
MEASURED = {"training_seconds": "training [s]", "training_images_per_second": "training speed [images/s]"}
SHOWN = 60  # letters of a parameter's value
LEGEND = 30  # letters of a revision's name in a picture
NO_REMOTE = (
    "No DVC remote is configured (`dvc remote add -d storage s3://…`): what Git does not have comes from the cache of "
    "the machine that wrote this report."
)


class Comparison(NamedTuple):
    """The paired comparison of two revisions, as far as there is one.

    Attributes:
        result: what `compare_revisions` gives; None if they cannot be compared.
        reason: why they cannot.
        revisions: both, where their predictions could be read.
    """

    result: dict | None
    reason: str
    revisions: tuple[Revision, Revision] | None


def compare_if_possible(base: str, new: str) -> Comparison:
    """Compare two revisions whose names are known to be right; a comparison that cannot be made is no error here."""
    revisions = None
    try:
        revisions = read_revision(base), read_revision(new)
        config = load_config()
        result = compare_revisions(*revisions, config.evaluation, config.runtime.cpu_threads)
        return Comparison(result, "", revisions)
    except InputError as error:
        return Comparison(None, str(error), revisions)


def has_remote() -> bool:
    """Whether any DVC remote is configured."""
    from dvc.repo import Repo  # takes a second to import

    with Repo() as repo:
        return bool(repo.config["remote"])


def draw_overlays(base: Snapshot, new: Snapshot) -> dict[str, Figure]:
    """Curves and confusion matrices of both revisions over each other, by name; those that both have."""
    confidence = new.details.get("confidence", 0.95)
    band = f"{100 * confidence:g} % intervals, bootstrap over lesions."
    drawers = {"roc": ("auroc", draw_roc_of), "precision_recall": ("auprc", draw_precision_recall_of)}
    drawers["reliability"] = ("ece", draw_reliability_of)
    figures = {}
    for curve, (metric, draw) in drawers.items():
        if curve in base.curves and curve in new.curves:
            labels = [f"{role} {_legend(snapshot, metric)}" for role, snapshot in (("base:", base), ("new:", new))]
            tables = {label: snapshot.curves[curve] for label, snapshot in zip(labels, (base, new))}
            figures[curve] = draw(tables, f"{'Bars' if curve == 'reliability' else 'Bands'}: {band}")
    if "confusion_matrix" in base.curves and "confusion_matrix" in new.curves and _same_classes(base, new):
        tables = base.curves["confusion_matrix"], new.curves["confusion_matrix"]
        figures["confusion_matrix"] = draw_confusion_of(*tables, new.details["classes"])
    return figures


def _legend(snapshot: Snapshot, metric: str) -> str:
    name = snapshot.name if len(snapshot.name) <= LEGEND else f"{snapshot.name[: LEGEND - 1]}…"
    known = next((key for key in (metric, f"malignant_{metric}") if key in snapshot.metrics), None)
    return name + (f"\n{METRICS[known].title} {with_interval(snapshot.metrics[known])}" if known else "")


def _same_classes(base: Snapshot, new: Snapshot) -> bool:
    return "classes" in base.details and base.details["classes"] == new.details.get("classes")


def render(base: Snapshot, new: Snapshot, comparison: Comparison, remote: bool, pictures: dict[str, str]) -> str:
    """The report as Markdown.

    Args:
        base: the revision to compare with.
        new: the other.
        comparison: of both.
        remote: whether a DVC remote is configured.
        pictures: titles and places of the pictures, relative to the report.
    """
    sections = {
        "": _verdict(base, new, comparison) + ([] if remote else ["", NO_REMOTE]),
        "Metrics": _metrics(base, new, comparison.result),
        "Parameters": _parameters(base, new),
        "Curves": _pictures(pictures),
        "Subgroups that got worse": _subgroups(comparison.result),
        "Data": _data(base, new, comparison.revisions),
        "Cost": _cost(base, new),
    }
    lines = []
    for title, content in sections.items():
        lines += [*([f"### {title}", ""] if title else []), *content, ""]
    return "\n".join(lines)


def _verdict(base: Snapshot, new: Snapshot, comparison: Comparison) -> list[str]:
    names = f"{code(base.name)} → {code(new.name)}"
    if comparison.result is None:
        return [f"**{names}: not compared**", "", f"Why: {code(comparison.reason)}"]
    return [f"**{names}: {summary(comparison.result)}**"]


def _metrics(base: Snapshot, new: Snapshot, result: dict | None) -> list[str]:
    compared = {} if result is None else {name: metric for name, _, metric in in_order(result["metrics"])}
    names = compared or base.metrics | new.metrics
    if not names:
        return ["Neither revision has metrics in Git."]
    rows = []
    for name in sorted(names, key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS)):
        row = [_title(name), _metric(base, name, result, "base"), _metric(new, name, result, "new")]
        if name in compared:
            verdict = compared[name]["verdict"]
            row += [difference(compared[name]), p_value(compared[name]["p_adjusted"])]
            row.append(verdict if verdict == NO_EVIDENCE else f"**{verdict}**")
        rows.append(row)
    head = ["metric", code(base.name), code(new.name)]
    if result is None:
        return _markdown_table(head, rows)
    remarks = [f"- {remark}" for remark in what_was_compared(result, code) + changed_decisions(result, code)]
    return [*_markdown_table([*head, "difference", "p, adjusted", "verdict"], rows), "", *remarks]


def _title(name: str) -> str:
    title = METRICS[name].title if name in METRICS else code(name)
    return f"{title}, lower is better" if name in LOWER_IS_BETTER else title


def _metric(snapshot: Snapshot, name: str, result: dict | None, role: str) -> str:
    """The number with its interval; without, where two and seven classes were compared as models of malignancy."""
    if result is not None and snapshot.details.get("classes") != result["classes"]:
        return number(result["metrics"][name][role])
    measured = snapshot.metrics.get(name, {"value": None, "interval": None})
    return with_interval(measured) if measured["interval"] else number(measured["value"])


def _parameters(base: Snapshot, new: Snapshot) -> list[str]:
    missing = object()
    rows = [
        [code(key), *(_value(side.get(key, NOTHING)) for side in (base.parameters, new.parameters))]
        for key in sorted(base.parameters | new.parameters)
        if base.parameters.get(key, missing) != new.parameters.get(key, missing)
    ]
    return _changes(rows, ["parameter", code(base.name), code(new.name)], "No parameter changed.")


def _value(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return code(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def _pictures(pictures: dict[str, str]) -> list[str]:
    if not pictures:
        return ["No curve is in Git in both revisions."]
    cells = [f"![{title}]({place})" for title, place in pictures.items()]
    # Two a line; without a table a wide screen would show each as wide as it is.
    rows = [[*cells[start : start + 2], ""][:2] for start in range(0, len(cells), 2)]
    return _markdown_table(["", ""], rows)


def _subgroups(result: dict | None) -> list[str]:
    if result is None:
        return ["Not compared."]
    subgroups = result["subgroups"]
    if subgroups is None:
        return ["Not compared: the manifest is neither in DVC's cache nor on its remote."]
    rows = [
        [
            f"{ATTRIBUTES[group['attribute']]}: {code(group['name'])}",
            METRICS[group["metric"]].title,
            number(group["base"]),
            number(group["new"]),
            difference(group),
            str(group["lesions"]),
            p_value(group["p_adjusted"]),
        ]
        for group in subgroups["worse"]
    ]
    head = ["subgroup", "metric", code(result["base"]), code(result["new"]), "difference", "lesions", "p, adjusted"]
    looked_at = subgroups["looked_at"]
    table = _changes(rows, head, f"Of {looked_at} differences none is evidence of a subgroup that got worse.")
    return table + (["", f"Of {looked_at} differences; p is adjusted for all of them (Holm)."] if rows else [])


def _data(base: Snapshot, new: Snapshot, revisions: tuple[Revision, Revision] | None) -> list[str]:
    manifests = [revision.images for revision in revisions or ()]
    if len(manifests) == 2 and manifests[0] is not None and manifests[1] is not None:
        lines = _changed_images(*manifests, code(base.name), code(new.name))
    else:
        lines = _changed_counts(base, new)
    counts = [", ".join(f"{name} {part['images']}" for name, part in _splits(side)) for side in (base, new)]
    if counts[0] != counts[1] and all(counts):
        lines += ["", f"Images of each split: {counts[0]} before; {counts[1]} now."]
    return lines


def _changed_images(base: pd.DataFrame, new: pd.DataFrame, base_name: str, new_name: str) -> list[str]:
    """Which images of the two manifests differ, by diagnosis."""
    before, after = (table.set_index("image_id")["dx"] for table in (base, new))
    added, removed = after.index.difference(before.index), before.index.difference(after.index)
    shared = after.index.intersection(before.index)
    other_diagnosis = int((before[shared] != after[shared]).sum())
    if not len(added) and not len(removed) and not other_diagnosis:
        return [f"The same {len(new)} images of {new['lesion_id'].nunique()} lesions, with the same diagnoses."]
    lesions = [set(table["lesion_id"]) for table in (base, new)]
    rows = [
        ["images", str(len(base)), str(len(new)), str(len(added)), str(len(removed))],
        ["lesions", *(str(len(ids)) for ids in (*lesions, lesions[1] - lesions[0], lesions[0] - lesions[1]))],
    ]
    for diagnosis in sorted(set(before) | set(after)):
        here = [table[table == diagnosis] for table in (before, after, after[added], before[removed])]
        rows.append([f"images of {code(diagnosis)}", *(str(len(images)) for images in here)])
    lines = _markdown_table(["", base_name, new_name, "added", "removed"], rows)
    if other_diagnosis:
        lines += ["", f"{other_diagnosis} images that both have got another diagnosis."]
    return lines


def _changed_counts(base: Snapshot, new: Snapshot) -> list[str]:
    """How the counts of metrics/split.json differ, where no manifest says which images."""
    if not base.split or not new.split:
        return ["Unknown: metrics/split.json is not in Git in both revisions."]
    totals = [_totals(side) for side in (base, new)]
    if totals[0] == totals[1]:
        return [
            "As many images and lesions of each diagnosis; whether they are the same is unknown without both manifests."
        ]
    rows = [
        [name, *(str(total.get(name, 0)) for total in totals), f"{totals[1].get(name, 0) - totals[0].get(name, 0):+d}"]
        for name in totals[0] | totals[1]
    ]
    return _markdown_table(["", code(base.name), code(new.name), "difference"], rows)


def _splits(snapshot: Snapshot) -> list[tuple[str, dict]]:
    return [(name, snapshot.split[name]) for name in ("train", "val", "test") if name in snapshot.split]


def _totals(snapshot: Snapshot) -> dict[str, int]:
    totals = {"images": 0, "lesions": 0}
    for _, part in _splits(snapshot):
        totals["images"] += part["images"]
        totals["lesions"] += part["lesions"]
        for diagnosis, count in part["diagnoses"].items():
            name = f"images of {code(diagnosis)}"
            totals[name] = totals.get(name, 0) + count["images"]
    return totals


def _cost(base: Snapshot, new: Snapshot) -> list[str]:
    sides = base.environment, new.environment
    if not all(sides):
        return ["Unknown: metrics/environment.json is not in Git in both revisions."]
    rows = []
    for key, title in MEASURED.items():
        before, after = (side.get(key) for side in sides)
        change = f"{100 * (after / before - 1):+.0f} %" if before and after else NOTHING
        rows.append([title, *(NOTHING if value is None else f"{value:.1f}" for value in (before, after)), change])
    other = environment_differences(*sides)
    rows += [[code(key), _value(before), _value(after), "another"] for key, (before, after) in other.items()]
    lines = _markdown_table(["", code(base.name), code(new.name), "change"], rows)
    return lines + (
        []
        if other
        else [
            "",
            f"Both on {code(sides[1].get('gpu') or sides[1].get('cpu'))}, {code(sides[1].get('cpu_cores'))} cores.",
        ]
    )


def _changes(rows: list[list[str]], head: list[str], nothing: str) -> list[str]:
    return _markdown_table(head, rows) if rows else [nothing]


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _pictures_of(report: Path) -> Path:
    """The folder of a report's pictures, which is replaced as a whole."""
    return report.with_name(f"{report.stem}_pictures")


def _check_output(path: Path) -> None:
    """Refuse before the work what would destroy something after it."""
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; name the Markdown file to write")
    folder = _pictures_of(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {path}: its pictures go into {folder}, which is no folder; name another file")
    drawn = {f"{curve}.png" for curve in CURVES}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in drawn) if folder.is_dir() else []
    if others:
        raise InputError(
            f"--output {path}: its pictures replace the folder {folder}, which holds {others[0]}, no picture of a "
            "report; name another file, or move the folder away"
        )


def write_report(path: Path, base: str, new: str) -> str:
    """Write the report and its pictures.

    Args:
        path: of the Markdown file.
        base: the revision to compare with.
        new: the other.

    Returns:
        Its first line.

    Raises:
        InputError: there is no such revision, one of its files is damaged, or the report cannot be written.
    """
    snapshots = read_snapshot(base), read_snapshot(new)
    comparison = compare_if_possible(base, new)
    folder = _pictures_of(path)
    figures = draw_overlays(*snapshots)
    pictures = {name.replace("_", " "): f"{folder.name}/{name}.png" for name in figures}
    text = render(*snapshots, comparison, has_remote(), pictures)
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            for name, figure in figures.items():
                save(figure, partial / f"{name}.png")
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"--output {path} cannot be written ({error.strerror or error})") from None
    return text.splitlines()[0]


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages report",
        description="Write what changed between two revisions as Markdown with pictures, for a pull request.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", nargs="?", default="main", help="compare with this (default: main)")
    parser.add_argument("new", metavar="REV", nargs="?", default=WORKSPACE, help="the new one (default: the workspace)")
    parser.add_argument("--output", type=Path, default=Path("report.md"), metavar="FILE", help="default: report.md")
    args = parser.parse_args(argv)
    _check_output(args.output)
    verdict = write_report(args.output, args.base, args.new)
    # Bytes: the same on every platform, whatever encoding its terminal has.
    sys.stdout.buffer.write(f"{verdict}\n{args.output} has the rest\n".encode())
