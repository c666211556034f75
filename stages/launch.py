"""How a stage or command is run: its errors as messages, one stage at a time in a folder."""

import argparse
import atexit
import errno
import gc
import getpass
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from stages.errors import DiskFullError, InputError, no_space
from stages.locks import wait_for_lock
from stages.ranks import is_first_process, require_one_process

# Below DVC's folder for what Git does not keep; a queued experiment has one of its own.
LOCK = Path(".dvc/tmp/stage.lock")
WAY_BACK = (
    "`git checkout HEAD params.yaml dvc.lock metrics models plots && dvc checkout --force` returns to the commit's, "
    "and to its outputs."
)


def run(main: Callable[[], None]) -> None:
    """Run a stage or command: an `InputError` ends it with its message and exit status 1, without a traceback.

    So does a full disk; `stages.files.replacing` names the file. So do files that this user may not read or write.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal that is not UTF-8 lacks
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container's user may be a bare number, and DVC and PyTorch ask for a name
        os.environ["USER"] = str(os.getuid())
    # At exit, Python searches all objects, PyTorch's modules too, for cycles to delete: seconds, for nothing.
    atexit.register(gc.freeze)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        full = no_space(error)
        if full is not None and not isinstance(error, InputError):
            error = DiskFullError(full.filename or "a file", full.strerror)
        elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            error = InputError(f"{error.filename or 'a file'} may not be read or written here ({error.strerror})")
        if not isinstance(error, InputError):
            raise
        hint = "; make space and run the same command again" if isinstance(error, DiskFullError) else ""
        # In the workspace: experiments of a queue or a cluster run in folders below .dvc, which nobody returns to.
        if type(error) is InputError and "DVC_EXP_NAME" in os.environ and ".dvc" not in Path.cwd().parts:
            hint = f"\nThe workspace keeps the parameters of an experiment that failed. {WAY_BACK}"
        sys.exit(f"error: {error}{hint}")


def run_stage(
    main: Callable[[], None], description: str | None, start_others: Callable[[], None] | None = None
) -> None:
    """`run`, for one stage at a time in a folder: another waits, and says so. It takes no arguments but `--help`.

    `dvc repro` sees to that itself; but if `dvc` is killed, its stage continues, and a second `dvc repro` would start
    another beside it. The system takes the lock from a process that ends, however it ends.

    Args:
        main: the stage.
        description: what it does, for `--help`.
        start_others: of a stage that may run in several processes, of which the first takes the lock: starts them, and
            does not return where another program does.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}",
        description=description,
        epilog="A stage of dvc.yaml, which `dvc repro` runs; its parameters are in params.yaml.",
    )

    def alone() -> None:
        parser.parse_args()
        (start_others or require_one_process)()
        if is_first_process() and LOCK.parents[1].is_dir():
            LOCK.parent.mkdir(exist_ok=True)
            lock = wait_for_lock(LOCK, "another stage is running in this folder; waiting until it ends")  # noqa: F841
        main()

    run(alone)
