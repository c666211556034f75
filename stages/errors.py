"""What a user is told when something they supplied is wrong."""

import errno
import re
from pathlib import Path

# The disk, the user's share of it, or what one process may write (`ulimit -f`).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """A mistake in a parameter, a file or a table, described so that its user can fix it.

    The message names the file, key or row, the value found and what would be right.
    """


def regenerate(problem: str) -> InputError:
    """The error that a file which the pipeline makes is missing or damaged, with what to do about it."""
    return InputError(f"{problem}; run `dvc repro` to regenerate it")


class Problem(str):
    """One line of a list of problems, and the kind that it is counted as where the list is too long to be read."""

    __slots__ = ("kind",)

    def __new__(cls, line: str, kind: str) -> "Problem":
        problem = super().__new__(cls, line)
        problem.kind = kind
        return problem

    def __getnewargs__(self) -> tuple[str, str]:  # a process that decodes sends it to the first
        return str(self), self.kind


class TerminatedError(InputError):
    """The process was asked to end (SIGTERM), and its progress is saved."""


class DiskFullError(InputError):
    """There is no space for a file.

    Args:
        path: the file.
        reason: what the system says.
    """

    def __init__(self, path: Path | str, reason: str | None) -> None:
        super().__init__(f"{path} cannot be written: the disk is full ({reason})")


def no_space(error: BaseException | None) -> OSError | None:
    """The system's complaint that there is no space left, if that is what an error comes from."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        # PyTorch raises its own errors from those of the file that it writes to.
        error = error.__cause__ or error.__context__
    return error


def printable(text: object) -> str:
    """`text` with line breaks, other control characters and undecodable bytes as their escapes.

    For what comes from a file, a table or an archive: it breaks no line, moves no terminal's cursor, and turns no text
    around, as the marks of right-to-left scripts can.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda match: match[0].encode("unicode_escape").decode(),
        str(text),
    )


def one_line(text: object) -> str:
    """`text` without line breaks and what else moves a terminal's cursor."""
    return printable(" ".join(str(text).split()))
