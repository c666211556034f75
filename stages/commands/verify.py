"""Verify: does a commit give its results again?

Checks the commit out into a temporary clone, gets its data from DVC, runs every stage anew, and compares each file that
the stages wrote with what the commit says of it. Neither the workspace nor DVC's cache is changed, but for data that
had to be pulled.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages.commands.contents import Unlike, largest_difference
from stages.commands.snapshots import environment_differences
from stages.config import parse_yaml
from stages.errors import InputError
from stages.experiments.results import LOCK, RevisionFiles, one_line
from stages.files import ENVIRONMENT

TOLERANCE = 1e-5  # a few of the last of the six decimals that metrics have
STATUSES = IDENTICAL, WITHIN, DIFFERENT = "identical", "within", "different"
LISTED = 5  # changed files of the workspace that a line names
EXAMPLES = """\
examples:
  python -m stages verify                     the commit that is checked out
  python -m stages verify v1.2 --tolerance 0.02

A revision is a commit, branch, tag or experiment of DVC. A difference of two numbers is absolute within ±1, else
relative to the larger; of pixels, a fraction of the way from black to white.

Exit status: 0 if every output is identical or within the tolerance; 1 if one is different, or if the revision cannot be
verified (the message then starts with "error:"); 2 for a wrong option.
"""


class Finding(NamedTuple):
    """What became of one file.

    Attributes:
        path: of the file, or of a folder whose former files are not to be had.
        status: `IDENTICAL`, `WITHIN` or `DIFFERENT`.
        difference: the largest of two numbers, where there is one.
        reason: why it is different, in words; empty where numbers alone are.
    """

    path: str
    status: str
    difference: float | None = None
    reason: str = ""


class Verification(NamedTuple):
    """What `verify_revision` found.

    Attributes:
        commit: that was verified.
        findings: one for each file of each output.
        environment: both values of what differs in metrics/environment.json; None if the commit has none.
        stale: what dvc.lock was not made from: as "train: stages/train.py".
    """

    commit: str
    findings: list[Finding]
    environment: dict[str, tuple[Any, Any]] | None
    stale: list[str]


def verify_revision(revision: str, tolerance: float = TOLERANCE) -> Verification:
    """Run a revision's pipeline anew in a temporary clone and compare what it writes with what the revision holds.

    Args:
        revision: a commit, branch, tag or experiment.
        tolerance: the largest difference of two numbers that does not count.

    Raises:
        InputError: there is no such revision, it has no dvc.lock, its data is not to be had, or a stage fails.
    """
    root, commit = _resolve(revision)
    with _clone(root, commit) as clone:
        before = _read_lock(clone, revision)
        tracked = {path: (clone / path).read_bytes() for path in _git(clone, "ls-files", "-z").split("\0") if path}
        _pull_data(clone, revision)
        _reproduce(clone, revision)
        after = _read_lock(clone, revision)
        findings = list(_compare(clone, RevisionFiles(commit), tracked, _outputs(before), _outputs(after), tolerance))
        environment = None
        if ENVIRONMENT.as_posix() in tracked:
            now = (clone / ENVIRONMENT).read_bytes()
            environment = environment_differences(json.loads(tracked[ENVIRONMENT.as_posix()]), json.loads(now))
    return Verification(commit, findings, environment, _stale(before, after))


def _resolve(revision: str) -> tuple[Path, str]:
    """The root of the repository of the working directory, and the commit of the revision."""
    from dvc.exceptions import NotDvcRepoError  # takes a second to import
    from dvc.repo import Repo
    from dvc.scm import NoSCM, RevError, resolve_rev

    if not revision:  # as of a variable that is not set
        raise InputError("the name of a revision is empty; name a commit, branch, tag or experiment")
    try:
        with Repo() as repo:
            if isinstance(repo.scm, NoSCM):
                raise InputError(f"{repo.root_dir} is no Git repository; there is no commit to verify")
            return Path(repo.root_dir), resolve_rev(repo.scm, revision)
    except NotDvcRepoError as error:
        raise InputError(f"{error}; run from the root of the repository") from None
    except RevError:
        raise InputError(
            f"{revision!r} is no commit, branch, tag or experiment here; if it is one elsewhere, `git fetch` it"
        ) from None


@contextlib.contextmanager
def _clone(root: Path, commit: str) -> Iterator[Path]:
    """A temporary clone of one commit that shares cache, remotes and credentials with the repository."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        local = repo.config.read("local")
        # Paths are absolute here: in the clone they would lead elsewhere.
        local["remote"] = {name: dict(remote) for name, remote in repo.config["remote"].items()}
        local["cache"] = {**local.get("cache", {}), "dir": repo.cache.local_cache_dir}
        scratch = Path(repo.tmp_dir)
    # In DVC's own folder for what Git does not keep: on the cache's disk, so that data is linked and not copied.
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=scratch) as folder:
        clone = Path(folder)
        _git(clone, "init", "--quiet")
        _git(clone, "fetch", "--quiet", "--depth=1", str(root), commit)
        _git(clone, "checkout", "--quiet", "--detach", commit)
        if not (clone / ".dvc").is_dir():
            raise InputError(f"{commit[:7]} is from before DVC: it has no .dvc")
        with Repo(folder) as repo, repo.config.edit("local") as config:
            config.update(local)
        yield clone


def _environment() -> dict[str, str]:
    """Of programs in the clone: they must not look at the repository that `git` or `dvc` have called this from."""
    others = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "DVC_ROOT", "DVC_STAGE"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    # Stages run `python`: it must be this one.
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"`git {arguments[0]}` fails: {one_line(done.stderr)}")
    return done.stdout


def _read_lock(clone: Path, revision: str) -> dict:
    try:
        return parse_yaml((clone / LOCK).read_bytes())["stages"]
    except FileNotFoundError:
        raise InputError(f"{revision} has no {LOCK}; name a revision in which a `dvc repro` is committed") from None
    except Exception as error:  # YAML's own, of a file that a merge has damaged
        raise InputError(f"{revision}:{LOCK} is none ({one_line(error)}); `dvc repro` makes it again") from None


def _outputs(lock: dict) -> dict[str, str]:
    """The hash of each output by its path."""
    return {out["path"]: out.get("md5", "") for stage in lock.values() for out in stage.get("outs", [])}


def _pull_data(clone: Path, revision: str) -> None:
    """Get what the stages read and DVC tracks but no stage makes, as data/ham10000."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        read = [dep.fs_path for stage in repo.index.stages if stage.cmd for dep in stage.deps]
        sources = {
            stage.path_in_repo
            for stage in repo.index.stages
            for out in stage.outs
            if not stage.cmd and any(_overlap(out.fs_path, path) for path in read)
        }
        try:
            if sources:
                repo.pull([str(clone / source) for source in sources])
        except Exception as error:  # a remote fails with the errors of its own library
            raise InputError(
                f"what {', '.join(sorted(sources))} of {revision} names is neither in DVC's cache nor on its remote "
                f"({one_line(error)}); `dvc push` it from where it is"
            ) from None


def _reproduce(clone: Path, revision: str) -> None:
    """Run every stage; what DVC and the stages print goes to standard error."""
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-commit", "--no-run-cache", "dvc.yaml"]
    done = subprocess.run(command, cwd=clone, env=_environment(), stdout=2, check=False)  # noqa: S603
    if done.returncode:
        raise InputError(f"a stage of {revision} fails here; what it printed stands above")


def _overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def _compare(
    clone: Path,
    files: RevisionFiles,
    tracked: dict[str, bytes],
    before: dict[str, str],
    after: dict[str, str],
    tolerance: float,
) -> Iterator[Finding]:
    """Compare every output.

    Args:
        clone: in which the pipeline has run.
        files: of the revision, from DVC's cache or remote.
        tracked: the content of those of its files that Git has.
        before: the hash of each output in the revision's dvc.lock.
        after: and in the one that was just written.
        tolerance: the largest difference of two numbers that does not count.
    """
    for out in sorted(before | after):
        now = {path.relative_to(clone).as_posix(): path for path in _files_below(clone / out)}
        if out not in before:
            yield Finding(out, DIFFERENT, reason=f"not in the revision's {LOCK}")
            continue
        in_git = {path: content for path, content in tracked.items() if PurePosixPath(path).is_relative_to(out)}
        if not in_git and before[out] == after.get(out):
            yield from (Finding(path, IDENTICAL) for path in sorted(now))
            continue
        try:
            then = in_git or files.read_below(Path(out))
        except InputError:
            yield Finding(
                out, DIFFERENT, reason="another hash; the former content is neither in DVC's cache nor on its remote"
            )
            continue
        findings = [
            _compare_file(path, then.get(path), now.get(path), (before, after), tolerance)
            for path in sorted(then | now)
        ]
        yield from findings
        if before[out] != after.get(out) and all(finding.status == IDENTICAL for finding in findings):
            yield Finding(out, DIFFERENT, reason=f"the revision's {LOCK} has the hash of another content")


def _files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path] * path.is_file()


def _compare_file(
    path: str, then: bytes | None, now: Path | None, hashes: tuple[dict[str, str], dict[str, str]], tolerance: float
) -> Finding:
    if then is None or now is None:
        return Finding(path, DIFFERENT, reason="not in the revision" if then is None else "was not made again")
    content = now.read_bytes()
    if content == then:
        return Finding(path, IDENTICAL)
    try:
        # The model card names the hash of the weights, which are judged themselves.
        difference = largest_difference(path, *map(_with_names, (then, content), hashes))
    except Unlike as error:
        return Finding(path, DIFFERENT, reason=str(error))
    return Finding(path, WITHIN if difference <= tolerance else DIFFERENT, difference)


def _with_names(content: bytes, hashes: dict[str, str]) -> bytes:
    for path, digest in hashes.items():
        if digest:
            content = content.replace(digest.encode(), path.encode())
    return content


def _stale(before: dict, after: dict) -> list[str]:
    """What of its commit a dvc.lock was not made from: code and data that no stage makes, parameters and commands."""

    def inputs(lock: dict) -> dict[str, Any]:
        made = _outputs(lock)
        found: dict[str, Any] = {}
        for name, stage in lock.items():
            found[f"{name}: cmd"] = stage.get("cmd")
            for dep in stage.get("deps", []):
                if not any(_overlap(dep["path"], out) for out in made):
                    found[f"{name}: {dep['path']}"] = dep.get("md5")
            for parameters in stage.get("params", {}).values():
                found |= {f"{name}: {key}": value for key, value in parameters.items()}
        return found

    one, other = inputs(before), inputs(after)
    return sorted(key for key in one | other if one.get(key) != other.get(key))


def render_text(result: Verification, tolerance: float) -> str:
    """The findings as plain text, a line each, and what may explain them."""
    counts = {status: sum(finding.status == status for finding in result.findings) for status in STATUSES}
    width = max((len(finding.path) for finding in result.findings), default=0)
    lines = [
        "  ".join([finding.status.ljust(9), finding.path.ljust(width), _explain(finding)]).rstrip()
        for finding in result.findings
    ]
    lines += [
        "",
        f"{result.commit[:7]}: {len(result.findings)} outputs, {counts[IDENTICAL]} identical, {counts[WITHIN]} equal "
        f"within {tolerance:g}, {counts[DIFFERENT]} different",
    ]
    if result.environment is None:
        lines.append(f"{ENVIRONMENT.as_posix()} is not in the commit: on what it ran is unknown")
    elif not result.environment:
        lines.append("the environment is the one it was made in")
    else:
        lines += [
            f"environment: {key} was {_or_none(then)}, is {_or_none(now)}"
            for key, (then, now) in result.environment.items()
        ]
    if result.stale:
        lines.append(f"{LOCK} was made from other code, data or parameters: {', '.join(result.stale)}")
    return "\n".join(lines) + "\n"


def _or_none(value: Any) -> Any:
    return "none" if value is None else value


def _explain(finding: Finding) -> str:
    return finding.reason if finding.difference is None else f"largest difference {finding.difference:.2g}"


def uncommitted(commit: str) -> list[str]:
    """The changed files of the workspace, if the commit is the one that is checked out there: they are not verified."""
    if _git(Path(), "rev-parse", "HEAD").strip() != commit:
        return []
    return [line[3:] for line in _git(Path(), "--no-optional-locks", "status", "--porcelain").splitlines()]


def _tolerance(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the command line: exit status 1 if an output is different.

    Raises:
        InputError: see `verify_revision`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages verify",
        description="Run a commit's pipeline anew and say of every output whether it is the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revision", nargs="?", default="HEAD", metavar="REV", help="(default: HEAD)")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="T",
        help=f"the largest difference of two numbers that does not count, at least 0 (default: {TOLERANCE:g})",
    )
    args = parser.parse_args(argv)
    result = verify_revision(args.revision, args.tolerance)
    print(render_text(result, args.tolerance), end="")
    if changes := uncommitted(result.commit):
        more = f" and {len(changes) - LISTED} more" if changes[LISTED:] else ""
        print(f"the workspace has changes that are not committed and not verified: {', '.join(changes[:LISTED])}{more}")
    if any(finding.status == DIFFERENT for finding in result.findings):
        sys.exit(1)
