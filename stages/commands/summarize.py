"""Summarize: mean and standard deviation of the headline metrics over folds or seeds, with intervals, as Markdown."""

import argparse
import sys
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from stages.errors import InputError, printable
from stages.experiments.results import Experiment, differing, list_experiments, read_experiment
from stages.figures.wording import METRICS, NOTHING

OVER = ("split.test_fold", "training.seed")
REMARK = (
    "Where {} varies, the runs that share a value of it count as one, by their mean. Folds share training images and "
    "are less independent than the formula takes them to be: the intervals are somewhat too narrow. Runs that differ "
    "in their seed alone tell nothing of other patients."
)
EXAMPLES = """\
examples:
  python -m stages summarize                                   all experiments of HEAD
  python -m stages summarize --over training.seed seed-1 seed-2 seed-3
  python -m stages summarize --metric auroc --metric nll

A revision is a commit, branch, tag or experiment of DVC. Exit status: 0, or 1 if one lacks metrics or failed.
"""


class Summary(NamedTuple):
    """A metric over the runs of a group.

    Attributes:
        mean: of the values.
        deviation: their standard deviation, with n − 1; None of one value.
        interval: of the mean, by Student's t; None of one value.
        count: of the values.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    count: int


def summarize(values: list[float], confidence: float = 0.95) -> Summary:
    """Mean, standard deviation and t-interval mean ± t(n − 1)·s/√n of independent values."""
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Summary(mean, None, None, 1)
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * deviation / count**0.5
    return Summary(mean, deviation, (mean - half, mean + half), count)


def group_experiments(experiments: list[Experiment], over: tuple[str, ...]) -> list[list[Experiment]]:
    """Part experiments into groups that have all in common, code and data included, but the parameters `over`."""
    groups: dict[Any, list[Experiment]] = {}
    for experiment in experiments:
        kept = {key: value for key, value in experiment.parameters.items() if key not in over}
        groups.setdefault((repr(kept), repr(experiment.sources)), []).append(experiment)
    return list(groups.values())


def without_repeats(group: list[Experiment], over: tuple[str, ...]) -> tuple[list[Experiment], list[str]]:
    """Those that differ in `over`, and the names of those that repeat one, which would feign precision."""
    first = {repr([experiment.parameters.get(key) for key in over]): experiment for experiment in reversed(group)}
    kept = [experiment for experiment in group if experiment in first.values()]
    return kept, [experiment.name for experiment in group if experiment not in kept]


def independent_values(group: list[Experiment], over: tuple[str, ...], metric: str) -> list[float]:
    """The values of a metric, one for each value of the first parameter of `over` that varies.

    Seeds on one fold share its images: their mean is one value, lest more seeds feign more patients.
    """
    varying = [key for key in over if len({repr(experiment.parameters.get(key)) for experiment in group}) > 1]
    values: dict[Any, list[float]] = {}
    for experiment in group:
        value = (experiment.metrics or {}).get(metric)
        if value is not None:
            values.setdefault(repr(experiment.parameters.get(varying[0])) if varying else None, []).append(value)
    return [float(np.mean(of)) for of in values.values()]


def render_markdown(
    groups: list[list[Experiment]], over: tuple[str, ...], metrics: list[str] | None = None, confidence: float = 0.95
) -> str:
    """The summary: a column for each group, a row for each metric.

    Args:
        groups: experiments that belong together, each with metrics.
        over: the parameters that they differ in.
        metrics: which; None: all that there are.
        confidence: of the intervals.
    """
    kept, repeated = zip(*(without_repeats(group, over) for group in groups))
    keys = differing([group[0].parameters for group in kept])
    keys = [key for key in keys if key not in over]
    heads = [", ".join(f"{key}={group[0].parameters.get(key)}" for key in keys) or "all runs" for group in kept]
    # The same parameters in two groups: then code or data differ.
    heads = [
        head if heads.count(head) == 1 else f"{head}, code and data as in {group[0].name}"
        for head, group in zip(heads, kept)
    ]
    there = {name for group in kept for experiment in group for name in experiment.metrics or {}}
    names = metrics or [name for name in METRICS if name in there]
    rows = [
        f"| {METRICS[name].title} | "
        + " | ".join(_cell(independent_values(group, over, name), confidence) for group in kept)
        + " |"
        for name in names
    ]
    percent = f"{100 * confidence:g} %"
    return "\n".join(
        [
            f"| mean ± standard deviation [{percent} interval] | {' | '.join(map(_plain, heads))} |",
            f"| --- |{' ---: |' * len(kept)}",
            *rows,
            "",
            *(
                f"- {_plain(head)}: {len(group)} {'run' if len(group) == 1 else 'runs'} "
                f"({', '.join(_run(experiment, over) for experiment in group)})"
                + (f"; not counted, as they repeat others: {', '.join(map(_plain, again))}" if again else "")
                + "."
                for head, group, again in zip(heads, kept, repeated)
            ),
            f"- Intervals: Student's t over runs. {REMARK.format(over[0])}",
            "",
        ]
    )


def _cell(values: list[float], confidence: float) -> str:
    if not values:
        return NOTHING
    summary = summarize(values, confidence)
    if summary.interval is None:
        return f"{summary.mean:.3f}"
    low, high = summary.interval
    return f"{summary.mean:.3f} ± {summary.deviation:.3f} [{low:.3f}, {high:.3f}]"


def _run(experiment: Experiment, over: tuple[str, ...]) -> str:
    values = ", ".join(_plain(f"{key.split('.')[-1]} {experiment.parameters.get(key)}") for key in over)
    return f"{_plain(experiment.name)}: {values}"


def _plain(text: str) -> str:
    """`text`, of one line, in which nothing is Markdown or HTML: experiments and labels may have any name."""
    return "".join(f"&#{ord(c)};" if c in r"\`*[]<>|&~" else c for c in printable(text))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages summarize",
        description="Print mean ± standard deviation of the headline metrics over folds or seeds, with intervals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revisions", metavar="REV", nargs="*", help="default: all experiments of HEAD")
    parser.add_argument(
        "--over",
        action="append",
        metavar="KEY",
        help=f"a parameter in which the runs of a group differ; may be repeated (default: {' and '.join(OVER)})",
    )
    parser.add_argument("--metric", action="append", metavar="METRIC", help="only this one; may be repeated")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="C", help="of the intervals (default: 0.95)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an option is wrong, or there is nothing to summarize.
    """
    args = _parse(argv)
    if not 0 < args.confidence < 1:
        raise InputError(f"--confidence is {args.confidence}; it must be above 0 and below 1")
    names, failed = (args.revisions, []) if args.revisions else list_experiments()
    if not names:
        raise InputError("HEAD has no experiments; run some with `python -m stages sweep`, or name revisions")
    experiments = [read_experiment(name) for name in dict.fromkeys(names)]
    over = tuple(args.over or OVER)
    known = {key for experiment in experiments for key in experiment.parameters}
    if unknown := [key for key in over if key not in known]:
        raise InputError(f"--over {unknown[0]} is no parameter of these experiments, as split.test_fold is")
    there = {name for experiment in experiments for name in experiment.metrics or {}}
    if unknown := [name for name in args.metric or [] if name not in there]:
        raise InputError(f"--metric {unknown[0]} is no headline metric of these experiments; they have {_list(there)}")
    missing = [experiment.name for experiment in experiments if not experiment.metrics]
    measured = [experiment for experiment in experiments if experiment.metrics]
    text = render_markdown(group_experiments(measured, over), over, args.metric, args.confidence) if measured else ""
    text += "".join(f"- **{_plain(name)}** has no metrics and is not counted.\n" for name in missing)
    text += "".join(f"- **{_plain(name)}** failed and is not counted.\n" for name in failed)
    # Bytes: the same on every platform, whatever encoding its terminal has.
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()
    sys.exit(1 if missing or failed else 0)


def _list(names: set[str]) -> str:
    return ", ".join(name for name in METRICS if name in names)
