"""What changed between two revisions as one page of Markdown with pictures, for a pull request."""

import pandas as pd
from matplotlib.figure import Figure

from stages.config import load_config
from stages.errors import InputError, one_line
from stages.evaluation.weighted import DECIDED
from stages.experiments.comparison import compare_revisions, render_comparison, short_name, warn_of_stale_results
from stages.experiments.programs import run_git
from stages.experiments.revision import PooledRun, Revision, differing_parameters, environment_differences
from stages.figures.confusion import draw_changed_confusion
from stages.figures.revisions import draw_curves
from stages.reporting import METRICS, MISSING, code, estimate, markdown_table, shortened, signed

COSTS = {"training_seconds": "training [s]", "training_images_per_second": "training speed [images/s]"}
SHOWN, LONGEST_ERROR = 60, 1000  # letters of a parameter's value, and of the reason that there is no comparison
LONGEST = 12_000  # letters of each of the five parts: a comment on GitHub has at most 65,536
NO_METRICS = "Neither revision has metrics in Git."
NO_REMOTE = (
    "No DVC remote is configured (`dvc remote add -d storage s3://…`): what Git does not have comes from the cache of "
    "the machine that wrote this report."
)


def draw_pictures(base: Revision, new: Revision) -> dict[str, Figure]:
    """Curves and confusion matrices of both revisions over each other, by name; those that both have."""
    figures = {}
    for name, metric in (("roc", "auroc"), ("precision_recall", "auprc"), ("reliability", "ece")):
        if name in base.curves and name in new.curves:
            roles = {"base": base, "new": new}
            tables = {f"{role}: {_legend(side, metric)}": side.curves[name] for role, side in roles.items()}
            figures[name] = draw_curves(name, tables, new.details.get("confidence", 0.95))
    matrices = [side.curves["confusion_matrix"] for side in (base, new) if "confusion_matrix" in side.curves]
    classes = new.details.get("classes")
    if len(matrices) == 2 and classes and classes == base.details.get("classes"):
        figures["confusion_matrix"] = draw_changed_confusion(matrices[0], matrices[1], classes)
    return figures


def _legend(revision: Revision, metric: str) -> str:
    name = short_name(revision.name)
    # The curves are of malignancy, whatever the classes are.
    known = revision.estimates_of_malignancy.get(metric)
    return name + (f"\n{METRICS[metric].title} {estimate(known)}" if known else "")


def render_report(base: Revision, new: Revision, remote: bool, pictures: dict[str, str], *, ids: bool = True) -> str:
    """The report, the verdict first; a comparison that cannot be made is not an error here.

    Args:
        base: the revision to compare with.
        new: the other.
        remote: whether a DVC remote is configured.
        pictures: the places of the pictures of `draw_pictures`, relative to the report.
        ids: whether to name images.
    """
    names = [code(short_name(side.name)) for side in (base, new)]
    try:
        comparison = render_comparison(compare_revisions(base, new, load_config(), ids=ids), markdown=True, ids=ids)
    except InputError as error:
        warning = warn_of_stale_results(names, [base.stale_stages, new.stale_stages])
        comparison = (f"**{warning}**\n\n" if warning else "") + _not_compared(base, new, names, error)
    commits = "; ".join(f"{name} is {_commit(side)}" for name, side in zip(names, (base, new)))
    parameters = [
        [code(key), *(_value(side.parameters[key]) if key in side.parameters else MISSING for side in (base, new))]
        for key in sorted(differing_parameters([base, new]))
    ]
    links = [f"![{name.replace('_', ' ')}]({place})" for name, place in pictures.items()]
    # Two per line; without a table a wide screen would show each as wide as it is.
    lines = [[*links[start : start + 2], ""][:2] for start in range(0, len(links), 2)]
    sections = {
        "Parameters": markdown_table([["parameter", *names], *parameters]) if parameters else "No parameter changed.",
        # The workflows leave this out where pictures cannot be shown: from this heading to the next.
        "Curves": markdown_table([["", ""], *lines]) if lines else "No curve is in Git in both revisions.",
        "Data": _data(base, new, names),
        "Cost": _cost(base, new, names),
    }
    blocks = [_shortened(comparison), f"{commits}.\n"] + ([] if remote else [f"{NO_REMOTE}\n"])
    return "\n".join(blocks + [f"### {title}\n\n{_shortened(content)}\n" for title, content in sections.items()])


def _shortened(block: str) -> str:
    """A part of the report without the lines, as rows of a table, that are too many for a comment."""
    if len(block) <= LONGEST:
        return block
    kept, _, _ = block[:LONGEST].rpartition("\n")
    lines = block.count("\n") - kept.count("\n")
    return f"{kept}\n\n… and {lines} more lines.\n"


def _commit(revision: Revision) -> str:
    if isinstance(revision, PooledRun):
        return "pooled from " + ", ".join(code(fold["revision"][:7]) for fold in revision.results.get("folds", []))
    if revision.commit:
        return f"commit {revision.commit[:7]}"
    changed = run_git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"commit {run_git('rev-parse', '--short=7', 'HEAD')}" + (" and what is not committed" if changed else "")


def _not_compared(base: Revision, new: Revision, names: list[str], error: InputError) -> str:
    """What Git has of both, where chance cannot be ruled out."""
    sides, kind = [base.estimates, new.estimates], ""
    if all(sides) and base.has_diagnoses != new.has_diagnoses:
        sides, kind = [base.estimates_of_malignancy, new.estimates_of_malignancy], ", both of malignancy"
    there, rows, summary, nothing = sides[0] | sides[1], [], "", {"value": None, "interval": None}
    for name in [*(name for name in METRICS if name in there), *sorted(there.keys() - METRICS.keys())]:
        title = METRICS[name].title if name in METRICS else code(name)
        before, after = (side.get(name, side.get(name.removeprefix(DECIDED), nothing)) for side in sides)
        values, difference = (before["value"], after["value"]), MISSING
        if None not in values:
            difference = signed(values[1] - values[0])
            summary = summary or f"; {title} {values[0]:.3f} → {values[1]:.3f}"
        rows.append([title, estimate(before), estimate(after), difference])
    table = markdown_table([[f"metric{kind}", *names, "difference"], *rows]) if rows else NO_METRICS
    reason = code(shortened(one_line(error), LONGEST_ERROR))
    return f"**{' → '.join(names)}: not compared{summary}**\n\nWhy: {reason}\n\n{table}\n"


def _value(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return code(shortened(text, SHOWN))


def _data(base: Revision, new: Revision, names: list[str]) -> str:
    if base.images is not None and new.images is not None:
        changes = _changed_images(base.images, new.images, names)
    else:
        changes = "Which images differ is unknown: a manifest is neither in DVC's cache nor on its remote."
    sides = (
        [f"{name} {part['images']} ({part['lesions']})" for name, part in side.splits.items()] for side in (base, new)
    )
    before, now = map(", ".join, sides)
    return (
        changes
        if before == now
        else f"{changes}\n\nImages (lesions) of each split: {before or MISSING} → {now or MISSING}."
    )


def _changed_images(base: pd.DataFrame, new: pd.DataFrame, names: list[str]) -> str:
    """Which images of the two manifests differ, by diagnosis."""
    before, after = (table.set_index("image_id")["dx"] for table in (base, new))
    shared = before.index.intersection(after.index)
    relabelled, added, removed = (before[shared] != after[shared]).sum(), after.drop(shared), before.drop(shared)
    if not relabelled and added.empty and removed.empty:
        return f"The same {len(new)} images of {new['lesion_id'].nunique()} lesions, with the same diagnoses."
    old, young = set(base["lesion_id"]), set(new["lesion_id"])
    tables = before, after, added, removed
    rows = [
        ["images", *(str(len(table)) for table in tables)],
        ["lesions", *(str(len(lesions)) for lesions in (old, young, young - old, old - young))],
        *(
            [f"images of {code(diagnosis)}", *(str((table == diagnosis).sum()) for table in tables)]
            for diagnosis in sorted({*before, *after})
        ),
    ]
    table = markdown_table([["", *names, "added", "removed"], *rows])
    return table + (f"\n\n{relabelled} images that are in both have another diagnosis now." if relabelled else "")


def _cost(base: Revision, new: Revision, names: list[str]) -> str:
    sides = base.environment, new.environment
    if not all(sides):
        return "Unknown: metrics/environment.json is not in Git in both revisions."
    rows = []
    for key, title in COSTS.items():
        before, after = (value if type(value := side.get(key)) in (int, float) else None for side in sides)
        change = f"{100 * (after / before - 1):+.0f} %" if before and after else MISSING
        rows.append([title, *(MISSING if value is None else f"{value:.1f}" for value in (before, after)), change])
    other = environment_differences(*sides)
    rows += [[code(key), _value(before), _value(after), "other"] for key, (before, after) in other.items()]
    there = sides[1]
    device = code(there.get("gpu") or there.get("cpu") or MISSING)
    here = f"\n\nBoth on {device}, {code(there.get('cpu_cores', MISSING))} cores."
    return markdown_table([["", *names, "change"], *rows]) + ("" if other else here)
