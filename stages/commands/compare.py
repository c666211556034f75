"""Compare: is the model of one revision really better than that of another, or only luckier?

Compares the test predictions of two revisions, which it reads through DVC, from its cache or remote: every headline
metric, the subgroups that got worse, and the decisions that changed. Nothing is checked out.

  python -m stages compare main                  the workspace against main
  python -m stages compare main HEAD --md        for a pull request
  python -m stages compare main HEAD --fail-if-worse auroc --fail-if-worse sensitivity_at_threshold

A revision is a commit, branch, tag or experiment of DVC, or "workspace": the files as they are here; or a folder that
`python -m stages pool` wrote, which is compared with another one.

Exit status: 0; 1 if a metric of --fail-if-worse is worse or was not measured with this code, or if there is no
comparison (the message then starts with "error:"); 2 for a wrong option.
"""

import sys

from stages.command_line import new_file, new_parser, print_text, writing
from stages.errors import InputError


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, or the revisions cannot be compared.
    """
    parser = new_parser("compare", __doc__)
    add = parser.add_argument
    add("base", metavar="REV", help="the revision to compare with")
    add("new", metavar="REV", nargs="?", default="workspace", help="the new one (default: workspace)")
    add("--md", action="store_true", help="print Markdown, for a pull request")
    add("--no-ids", action="store_true", help="print no ids of images, which may be private")
    add("--json", type=new_file, metavar="FILE", help="write the whole comparison to a file, too")
    worse = "exit with status 1 if this metric of metrics/evaluation.json is worse; may be repeated"
    add("--fail-if-worse", action="append", default=[], metavar="METRIC", help=worse)
    args = parser.parse_args(argv)
    from stages.config import load_config
    from stages.evaluation.comparison import WORSE
    from stages.experiments.comparison import compare_revisions, render_comparison, warn_of_stale_results
    from stages.experiments.revision import find_revision
    from stages.files import write_json

    result = compare_revisions(find_revision(args.base), find_revision(args.new), load_config(), ids=not args.no_ids)
    metrics = result["metrics"]
    for name in args.fail_if_worse:
        if name not in metrics:
            reason = result["not_compared"].get(name, "it is not a headline metric")
            raise InputError(f"--fail-if-worse {name}: {reason}; the metrics compared are {', '.join(metrics)}")
    if args.json:
        with writing("--json", args.json):
            write_json(args.json, result)
    print_text(render_comparison(result, markdown=args.md, ids=not args.no_ids))
    if args.fail_if_worse and (stale := warn_of_stale_results([args.new], [result["stale"]["new"]])):
        sys.exit(f"--fail-if-worse: {stale}")
    if worse := [name for name in args.fail_if_worse if metrics[name]["verdict"] == WORSE]:
        sys.exit(f"--fail-if-worse: {', '.join(worse)} is worse in {args.new} than in {args.base}")
