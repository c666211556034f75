"""What an experiment holds, read from its commit through DVC: nothing is checked out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.config import PARAMS, parse_yaml
from stages.errors import InputError, printable
from stages.files import EVALUATION, parse_json

LOCK = Path("dvc.lock")


class Experiment(NamedTuple):
    """A commit with results: an experiment, or any other.

    Attributes:
        name: as it was given.
        parameters: the entries of params.yaml by dotted name.
        metrics: those of metrics/evaluation.json; None if there is none.
        sources: the hashes in dvc.lock of the code and data that the stages depend on and do not make, by path.
    """

    name: str
    parameters: dict[str, Any]
    metrics: dict[str, float] | None
    sources: dict[str, str]


def read_experiment(name: str) -> Experiment:
    """Read an experiment, or any commit, branch or tag.

    Raises:
        InputError: there is no such revision, or its params.yaml or metrics cannot be read.
    """
    files = RevisionFiles(name)
    parameters = flat(parse(files.read(PARAMS), name, PARAMS))
    metrics = files.read(EVALUATION)
    stages = (parse(files.read(LOCK), name, LOCK).get("stages") or {}).values()
    made = {out["path"] for stage in stages for out in stage.get("outs", [])}
    sources = {
        dep["path"]: dep.get("md5", "")
        for stage in stages
        for dep in stage.get("deps", [])
        if not any(dep["path"] == out or dep["path"].startswith(f"{out}/") for out in made)
    }
    try:
        parsed = None if metrics is None else parse_json(metrics)
    except ValueError as error:
        raise InputError(f"{name}:{EVALUATION.as_posix()} is not JSON ({error})") from None
    values = parsed.values() if isinstance(parsed, dict) else [parsed]
    if not all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values):
        raise InputError(f"{name}:{EVALUATION.as_posix()} holds no numbers by name")
    return Experiment(name, parameters, parsed, sources)


def list_experiments() -> tuple[list[str], list[str]]:
    """The names of HEAD's experiments, and of those in the queue that failed and were not run since.

    Raises:
        InputError: this is no DVC repository in Git.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo() as repo:
            head = repo.scm.get_rev()
            names = [name for name, _ in repo.experiments.ls().get(head, [])]
            entries = [done.entry for done in repo.experiments.celery_queue.iter_failed()]
    except (DvcException, SCMError) as error:
        raise InputError(f"{error}; run from the root of the repository") from None
    failed = [entry.name for entry in entries if entry.baseline_rev == head and entry.name not in names]
    return sorted(names), failed


class RevisionFiles:
    """The files of a revision, from Git or from DVC's cache or remote.

    Args:
        revision: a commit, branch, tag or experiment.

    Raises:
        InputError: the name is empty.
    """

    def __init__(self, revision: str) -> None:
        from dvc.api import DVCFileSystem  # takes a second to import

        if not revision:  # as of a variable that is not set; DVC would take it for the workspace
            raise InputError("the name of a revision is empty; name a commit, branch, tag or experiment")
        self._revision = revision
        self._files = DVCFileSystem(rev=revision)

    def read(self, path: Path) -> bytes | None:
        """The content of a file; None if the revision has none of this name.

        Raises:
            InputError: there is no such revision, or the file is in neither cache nor remote.
        """
        from dvc.scm import RevError, SCMError

        place = f"{self._revision}:{path.as_posix()}"
        try:
            return self._files.read_bytes(path.as_posix())
        except RevError:
            raise InputError(
                f"{self._revision!r} is no commit, branch, tag or experiment here; if it is one elsewhere, "
                "`git fetch` it"
            ) from None
        except SCMError as error:
            raise InputError(f"{error}; run from the root of the repository") from None
        except FileNotFoundError:
            if not self._files.exists(path.as_posix()):
                return None
            raise InputError(
                f"{place} is neither in DVC's cache nor on its remote; `dvc push` it from where it was made"
            ) from None
        except Exception as error:  # a remote fails with the errors of its own library
            raise InputError(f"{place} cannot be read ({one_line(error)})") from error

    def read_below(self, path: Path) -> dict[str, bytes]:
        """The content of each file of a folder by its path, or of the one file that `path` is.

        Raises:
            InputError: a file is in neither cache nor remote, or the revision has none there.
        """
        try:
            names = self._files.find(path.as_posix())
        except FileNotFoundError:
            names = []
        except Exception as error:
            raise InputError(f"{self._revision}:{path.as_posix()} cannot be read ({one_line(error)})") from error
        contents = {name: self.read(Path(name)) for name in names}
        if not contents or None in contents.values():
            raise InputError(f"{self._revision}:{path.as_posix()} is neither in DVC's cache nor on its remote")
        return contents


def one_line(text: object) -> str:
    """`text` without line breaks and what else moves a terminal's cursor."""
    return printable(" ".join(str(text).split()))


def parse(content: bytes | None, name: str, path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary, empty if there is no file.

    Raises:
        InputError: it is none.
    """
    try:
        parsed = parse_yaml(content or b"") or {}
    except ValueError as error:
        raise InputError(f"{name}:{path.as_posix()} is not YAML ({error})") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{name}:{path.as_posix()} holds no keys")
    return parsed


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys by dotted name."""
    entries: dict[str, Any] = {}
    for key, value in content.items():
        entries |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return entries


def differing(all_parameters: list[dict[str, Any]]) -> list[str]:
    """The names whose values are not the same in all of them, in the order of params.yaml."""
    names = dict.fromkeys(name for parameters in all_parameters for name in parameters)
    return [name for name in names if any(other.get(name) != all_parameters[0].get(name) for other in all_parameters)]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, of which the first is the head, as aligned columns of plain text."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
