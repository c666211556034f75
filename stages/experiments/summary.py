"""Mean and standard deviation of the headline metrics over folds or seeds, with intervals, as Markdown."""

from typing import Any

import numpy as np
from scipy.stats import t

from stages.evaluation.weighted import DECIDED
from stages.experiments.revision import Revision, differing_parameters
from stages.reporting import LOWER_IS_BETTER, METRICS, MISSING, escape_markdown, markdown_table, number, percent

OVER = ("split.test_fold", "training.seed")
CONFIDENCE = 0.95  # of the intervals
_COLUMNS = 2  # of a table that fits a terminal of 100
REMARK = (
    "Where {} varies, the runs that share a value of it count as one, by their mean. Folds share training images and "
    "are less independent than the formula takes them to be: the intervals are somewhat too narrow. Runs that differ "
    "in their seed alone tell nothing of other patients."
)


def group_revisions(revisions: list[Revision], over: tuple[str, ...]) -> list[list[Revision]]:
    """Group revisions that have everything in common, code and data included, except the parameters `over`."""
    groups: dict[Any, list[Revision]] = {}
    for revision in revisions:
        kept = {key: value for key, value in revision.parameters.items() if key not in over}
        groups.setdefault((repr(kept), repr(revision.sources)), []).append(revision)
    return list(groups.values())


def without_repeats(group: list[Revision], over: tuple[str, ...]) -> tuple[list[Revision], list[str]]:
    """Those that differ in `over`, and the names of those that repeat one, which would suggest too much precision."""
    first = {repr([revision.parameters.get(key) for key in over]): revision for revision in reversed(group)}
    kept = [revision for revision in group if revision in first.values()]
    return kept, [revision.name for revision in group if revision not in kept]


def independent_values(group: list[Revision], over: tuple[str, ...], metric: str) -> list[float]:
    """The values of a metric, one for each value of the first parameter of `over` that varies.

    Seeds on one fold share its images: their mean is one value: more seeds are not more patients.
    """
    varying = [key for key in over if len({repr(revision.parameters.get(key)) for revision in group}) > 1]
    values: dict[Any, list[float]] = {}
    for revision in group:
        # Without a number of its own a decision is that for the most probable class.
        value = revision.metrics.get(metric, revision.metrics.get(metric.removeprefix(DECIDED)))
        if value is not None:
            values.setdefault(repr(revision.parameters.get(varying[0])) if varying else None, []).append(value)
    return [float(np.mean(of)) for of in values.values()]


def render_summary(revisions: list[Revision], over: tuple[str, ...]) -> str:
    """A column for each group of runs that differ in nothing but `over`, a row for each metric.

    Args:
        revisions: each with metrics.
        over: the parameters that are averaged over.
    """
    groups = [without_repeats(group, over) for group in group_revisions(revisions, over)]
    kept = [group for group, _ in groups]
    keys = [key for key in differing_parameters([group[0] for group in kept]) if key not in over]
    heads = [", ".join(f"{key}={group[0].parameters.get(key)}" for key in keys) or "all runs" for group in kept]
    # The same parameters in two groups: then code or data differ.
    heads = [
        head if heads.count(head) == 1 else f"{head}, code and data as in {group[0].name}"
        for head, group in zip(heads, kept)
    ]
    there = {name for revision in revisions for name in revision.metrics}
    rows = []
    for name in (name for name in METRICS if name in there):
        values = [independent_values(group, over, name) for group in kept]
        best = _best(name, values)
        cells = [_cell(each) for each in values]
        rows.append([METRICS[name].title, *(f"**{cell}**" if at in best else cell for at, cell in enumerate(cells))])
    corner = f"mean ± SD ({percent(CONFIDENCE)} interval)"
    several = len(heads) > 1
    letters = [chr(ord("A") + at) if at < 26 else str(at + 1) for at in range(len(heads))]
    remarks = []
    for letter, head, (group, repeated) in zip(letters, heads, groups):
        runs = ", ".join(f"{revision.name}: {_values(revision, over)}" for revision in group)
        again = f"; not counted, as they repeat others: {', '.join(repeated)}" if repeated else ""
        count = f"{len(group)} {'run' if len(group) == 1 else 'runs'}"
        mark = f"**{letter}** " if several else ""
        remarks.append(f"- {mark}{escape_markdown(f'{head}: {count} ({runs}){again}')}.")
    if several:
        remarks.append("- Bold: the best mean of a row. The test fold is not there to choose by.")
    remarks.append(f"- Intervals: Student's t over runs. {REMARK.format(over[0])}")
    columns = letters if several else [escape_markdown(head) for head in heads]
    tables = [
        markdown_table(
            [[corner, *columns[at : at + _COLUMNS]], *([row[0], *row[at + 1 : at + 1 + _COLUMNS]] for row in rows)]
        )
        for at in range(0, len(columns), _COLUMNS)
    ]
    return "\n\n".join([*tables, "\n".join(remarks), ""]).rstrip("\n") + "\n"


def _best(name: str, values: list[list[float]]) -> list[int]:
    """Which groups have the best mean of a metric; none, if there is nothing to choose between."""
    means = {at: float(np.mean(each)) for at, each in enumerate(values) if each}
    if len(means) < 2:
        return []
    best = (min if name in LOWER_IS_BETTER else max)(means.values())
    return [at for at, mean in means.items() if mean == best]


def _cell(values: list[float]) -> str:
    if not values:
        return MISSING
    mean = np.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    # mean ± t(n − 1)·s/√n
    deviation = np.std(values, ddof=1)
    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * deviation / len(values) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f} ({number(mean - half)} to {number(mean + half)})"


def _values(revision: Revision, over: tuple[str, ...]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {revision.parameters.get(key)}" for key in over)
