"""Git and DVC, called by their command lines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.errors import InputError, one_line

# Experiments, as `dvc queue status` has them.
QUEUED, RUNNING, SUCCESS, FAILED = "Queued", "Running", "Success", "Failed"


def run_git(*arguments: str, **options: Any) -> str:
    """What a command of Git prints; arguments and errors as for `run_dvc`."""
    # Hooks, as those of `core.hooksPath` for all repositories, are for what people do.
    return _printed_by(["git", "-c", f"core.hooksPath={os.devnull}", *arguments], **options).removesuffix("\n")


def run_dvc(*arguments: str, **options: Any) -> str:
    """What a command of DVC prints.

    Args:
        arguments: of `dvc`.
        options: of `subprocess.run`.

    Raises:
        InputError: it fails; with what it says.
    """
    return _printed_by([sys.executable, "-m", "dvc", *arguments], **options)


def _printed_by(command: list[str], **options: Any) -> str:
    # In a session of its own: Ctrl-C is for the command, which then ends all in order.
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | options
    options |= {"stdin": subprocess.DEVNULL, "env": environment_of_programs()}
    try:
        done = subprocess.run(command, check=False, encoding="utf-8", errors="surrogateescape", **options)  # noqa: S603
    except FileNotFoundError as error:
        raise InputError(f"there is no {error.filename} here; install it") from None
    if done.returncode:
        # Git says on standard output which files an unfinished merge has left.
        _, _, message = (done.stderr or done.stdout or "").rpartition("ERROR: ")
        reason = one_line(message.removeprefix("unexpected error - ").partition("\n\nHaving any troubles?")[0])
        outside = "not inside of a DVC repository" in reason or "not a git repository" in reason
        hint = "; run from the root of the repository" if outside else ""
        raise InputError(f"`{' '.join(command).removeprefix(f'{sys.executable} -m ')}` fails ({reason}){hint}")
    return done.stdout or ""


def environment_of_programs() -> dict[str, str]:
    """What programs are started with: they must not look at a repository that `git` or `dvc` have called this from."""
    others = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}
    others |= {"DVC_ROOT", "DVC_STAGE"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return kept | {
        # Workers run `dvc`, and stages `python`: both must be those of this interpreter.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONIOENCODING": "utf-8",  # whatever the terminal takes: what they print is read here
    }
