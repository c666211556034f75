"""Verify: does a commit give its results again?

Checks the commit out into a temporary clone, gets its data from DVC, runs every stage again, and compares the hash of
each file that the stages wrote with that of the commit's. Neither the workspace nor DVC's cache is changed.

  python -m stages verify                     the commit that is checked out
  python -m stages verify v1.2 --tolerance 0.02

A revision is a commit, branch, tag or experiment of DVC. On another kind of processor it gives other bytes; there
--tolerance asks whether it gives the same numbers in metrics/evaluation.json.

Exit status: 0 if every file of every output is the same, or, with --tolerance, if the numbers of
metrics/evaluation.json are within it and no file is new or missing; 1 if not, or if the revision cannot be verified
(the message then starts with "error:"); 2 for a wrong option.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.command_line import new_parser
from stages.errors import InputError, printable

if TYPE_CHECKING:
    from stages.experiments.revision import Revision

# Unlocked: the commit's own file is the same, but dvc.lock has the hash of another.
STATUSES = SAME, DIFFERENT, NEW, MISSING, UNLOCKED = "same", "different", "new", "missing", "unlocked"
EVALUATION = "metrics/evaluation.json"
LISTED = 5  # changed files of the workspace that a line names


class Verification(NamedTuple):
    """The result of `verify_revision`.

    Attributes:
        commit: that was verified.
        files: what became of each file of each output, by its path; a folder whose former files are not available is
            one of them.
        largest: difference of two numbers in metrics/evaluation.json; None where their names are not the same.
        environment: both values of what differs between metrics/environment.json and this machine; None if the commit
            has none.
        explaining: those of them that bits depend on.
        stale: inputs that differ from those in dvc.lock, such as "train: stages/train.py".
    """

    commit: str
    files: dict[str, str]
    largest: float | None
    environment: dict[str, tuple[Any, Any]] | None
    explaining: list[str]
    stale: list[str]


def verify_revision(name: str) -> Verification:
    """Run a revision's pipeline again in a temporary clone and compare what it writes with what the revision holds.

    Args:
        name: a commit, branch, tag or experiment.

    Raises:
        InputError: there is no such revision, it has no dvc.lock, its data is not available, or a stage fails.
    """
    from stages.classifier.hardware import describe_environment, describe_hardware
    from stages.experiments import programs, revision

    committed = revision.Revision(name)
    if not committed.commit:
        raise InputError(f"{name} is not a commit; commit it, and verify HEAD")
    if not committed.stages:
        raise committed.lacks(revision.LOCK)
    with _clone(committed.commit) as clone:
        # What DVC tracks and a stage reads, as data/ham10000: edges of DVC's graph that start at a .dvc file.
        graph = programs.run_dvc("dag", "--dot", cwd=clone)
        for data in sorted(set(re.findall(r'"(.+)\.dvc" ->', graph))):
            committed.copy(Path(data), clone / data)
        (clone / revision.LOCK).unlink()  # what stays in it of stages that are no more, nobody makes
        command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-commit", "--no-run-cache", "dvc.yaml"]
        if subprocess.run(command, cwd=clone, env=programs.environment_of_programs(), stdout=2, check=False).returncode:  # noqa: S603
            raise InputError(f"a stage of {name} fails here; what it printed is above")
        made = revision.Revision(revision.WORKSPACE, clone)
        # Not what the clone's training wrote: it keeps the commit's, if the weights are the same.
        differences = revision.environment_differences(committed.environment, describe_environment())
        stale = [
            f"{stage}: {item}"
            for stage, differing in committed.stale_stages.items()
            for item in differing
            if item not in committed.outputs
        ]
        return Verification(
            committed.commit,
            dict(_compare(committed, made)),
            _largest_difference(committed.metrics, made.metrics),
            differences if committed.environment else None,
            sorted(differences.keys() & describe_hardware().keys()) if committed.environment else [],
            stale,
        )


@contextlib.contextmanager
def _clone(commit: str) -> Iterator[Path]:
    """A temporary clone of one commit, in DVC's own folder for what Git does not keep."""
    from stages.experiments.programs import run_git

    objects = run_git("rev-parse", "--path-format=absolute", "--git-path", "objects")
    scratch = Path(".dvc/tmp").absolute()
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=scratch) as folder:
        # Nothing is fetched, for which people's settings may have other rules; nothing is copied either.
        run_git("init", "--quiet", "--template=", "--object-format=sha1", cwd=folder)
        Path(folder, ".git/objects/info").mkdir(exist_ok=True)
        Path(folder, ".git/objects/info/alternates").write_bytes(os.fsencode(f"{objects}\n"))
        run_git("checkout", "--quiet", "--detach", commit, cwd=folder)
        yield Path(folder, run_git("rev-parse", "--show-prefix"))


def _compare(committed: "Revision", made: "Revision") -> Iterator[tuple[str, str]]:
    """What became of each file of each output, in their order."""
    for out in sorted(committed.outputs | made.outputs):
        then, now = committed.hashes(out), made.hashes(out) if out in made.outputs else {}
        hashes = committed.outputs.get(out), made.outputs.get(out)
        if not then:  # neither in DVC's cache nor on its remote, or not in the commit at all
            then, now = ({out: digest} if digest else {} for digest in hashes)
        for path in sorted(then | now):
            if path in then and path in now:
                yield path, SAME if then[path] == now[path] else DIFFERENT
            else:
                yield path, MISSING if path in then else NEW
        if then == now and hashes[0] != hashes[1]:
            yield out, UNLOCKED


def _largest_difference(then: dict[str, float | None], now: dict[str, float | None]) -> float | None:
    pairs = [(then[name], now[name]) for name in then.keys() & now.keys()]
    gaps = [0.0 if one == other else abs(one - other) for one, other in pairs if one is not None and other is not None]
    unknown = sum(one is None and other is None for one, other in pairs)
    return max(gaps) if gaps and then.keys() == now.keys() and len(gaps) + unknown == len(then) else None


def render_text(result: Verification, tolerance: float | None, uncommitted: list[str]) -> tuple[str, bool]:
    """One line per file, what may explain differences, and at last a sentence that says whether it is verified.

    Args:
        result: of a revision.
        tolerance: of two numbers in metrics/evaluation.json; None: bytes must be the same.
        uncommitted: the changed files of the workspace, which were not verified.

    Returns:
        The text, and whether the revision is verified.
    """
    width = max(map(len, STATUSES))
    lines = [f"{status.ljust(width)}  {path}" for path, status in result.files.items()] + [""]
    if result.environment is None:
        lines.append("on what the commit was made is unknown: it has no metrics/environment.json of these weights")
    elif not result.environment:
        lines.append("the environment is the one it was made in")
    else:
        changes = result.environment.items()
        lines += [f"environment: {key} was {_or_none(then)}, is {_or_none(now)}" for key, (then, now) in changes]
    if result.stale:
        lines.append(f"dvc.lock was made from other code, data or parameters: {', '.join(result.stale)}")
    if uncommitted:
        more = f" and {len(uncommitted) - LISTED} more" if uncommitted[LISTED:] else ""
        shown = ", ".join(map(printable, uncommitted[:LISTED]))
        lines.append(f"the workspace has changes that are not committed and not verified: {shown}{more}")
    other = {path: status for path, status in result.files.items() if status != SAME}
    commit, count = result.commit[:7], len(result.files)
    if not other:
        lines.append(f"{commit} gives the same bytes in all {count} files of its outputs.")
        return "\n".join(lines), True
    verdict = "other names or values" if result.largest is None else f"at most {result.largest:.2g} apart"
    within = tolerance is not None and result.largest is not None and result.largest <= tolerance
    verified = within and set(other.values()) == {DIFFERENT}
    if tolerance is not None:
        verdict += f", {'' if within else 'not '}within the tolerance of {tolerance:g}"
    if within and not verified:
        verdict += f", but not every file is {SAME} or {DIFFERENT}"
    bytes_differ = f"{commit} gives other bytes in {len(other)} of {count} files of its outputs"
    causes = [f"{what} differ" for what in (", ".join(result.explaining), "the inputs" if result.stale else "") if what]
    reason = f"that {' and '.join(causes)} explains it" if causes else "nothing that is known here explains it"
    lines.append(f"{bytes_differ}, and {reason}; the numbers of {EVALUATION} are {verdict}.")
    return "\n".join(lines), verified


def _or_none(value: Any) -> Any:
    return "none" if value is None else value


def uncommitted_changes(commit: str) -> list[str]:
    """The changed files of the workspace, if the commit is the one that is checked out there."""
    from stages.experiments.programs import run_git

    if run_git("rev-parse", "HEAD") != commit:
        return []
    changes = run_git("--no-optional-locks", "status", "--porcelain", "--no-renames", "-z", "--", ".")
    return [change[3:] for change in changes.split("\0")[:-1]]


def _tolerance(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the command line: exit status 1 if the revision is not verified.

    Raises:
        InputError: see `verify_revision`.
    """
    parser = new_parser("verify", __doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", metavar="REV", help="(default: HEAD)")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="T",
        help=f"of numbers in {EVALUATION}, at least 0; differing bytes then are not a failure",
    )
    args = parser.parse_args(argv)
    result = verify_revision(args.revision)
    text, verified = render_text(result, args.tolerance, uncommitted_changes(result.commit))
    print(text)
    if not verified:
        sys.exit(1)
