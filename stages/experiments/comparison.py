"""Two revisions compared by their predictions of the same test images, and the words and tables for it."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from stages.config import Config
from stages.errors import InputError, one_line
from stages.evaluation.comparison import BETTER, NO_EVIDENCE, WORSE, compare_predictions, differences_of_test_sets
from stages.experiments.revision import Revision, differing_parameters
from stages.reporting import ATTRIBUTES, METRICS, change, code, in_order, markdown_table, shortened, text_table

LISTED = 10  # images that a line names; --json has all
LONGEST = 30  # letters of a revision's name


def compare_revisions(base: Revision, new: Revision, config: Config, *, ids: bool = True) -> dict:
    """Compare two revisions.

    Args:
        base: the first.
        new: the second.
        config: replicates, confidence, and the threads of matrix products, on which the last bits depend.
        ids: whether an error may name images.

    Returns:
        What `compare_predictions` gives, the names of the revisions as `base` and `new`, `stale`, the stages of each
        that would run again, and whether predictions and what decides on them are `identical`.

    Raises:
        InputError: they were evaluated on different test images; says how these differ, and the parameters.
    """
    names, sides = (base.name, new.name), (base.predictions, new.predictions)
    if problem := differences_of_test_sets(*sides, names, ids=ids):
        raise InputError(
            f"{base.name} and {new.name} were evaluated on different test images and cannot be compared: {problem}; "
            + _why_test_sets_differ(base, new)
        )
    with threadpool_limits(config.runtime.cpu_threads):
        result = compare_predictions(
            *sides,
            base.images if new.images is None else new.images,
            (base.threshold, new.threshold),
            config.evaluation.bootstrap_replicates,
            config.evaluation.confidence,
        )
    tables = [side.table.sort_values("image_id", ignore_index=True) for side in sides]
    same_costs = np.array_equal(sides[0].cost_matrix, sides[1].cost_matrix)
    identical = tables[0].equals(tables[1]) and base.threshold == new.threshold and same_costs
    stale = {"base": list(base.stale_stages), "new": list(new.stale_stages)}
    return {"base": base.name, "new": new.name, "stale": stale, "identical": identical, **result}


def _why_test_sets_differ(base: Revision, new: Revision) -> str:
    prefixes = ("split.", "data.data_dir", "data.subsample", "data.columns", "data.classes", "data.taxonomy")
    differing = [
        f"{key} ({base.parameters.get(key)}, {new.parameters.get(key)})"
        for key in sorted(differing_parameters([base, new]))
        if key.startswith(prefixes)
    ]
    if differing:
        return f"their params.yaml differ in {', '.join(differing)}: give both the same"
    return "their params.yaml choose the same images, so the dataset itself has changed: `dvc repro` both with the same"


def short_name(revision: str) -> str:
    """The name of a revision for the head of a table, which a whole hash or a long name would make too wide."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision[:7]
    return shortened(revision, LONGEST)


def warn_of_stale_results(names: Sequence[str], stages: Sequence[Iterable[str]]) -> str:
    """One line on those whose results are not of their code; empty if there are none.

    Args:
        names: of the revisions.
        stages: of each, those that would run again.
    """
    found = [
        f"the results of {name}, where dvc repro would run {', '.join(stale)} again"
        for name, stale in zip(names, stages)
        if stale
    ]
    return f"Not of this code, these parameters and data: {'; '.join(found)}" if found else ""


def render_comparison(result: dict, *, markdown: bool, ids: bool = True) -> str:
    """What `compare_revisions` gives, as Markdown for a pull request or as plain text.

    The verdict comes first, and before it only that results are not of their code.

    Args:
        result: of `compare_revisions`.
        markdown: or plain text.
        ids: whether to name images whose decision changed.
    """
    # What the data and the repository name must mean nothing but itself.
    literal, table, strong = (code, markdown_table, "**{}**") if markdown else (one_line, text_table, "{}")
    revisions = [literal(short_name(result[side])) for side in ("base", "new")]
    warning = warn_of_stale_results(revisions, [result["stale"][side] for side in ("base", "new")])
    heads = [strong.format(warning)] if warning else []
    if result["identical"]:
        same = f"- All probabilities of the {result['images']} test images are the same, and so are the decisions."
        return "\n\n".join([*heads, strong.format(f"{' → '.join(revisions)}: identical predictions"), same]) + "\n"

    def cells(metric: dict) -> list[str]:
        return [
            f"{metric['base']:.3f}",
            f"{metric['new']:.3f}",
            change(metric["difference"]),
            _p_value(metric["p_adjusted"]),
        ]

    metrics = [
        [
            about.title + (", lower is better" if metric["lower_is_better"] else ""),
            *cells(metric),
            metric["verdict"] if metric["verdict"] == NO_EVIDENCE else strong.format(metric["verdict"]),
        ]
        for _, about, metric in in_order(result["metrics"])
    ]
    worse = [
        [
            f"{ATTRIBUTES[group['attribute']]}: {literal(group['name'])}",
            METRICS[group["metric"]].title,
            *cells(group),
            str(group["lesions"]),
        ]
        for group in (result["subgroups"] or {"worse": []})["worse"]
    ]
    numbers = [*revisions, "difference", "p, adjusted"]
    blocks = [
        *heads,
        strong.format(f"{' → '.join(revisions)}: {summarize_comparison(result)}"),
        table([["metric", *numbers, "verdict"], *metrics]),
        "\n".join(f"- {remark}" for remark in _remarks(result, literal, LISTED if ids else 0)),
    ]
    if worse:
        blocks.append(table([["subgroup that got worse", "metric", *numbers, "lesions"], *worse]))
    return "\n\n".join(blocks) + "\n"


def summarize_comparison(result: dict) -> str:
    """The verdict, the first metric, and the metrics that the verdict comes from where that one does not say it."""
    if not result["metrics"]:
        return NO_EVIDENCE
    (_, about, first), *others = in_order(result["metrics"])
    summary = f"{result['verdict']}; {about.title} {change(first['difference'])}, {first['verdict']}"
    if first["verdict"] == NO_EVIDENCE and first["p"] < 1 - result["confidence"]:  # its interval seems to object
        summary += f" when {len(result['metrics'])} metrics are compared"
    for verdict in (WORSE, BETTER):
        titles = [about.title for _, about, metric in others if metric["verdict"] == verdict]
        if titles and first["verdict"] != verdict:
            summary += f"; {verdict}: {', '.join(titles)}"
    return summary


def _remarks(result: dict, literal: Callable[[object], str], named: int) -> list[str]:
    """How was compared, what was not, which subgroups and whose decisions changed, one line each."""
    remarks = [
        f"{result['images']} test images of {result['lesions']} lesions; {result['bootstrap_replicates']} paired "
        f"bootstrap replicates over lesions. A {100 * result['confidence']:g} % interval is of its metric alone; "
        f"adjusted p-values and verdicts allow for all {len(result['metrics'])} metrics (Holm)."
    ]
    if result["not_compared"]:
        reasons = [f"{literal(name)} ({reason})" for name, reason in result["not_compared"].items()]
        remarks.append(f"Not compared: {', '.join(reasons)}.")
    subgroups = result["subgroups"]
    if subgroups is None:
        remarks.append("Subgroups: not compared, as the manifest is neither in DVC's cache nor on its remote.")
    else:
        found = f"{len(subgroups['worse'])} are" if subgroups["worse"] else "none is"
        remarks.append(
            f"Subgroups: of {subgroups['looked_at']} differences {found} evidence of one that got worse, adjusted for "
            "all of them (Holm)."
        )
    if result["changed"] is None:
        return [*remarks, "Changed decisions: not compared, as a model has no decision threshold."]

    def listed(ids: list[str]) -> str:
        names = ", ".join(map(literal, ids[:named])) + (f" and {len(ids) - named} more" if ids[named:] else "")
        return f"{len(ids)} ({names})" if ids and named else str(len(ids))

    base, new = result["thresholds"]
    return remarks + [
        f"Decisions that changed on {kind['images']} {name} images, at thresholds {base:.3f} and {new:.3f}: "
        f"{wrong} to {right} {listed(kind['wrong_to_right'])}, {right} to {wrong} {listed(kind['right_to_wrong'])}."
        for (name, kind), (wrong, right) in zip(result["changed"].items(), (("FN", "TP"), ("FP", "TN")))
    ]


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
