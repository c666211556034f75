"""Compare: is the model of one revision really better than that of another, or only luckier?

Reads the predictions of both through DVC, from its cache or remote; nothing is checked out.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from threadpoolctl import threadpool_limits

from stages.classifier.calibration import CALIBRATION, load_calibration
from stages.config import PARAMS, EvaluationConfig, load_config, override, parse_yaml
from stages.dataset.pixels import MANIFEST, MANIFEST_COLUMNS
from stages.errors import InputError
from stages.evaluation.comparison import BETTER, NO_EVIDENCE, WORSE, compare_predictions, differences_of_test_sets
from stages.evaluation.predictions import Predictions, read_predictions
from stages.experiments.results import RevisionFiles, one_line, text_table
from stages.figures.wording import ATTRIBUTES, NOTHING, in_order
from stages.files import MODELS, PREDICTIONS, PREPARED, read_csv, write_json

WORKSPACE = "workspace"
EXAMPLES = """\
examples:
  python -m stages compare main                  the workspace against main
  python -m stages compare main HEAD --md        for a pull request
  python -m stages compare main HEAD --fail-if-worse auroc --fail-if-worse sensitivity_at_threshold

A revision is a commit, branch, tag or experiment of DVC, or "workspace": the files as they lie here.

Exit status: 0; 1 if a metric of --fail-if-worse is worse, or if there is no comparison (the message then starts with
"error:"); 2 for a wrong option.
"""
LISTED = 10  # images that a line names; --json has all


class Revision(NamedTuple):
    """What a revision knows of its model on the test images.

    Attributes:
        name: as it was given.
        predictions: of the test images.
        threshold: of the decision; None in a commit from before there was one.
        images: the manifest; None where it is not to be had.
        parameters: the entries of params.yaml by dotted name.
    """

    name: str
    predictions: Predictions
    threshold: float | None
    images: pd.DataFrame | None
    parameters: dict[str, Any]


def read_revision(name: str) -> Revision:
    """Read a revision's predictions, threshold, manifest and parameters through DVC, or those of the workspace.

    Args:
        name: a commit, branch, tag or experiment, or "workspace".

    Raises:
        InputError: there is no such revision, it has no predictions, or they are in neither cache nor remote.
    """
    if name == WORKSPACE:
        return _read_folder(name, Path())
    with tempfile.TemporaryDirectory() as folder:
        _export(name, Path(folder))
        try:
            return _read_folder(name, Path(folder))
        except InputError as error:
            # As Git names the files of a revision.
            raise InputError(str(error).replace(f"{folder}{os.sep}", f"{name}:")) from None


def _export(revision: str, folder: Path) -> None:
    """Write those of the revision's files that are to be had, of those that are needed, into a folder."""
    files = RevisionFiles(revision)
    for path in (PREDICTIONS, MODELS / CALIBRATION, PREPARED / MANIFEST, PARAMS):
        try:
            content = files.read(path)
        except InputError:
            if path == PREPARED / MANIFEST:  # subgroups can be done without
                continue
            raise
        if content is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    if not (folder / PREDICTIONS).exists():
        raise InputError(
            f"{revision} has no {PREDICTIONS.as_posix()}; name a revision in which a `dvc repro` is committed"
        )


def _read_folder(name: str, folder: Path) -> Revision:
    manifest, parameters = folder / PREPARED / MANIFEST, folder / PARAMS
    return Revision(
        name,
        read_predictions(folder / PREDICTIONS).of("test"),
        load_calibration(folder / MODELS).threshold if (folder / MODELS / CALIBRATION).exists() else None,
        read_csv(manifest, MANIFEST_COLUMNS) if manifest.exists() else None,
        parameters_in(parameters.read_bytes() if parameters.exists() else None),
    )


def parameters_in(content: bytes | None) -> dict[str, Any]:
    """The entries of a params.yaml by dotted name, unchecked: an older commit may know other ones.

    Args:
        content: of the file; None where there is none.
    """
    try:
        content = parse_yaml(content or b"")
    except ValueError:
        return {}
    sections = content if isinstance(content, dict) else {}
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        for key, value in (keys.items() if isinstance(keys, dict) else ())
    }


def compare_revisions(base: Revision, new: Revision, settings: EvaluationConfig, cpu_threads: int) -> dict:
    """Compare two revisions.

    Args:
        base: the first.
        new: the second.
        settings: replicates and confidence.
        cpu_threads: of matrix products, by which replicates are summed: the last bits depend on their number.

    Returns:
        What `compare_predictions` gives, and the names of the revisions as `base` and `new`.

    Raises:
        InputError: they were judged on different test images; says how these differ, and the parameters.
    """
    if problem := differences_of_test_sets(base.predictions, new.predictions, (base.name, new.name)):
        raise InputError(
            f"{base.name} and {new.name} were judged on different test images and cannot be compared: {problem}; "
            + _why_test_sets_differ(base.parameters, new.parameters)
        )
    with threadpool_limits(cpu_threads):
        result = compare_predictions(
            base.predictions,
            new.predictions,
            base.images if new.images is None else new.images,
            (base.threshold, new.threshold),
            settings.bootstrap_replicates,
            settings.confidence,
        )
    return {"base": base.name, "new": new.name, **result}


def _why_test_sets_differ(base: dict[str, Any], new: dict[str, Any]) -> str:
    prefixes = ("split.", "data.data_dir", "data.subsample", "data.columns", "data.classes")
    choosing = sorted(key for key in base | new if key.startswith(prefixes))
    differing = [f"{key} ({base.get(key)}, {new.get(key)})" for key in choosing if base.get(key) != new.get(key)]
    if differing:
        return f"their params.yaml differ in {', '.join(differing)}: give both the same"
    return "their params.yaml choose the same images, so the dataset itself has changed: `dvc repro` both with the same"


def render_text(result: dict) -> str:
    """The comparison as plain text, from what `compare_revisions` gives."""
    head = ("metric", result["base"], result["new"], "difference", "p", "adjusted", "verdict")
    table = [head] + [
        (
            name + (" (lower is better)" if metric["lower_is_better"] else ""),
            f"{metric['base']:.3f}",
            f"{metric['new']:.3f}",
            difference(metric),
            p_value(metric["p"]),
            p_value(metric["p_adjusted"]),
            metric["verdict"],
        )
        for name, _, metric in in_order(result["metrics"])
    ]
    headline = f"{result['base']} -> {result['new']}: {summary(result)}"
    return "\n".join([headline, "", text_table(table), "", *_remarks(result, one_line), ""])


def render_markdown(result: dict) -> str:
    """The comparison as Markdown for a pull request, from what `compare_revisions` gives: the verdict first."""
    base, new = code(result["base"]), code(result["new"])
    rows = [
        f"| {about.title}{', lower is better' if metric['lower_is_better'] else ''} "
        f"| {metric['base']:.3f} | {metric['new']:.3f} | {difference(metric)} | {p_value(metric['p_adjusted'])} "
        f"| {metric['verdict'] if metric['verdict'] == NO_EVIDENCE else '**' + metric['verdict'] + '**'} |"
        for _, about, metric in in_order(result["metrics"])
    ]
    return "\n".join(
        [
            f"**{base} → {new}: {summary(result)}**",
            "",
            f"| metric | {base} | {new} | difference | p, adjusted | verdict |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *(f"- {remark}" for remark in _remarks(result, code)),
            "",
        ]
    )


def summary(result: dict) -> str:
    """The verdict, the first metric, and the metrics that the verdict comes from where that one does not say it."""
    if not result["metrics"]:
        return NO_EVIDENCE
    (_, about, first), *others = in_order(result["metrics"])
    summary = f"{result['verdict']}; {about.title} {difference(first)}, {first['verdict']}"
    if first["verdict"] == NO_EVIDENCE and first["p"] < 1 - result["confidence"]:  # its interval seems to object
        summary += f" when {len(result['metrics'])} metrics are compared"
    for verdict in (WORSE, BETTER):
        titles = [about.title for _, about, metric in others if metric["verdict"] == verdict]
        if titles and first["verdict"] != verdict:
            summary += f"; {verdict}: {', '.join(titles)}"
    return summary


def _remarks(result: dict, literal: Callable[[object], str]) -> list[str]:
    """What there is to say besides the metrics, one line each.

    Args:
        result: what `compare_revisions` gives.
        literal: writes a name that comes from the data or the repository, so that it means nothing else.
    """
    remarks, subgroups = what_was_compared(result, literal), result["subgroups"]
    if subgroups is None:
        remarks.append("Subgroups: not compared, as the manifest is neither in DVC's cache nor on its remote.")
    elif not subgroups["worse"]:
        remarks.append(f"Subgroups: of {subgroups['looked_at']} differences none is evidence of one that got worse.")
    else:
        remarks.append(f"Subgroups that got worse, of {subgroups['looked_at']} differences, adjusted for all of them:")
        remarks[-1] += "".join(
            f" {ATTRIBUTES[group['attribute']]} {literal(group['name'])}: {group['metric']} {group['base']:.3f} to "
            f"{group['new']:.3f}, {difference(group)}, {group['lesions']} lesions;"
            for group in subgroups["worse"]
        )
        remarks[-1] = remarks[-1][:-1] + "."
    return remarks + changed_decisions(result, literal)


def what_was_compared(result: dict, literal: Callable[[object], str]) -> list[str]:
    """How many images, by what method, and which metrics are left out; arguments as for `_remarks`."""
    percent, compared = f"{100 * result['confidence']:g} %", len(result["metrics"])
    remarks = [
        f"{result['images']} test images of {result['lesions']} lesions; {result['bootstrap_replicates']} paired "
        f"bootstrap replicates over lesions. A {percent} interval is of its metric alone; adjusted p-values and "
        f"verdicts allow for all {compared} metrics (Holm)."
    ]
    if result["not_compared"]:
        reasons = [f"{literal(name)} ({reason})" for name, reason in result["not_compared"].items()]
        remarks.append(f"Not compared: {', '.join(reasons)}.")
    return remarks


def changed_decisions(result: dict, literal: Callable[[object], str]) -> list[str]:
    """The images whose decision changed, a line each kind; arguments as for `_remarks`."""
    if result["changed"] is None:
        return ["Changed decisions: not compared, as a model has no decision threshold."]

    def images(ids: list[str]) -> str:
        listed = ", ".join(map(literal, ids[:LISTED])) + (f" and {len(ids) - LISTED} more" if ids[LISTED:] else "")
        return f"{len(ids)}" + (f" ({listed})" if ids else "")

    base, new = result["thresholds"]
    return [
        f"Decisions that changed on {kind['images']} {name} images, at thresholds {base:.3f} and {new:.3f}: "
        f"wrong to right {images(kind['wrong_to_right'])}, right to wrong {images(kind['right_to_wrong'])}."
        for name, kind in result["changed"].items()
    ]


def difference(metric: dict) -> str:
    """As "+0.012 [0.003, 0.021]"."""
    value, interval = metric["difference"]["value"], metric["difference"]["interval"]
    # Adding 0 makes 0 of the -0 that rounding leaves.
    bounds = NOTHING if interval is None else ", ".join(f"{round(bound, 3) + 0.0:.3f}" for bound in interval)
    return f"{round(value, 3) + 0.0:+.3f} [{bounds}]"


def p_value(p: float) -> str:
    """As "0.012"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def code(text: object) -> str:
    """`text` as HTML code in which nothing is Markdown or HTML: a branch may well be called a|b or <b>."""
    return f"<code>{''.join(c if c.isalnum() or c in ' .-/' else f'&#{ord(c)};' for c in one_line(text))}</code>"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages compare",
        description="Compare the test predictions of two revisions: every headline metric, the subgroups that got "
        "worse, and the decisions that changed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="REV", help="the revision to compare with")
    parser.add_argument("new", metavar="REV", nargs="?", default=WORKSPACE, help="the new one (default: the workspace)")
    parser.add_argument("--md", action="store_true", help="print Markdown, for a pull request")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole comparison to a file, too")
    parser.add_argument(
        "--fail-if-worse",
        action="append",
        default=[],
        metavar="METRIC",
        help="exit with status 1 if this metric of metrics/evaluation.json is worse; may be repeated",
    )
    parser.add_argument("--replicates", type=int, metavar="N", help="of the bootstrap (default: as params.yaml says)")
    parser.add_argument("--confidence", type=float, metavar="C", help="of the intervals (default: as params.yaml says)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, or the revisions cannot be compared.
    """
    args = _parse(argv)
    if args.json and args.json.exists() and not args.json.is_file():
        raise InputError(f"--json {args.json} is no file; name the JSON file to write")
    given = {"evaluation.bootstrap_replicates": args.replicates, "evaluation.confidence": args.confidence}
    config = override(load_config(), {key: value for key, value in given.items() if value is not None})
    revisions = read_revision(args.base), read_revision(args.new)
    result = compare_revisions(*revisions, config.evaluation, config.runtime.cpu_threads)
    unknown = [name for name in args.fail_if_worse if name not in result["metrics"]]
    if unknown:
        reason = result["not_compared"].get(unknown[0], "it is no headline metric")
        raise InputError(
            f"--fail-if-worse {unknown[0]}: {reason}; the metrics compared are {', '.join(result['metrics'])}"
        )
    if args.json:
        try:
            write_json(args.json, result)
        except OSError as error:
            raise InputError(f"--json {args.json} cannot be written ({error.strerror or error})") from None
    text = render_markdown(result) if args.md else render_text(result)
    # Bytes: the same on every platform, whatever encoding its terminal has.
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.flush()
    worse = [name for name in args.fail_if_worse if result["metrics"][name]["verdict"] == WORSE]
    if worse:
        sys.exit(f"--fail-if-worse: {', '.join(worse)} is worse in {args.new} than in {args.base}")
