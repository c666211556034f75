"""Summarize: mean and standard deviation of the headline metrics over folds or seeds, with intervals, as Markdown.

  python -m stages summarize                                   all experiments of HEAD
  python -m stages summarize --over training.seed seed-1 seed-2 seed-3

A revision is a commit, branch, tag or experiment of DVC. Exit status: 0, or 1 if one lacks metrics or failed.
"""

import sys

from stages.command_line import new_parser, print_text
from stages.errors import InputError


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an option is wrong, or there is nothing to summarize.
    """
    parser = new_parser("summarize", __doc__)
    parser.add_argument("revisions", metavar="REV", nargs="*", help="default: all experiments of HEAD")
    key = "parameter in which runs of a group differ; may be repeated (default: split.test_fold and training.seed)"
    parser.add_argument("--over", action="append", metavar="KEY", help=key)
    args = parser.parse_args(argv)
    from stages.experiments.revision import Revision, list_experiments
    from stages.experiments.summary import OVER, render_summary
    from stages.reporting import escape_markdown

    names, failed = (args.revisions, []) if args.revisions else list_experiments()
    if not names:
        raise InputError("HEAD has no experiments; run some with `python -m stages sweep`, or name revisions")
    revisions = [Revision(name) for name in dict.fromkeys(names)]
    over = tuple(args.over or OVER)
    known = {key for revision in revisions for key in revision.parameters}
    if unknown := [key for key in over if key not in known]:
        raise InputError(f"--over {unknown[0]} is not a parameter of these experiments, as split.test_fold is")
    measured = [revision for revision in revisions if revision.metrics]
    missing = [revision.name for revision in revisions if not revision.metrics]
    text = render_summary(measured, over) if measured else ""
    for problem, without in (("has no metrics", missing), ("failed", failed)):
        text += "".join(f"- **{escape_markdown(name)}** {problem} and is not counted.\n" for name in without)
    print_text(text)
    sys.exit(1 if missing or failed else 0)
