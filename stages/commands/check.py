"""Check: does dvc.lock belong to the committed code, and does the remote have everything that it names?

What `dvc repro --dry --allow-missing` and `dvc data status --not-in-remote` print, with an exit status for continuous
integration: both end with 0 whatever they find.
"""

import argparse
import sys

from stages.errors import InputError


def find_problems() -> list[str]:
    """The stages that would run again, and the outputs that the remote lacks, a line each with what to do.

    Raises:
        InputError: this is no repository of DVC, or the remote cannot be asked.
    """
    from dvc.exceptions import DvcException  # takes a second to import
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo() as repo:
            stale = repo.reproduce(dry=True, allow_missing=True)
            problems = [
                f"stage {stage.name} would run again: dvc.lock is not of this code and these parameters; "
                "`dvc repro` and commit dvc.lock"
                for stage in stale
            ]
            if not repo.config["remote"]:
                print("no DVC remote is configured (`dvc remote add -d storage s3://…`): outputs were not looked for")
                return problems
            missing = repo.data_status(not_in_remote=True, remote_refresh=True)["not_in_remote"]
            if not missing:
                print("the remote has every output")
            return problems + [f"{path} is not on the remote; `dvc push` it" for path in missing]
    except (DvcException, SCMError) as error:
        raise InputError(f"{error}; run from the root of the repository") from None
    except Exception as error:  # a remote fails with the errors of its own library
        raise InputError(f"the remote cannot be asked ({' '.join(str(error).split())})") from error


def main(argv: list[str] | None = None) -> None:
    """Run the command line: exit status 1 if there is a problem.

    Raises:
        InputError: see `find_problems`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages check",
        description="Check that dvc.lock belongs to the code and that the DVC remote has every output.",
    )
    parser.parse_args(argv)
    if problems := find_problems():
        sys.exit("\n".join(problems))
    print("dvc.lock is of this code")
