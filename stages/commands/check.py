"""Check: does dvc.lock belong to the committed code, and does the remote have everything that it names?

As `dvc repro --dry --allow-missing` and `dvc data status --not-in-remote`, with an exit status for continuous
integration: both end with 0 whatever they find.
"""

import json
import sys

from stages.command_line import new_parser


def find_problems() -> list[str]:
    """The stages that would run again, and the outputs that the remote lacks, one line each with what to do.

    Raises:
        InputError: this is not a DVC repository, or the remote cannot be asked.
    """
    from stages.experiments.programs import run_dvc
    from stages.experiments.revision import has_remote
    from stages.experiments.staleness import stale_stages

    problems = [
        f"stage {name} would run again: dvc.lock has another {', '.join(differing)}; `dvc repro` and commit dvc.lock"
        for name, differing in stale_stages().items()
    ]
    if not has_remote():
        print("no DVC remote is configured (`dvc remote add -d storage s3://…`): outputs were not checked")
        return problems
    status = json.loads(run_dvc("data", "status", "--not-in-remote", "--json"))
    if not status.get("not_in_remote"):
        print("the remote has every output")
    return problems + [f"{path} is not on the remote; `dvc push` it" for path in status.get("not_in_remote", [])]


def main(argv: list[str] | None = None) -> None:
    """Run the command line: exit status 1 if there is a problem.

    Raises:
        InputError: see `find_problems`.
    """
    new_parser("check", __doc__).parse_args(argv)
    if problems := find_problems():
        sys.exit("\n".join(problems))
    print("dvc.lock matches the code")
