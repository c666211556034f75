"""What a user is told when something they supplied is wrong."""

import atexit
import errno
import gc
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

# Below DVC's folder for what Git does not keep; a queued experiment has one of its own.
LOCK = Path(".dvc/tmp/stage.lock")
# The disk, the user's share of it, or what one process may write (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """A mistake in a parameter, a file or a table, described so that its user can mend it.

    The message names the file, key or row, the value found and what would be right.
    """


class TerminatedError(InputError):
    """The process was asked to end (SIGTERM), and what it had done so far is kept."""


class DiskFullError(InputError):
    """There is no space for a file.

    Args:
        path: the file.
        reason: what the system says.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path} cannot be written: the disk is full ({reason})")


def no_space(error: BaseException | None) -> OSError | None:
    """The system's complaint that there is no space left, if that is what an error comes from."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        # PyTorch raises errors of its own over those of the file that it writes to.
        error = error.__cause__ or error.__context__
    return error


def printable(text: object) -> str:
    """`text` with line breaks, other control characters and undecodable bytes as their escapes.

    For what comes from a file, a table or an archive: it breaks no line and moves no terminal's cursor.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda match: match[0].encode("unicode_escape").decode(),
        str(text),
    )


def one_line(text: object) -> str:
    """`text` without line breaks and what else moves a terminal's cursor."""
    return printable(" ".join(str(text).split()))


def run(main: Callable[[], None]) -> None:
    """Run a stage or command: an `InputError` ends it with its message and exit status 1, without a traceback.

    So does a full disk; `stages.files.replacing` names the file.
    """
    # Python ends by searching all that is left, PyTorch's modules too, for cycles to delete: seconds, for nothing.
    atexit.register(gc.freeze)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        full = no_space(error)
        if full is not None and not isinstance(error, InputError):
            error = DiskFullError(full.filename or "a file", full.strerror)
        if isinstance(error, DiskFullError):
            sys.exit(f"error: {error}; make space and run the same command again")
        if isinstance(error, InputError):
            sys.exit(f"error: {error}")
        raise


def run_stage(main: Callable[[], None]) -> None:
    """`run`, for one stage at a time in a folder: another waits, and says so.

    `dvc repro` sees to that itself; but if `dvc` is killed, the stage that it started goes on, and a second `dvc repro`
    would start another beside it. The system takes the lock from a process that ends, however it ends.
    """

    def alone() -> None:
        with nullcontext() if _helps_another_process() or not LOCK.parents[1].is_dir() else _locked():
            main()

    run(alone)


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
