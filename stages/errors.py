"""What a user is told when something they supplied is wrong."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

# Below DVC's folder for what Git does not keep; a queued experiment has one of its own.
LOCK = Path(".dvc/tmp/stage.lock")


class InputError(Exception):
    """A mistake in a parameter, a file or a table, described so that its user can mend it.

    The message names the file, key or row, the value found and what would be right.
    """


def printable(text: object) -> str:
    """`text` with line breaks, other control characters and undecodable bytes as their escapes.

    For what comes from a file, a table or an archive: it breaks no line and moves no terminal's cursor.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda match: match[0].encode("unicode_escape").decode(),
        str(text),
    )


def run(main: Callable[[], None]) -> None:
    """Run a stage or command: an `InputError` ends it with its message and exit status 1, without a traceback."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run_stage(main: Callable[[], None]) -> None:
    """`run`, for one stage at a time in a folder: another waits, and says so.

    `dvc repro` sees to that itself; but if `dvc` is killed, the stage that it started goes on, and a second `dvc repro`
    would start another beside it. The system takes the lock from a process that ends, however it ends.
    """
    with nullcontext() if _helps_another_process() or not LOCK.parents[1].is_dir() else _locked():
        run(main)


def _helps_another_process() -> bool:
    """Whether this is one of the processes that the first of them has started, or that were started with it."""
    return any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "SLURM_LOCALID"))


def _locked() -> FileLock:
    lock = FileLock(LOCK)
    LOCK.parent.mkdir(exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another stage is running in this folder; waiting until it ends", flush=True)
    return lock
