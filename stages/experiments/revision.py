"""What a commit, branch, tag or experiment holds, or the workspace: read through DVC, nothing is checked out."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # of typing's own pydantic reads only those of Python 3.12
    TypeVar,
)

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException, PrettyDvcException
from dvc.fs import GitFileSystem
from dvc.repo import Repo
from dvc.scm import RevError, SCMError, resolve_rev
from typing_extensions import TypedDict

from stages import files
from stages.checks import Flag, Float, Whole, checked
from stages.classifier.calibration import Costs
from stages.config import PARAMS, Config, load_config, parse_yaml
from stages.dataset.pixels import MANIFEST, MANIFEST_COLUMNS
from stages.errors import InputError, one_line, regenerate
from stages.evaluation.details import read_details
from stages.evaluation.metrics import headline_numbers
from stages.evaluation.predictions import Predictions, read_predictions
from stages.experiments.programs import run_dvc, run_git
from stages.experiments.staleness import open_repository, stale_stages

T = TypeVar("T")
WORKSPACE = "workspace"
LOCK = Path("dvc.lock")
# The tables in plots/ and their columns.
CURVES = {
    "roc": ["fpr", "tpr", "lower", "upper"],
    "precision_recall": ["recall", "precision", "lower", "upper"],
    "reliability": ["predicted", "observed", "lower", "upper"],
    "confusion_matrix": ["actual", "predicted"],
}
# What metrics/environment.json tells of the run; all else in it says on what it ran.
OF_THE_RUN = {"commit", "dirty", "training_images_per_second", "training_seconds", "weights_md5"}


# Of each file what is read here: other commits may hold more.
class _Estimate(TypedDict):
    value: Float | None
    interval: tuple[Float, Float] | None


class _Evaluated(TypedDict):
    metrics: dict[str, _Estimate]
    decided: NotRequired[dict[str, _Estimate]]
    malignancy: NotRequired["_Evaluated"]


class _Calibration(TypedDict):
    threshold: Float
    costs: NotRequired[Costs | None]


class _Diagnosis(TypedDict):
    malignant: Flag


class _Details(TypedDict):
    calibration: NotRequired[_Calibration]
    classes: NotRequired[list[str] | None]
    taxonomy: NotRequired[dict[str, _Diagnosis]]
    confidence: NotRequired[Float]
    test: _Evaluated


class _Split(TypedDict):
    images: Whole
    lesions: Whole


class _Splits(TypedDict, total=False):
    train: _Split
    val: _Split
    test: _Split


class _Lock(TypedDict, total=False):
    stages: dict[str, dict[str, Any]]


class _TrainingSummary(TypedDict, total=False):
    val: dict[str, Float]


class Revision:
    """A commit, branch, tag or experiment, or the workspace; each file is read and checked when it is first asked for.

    Args:
        name: of the revision, or "workspace".
        folder: of the workspace.

    Attributes:
        name: as it was given.
        commit: its hash; empty for the workspace.

    Raises:
        InputError: there is no such revision, or it has no DVC project in the working directory's place; also in every
            property, if its file is damaged, or is neither in DVC's cache nor on its remote.
    """

    def __init__(self, name: str, folder: Path = Path()) -> None:
        self.name, self.commit, self._folder = name, "", folder
        self._files: Any = None  # a DVCFileSystem, whose methods fsspec types for text and bytes alike
        if name == WORKSPACE:
            return
        if not name:  # as of a variable that is not set; DVC would take it for the workspace
            raise InputError("the name of a revision is empty; name a commit, branch, tag or experiment")
        try:
            self.commit, self._files = _open(name)
        except (DvcException, SCMError) as error:
            raise InputError(one_line(error)) from None

    def read(self, path: Path) -> bytes | None:
        """The content of a file; None if the revision has none of this name."""
        if self._files is None:
            return (self._folder / path).read_bytes() if (self._folder / path).is_file() else None
        try:
            return self._files.read_bytes(path.as_posix())
        except Exception as error:  # a remote fails with the errors of its own library
            # An output without a hash is one that no run has made.
            known = isinstance(error, FileNotFoundError) and self._files.exists(path.as_posix())
            if isinstance(error, FileNotFoundError) and not (known and self._files.info(path.as_posix()).get("md5")):
                return None
            raise self._unavailable(path, error) from None

    def copy(self, path: Path, target: Path) -> None:
        """Copy a file or folder of a commit to another place."""
        try:
            self._files.get(path.as_posix(), str(target), recursive=True)
        except Exception as error:
            raise self._unavailable(path, error) from None

    def has(self, path: Path) -> bool:
        """Whether Git or DVC tracks a file or folder of this name in a commit."""
        return self._files.exists(path.as_posix())

    def hashes(self, path: str) -> dict[str, str]:
        """The MD5 of each file below a folder by its path, or of the file at `path`; empty where not available."""
        if self._files is None:
            root = self._folder / path
            found = [root] * root.is_file() + [file for file in root.rglob("*") if file.is_file()]
            return {file.relative_to(self._folder).as_posix(): files.md5_of(file.read_bytes()) for file in found}
        try:
            # DVC knows the hashes of what it keeps; what Git has is read.
            found = self._files.find(path, detail=True)
            return {
                name: about.get("md5") or files.md5_of(self._files.read_bytes(name)) for name, about in found.items()
            }
        except Exception:  # the list of the folder's files is not available
            return {}

    def lacks(self, path: Path) -> InputError:
        """The error that a file is missing which every commit of a run has."""
        return InputError(f"{self.name} has no {path.as_posix()}; name a revision in which a `dvc repro` is committed")

    @cached_property
    def evaluated(self) -> Predictions:
        """The predictions of the validation and test images."""
        taxonomy, costs = self.details.get("taxonomy"), self.details.get("calibration", {}).get("costs")
        return self._required(files.PUBLISHED[files.PREDICTIONS], lambda file: read_predictions(file, taxonomy, costs))

    @cached_property
    def predictions(self) -> Predictions:
        """Those of the test images."""
        return self.evaluated.of("test")

    @cached_property
    def results(self) -> dict[str, Any]:
        """All of metrics/details.json, which must be as this commit's code writes it."""
        return self._required(files.PUBLISHED[files.DETAILS], read_details)

    @cached_property
    def threshold(self) -> float | None:
        """Of the decision; None in a commit from before there was one."""
        return self.details["calibration"]["threshold"] if "calibration" in self.details else None

    @cached_property
    def images(self) -> pd.DataFrame | None:
        """The manifest; None where it is not available."""
        try:
            self.read(files.PREPARED / MANIFEST)
        except InputError:
            return None
        return self._load(files.PREPARED / MANIFEST, lambda file: files.read_csv(file, MANIFEST_COLUMNS))

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Those of `CURVES` that there are."""

        def read(file: Path) -> pd.DataFrame:
            table = files.read_csv(file, CURVES[file.stem]).filter(CURVES[file.stem])
            try:
                return table if file.stem == "confusion_matrix" else table.astype(float)
            except ValueError as error:
                raise regenerate(f"{file}: {one_line(error)}") from None

        tables = {name: self._load(files.PLOTS / f"{name}.csv", read) for name in CURVES}
        return {name: table for name, table in tables.items() if table is not None}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The entries of params.yaml by dotted name."""
        if not (content := self._yaml(PARAMS, dict[str, Any])):
            raise self.lacks(PARAMS)  # of no parameter it could be said whether it changed
        return _flat(content)

    @cached_property
    def config(self) -> Config:
        """params.yaml as this commit's code reads it."""
        return self._required(PARAMS, load_config)

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Those of dvc.lock by name."""
        return self._yaml(LOCK, _Lock).get("stages", {})

    @cached_property
    def outputs(self) -> dict[str, str]:
        """The hash in dvc.lock of each output of a stage by its path."""
        return {out["path"]: out.get("md5", "") for stage in self.stages.values() for out in stage.get("outs", [])}

    @cached_property
    def stale_stages(self) -> dict[str, list[str]]:
        """`stale_stages`, if there are results: they are not of this code, these parameters and data."""
        return stale_stages(self._files and self._files.repo) if self.stages or self.estimates else {}

    @cached_property
    def sources(self) -> dict[str, str]:
        """The hash in dvc.lock of all code and data that the stages depend on and do not make, by its path."""
        if not self.stages:
            raise self.lacks(LOCK)
        deps = {dep["path"]: dep.get("md5", "") for stage in self.stages.values() for dep in stage.get("deps", [])}
        return {dep: md5 for dep, md5 in deps.items() if not any(Path(dep).is_relative_to(out) for out in self.outputs)}

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """metrics/evaluation.json; as all that follow, it is empty if there is no such file."""
        return self._json(files.EVALUATION, dict[str, Float | None])

    @cached_property
    def val_loss(self) -> float | None:
        """The validation loss that `training.monitor` names, of the kept epoch (of an ensemble's first network)."""
        val = self._json(files.PUBLISHED[files.TRAINING_METRICS] / "metrics.json", _TrainingSummary).get("val", {})
        return val.get(str(self.parameters.get("training.monitor")).removeprefix("val_"))

    @cached_property
    def details(self) -> dict[str, Any]:
        """`calibration`, `classes`, `taxonomy`, `confidence` and metrics of metrics/details.json."""
        return self._json(files.PUBLISHED[files.DETAILS], _Details)

    @cached_property
    def estimates(self) -> dict[str, dict[str, Any]]:
        """`{"value", "interval"}` of each headline metric; without an interval in a commit that has no details."""
        without = {name: {"value": value, "interval": None} for name, value in self.metrics.items()}
        return headline_numbers(self.details["test"]) if self.details else without

    @property
    def has_diagnoses(self) -> bool:
        """Whether the metrics are of a model of diagnoses."""
        return "malignant_auroc" in self.estimates

    @cached_property
    def estimates_of_malignancy(self) -> dict[str, dict[str, Any]]:
        """`estimates` read as of a model of benign and malignant; empty in a commit that has none of its diagnoses."""
        test = self.details.get("test", {})
        return test.get("malignancy", {}).get("metrics", {}) if self.has_diagnoses else self.estimates

    @cached_property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The counts of images and lesions in metrics/split.json, by split."""
        return self._json(files.PUBLISHED[files.SPLIT_METRICS], _Splits)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """metrics/environment.json; empty where it tells of other weights than this revision's."""
        environment = self._json(files.ENVIRONMENT, dict[str, str | Flag | Whole | Float | None])
        made = self.outputs.get(files.MODEL_WEIGHTS.as_posix()), None
        return environment if environment.get("weights_md5") in made else {}

    def _unavailable(self, path: Path, error: Exception) -> InputError:
        if isinstance(error, PrettyDvcException):  # its dvc.yaml or dvc.lock, as after a merge with conflicts
            return InputError(f"DVC cannot read {self.name}: {one_line(error)}")
        why = "" if isinstance(error, FileNotFoundError) else f" ({one_line(error)})"
        return InputError(
            f"{self.name}:{path.as_posix()} is neither in DVC's cache nor on its remote{why}; "
            "`dvc push` it from where it was made"
        )

    def _load(self, path: Path, reader: Callable[[Path], T]) -> T | None:
        """What the reader of a stage's file makes of it; errors name the file as Git does."""
        if (content := self.read(path)) is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            file.write_bytes(content)
            try:
                return reader(file)
            except InputError as error:
                raise InputError(str(error).replace(str(file), f"{self.name}:{path.as_posix()}")) from None

    def _required(self, path: Path, reader: Callable[[Path], T]) -> T:
        if (content := self._load(path, reader)) is None:
            raise self.lacks(path)
        return content

    def _json(self, path: Path, kind: Any) -> Any:
        return self._load(path, lambda file: files.read_json(file, kind)) or {}

    def _yaml(self, path: Path, kind: Any) -> Any:
        try:
            return checked(parse_yaml(self.read(path) or b"") or {}, kind)
        except ValueError as error:
            problem = f"{self.name}:{path.as_posix()}: {error}"
            raise (InputError(problem) if path == PARAMS else regenerate(problem)) from None  # only people write it


class PooledRun(Revision):
    """What `python -m stages pool` wrote, read as if it were a revision whose test images are those of all folds.

    Args:
        folder: where it wrote it.
    """

    stale_stages: dict[str, list[str]] = {}  # which stages a folder is of, it does not say  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(WORKSPACE, folder)
        self.name = str(folder)

    def read(self, path: Path) -> bytes | None:
        """The content of a file, where `pool` has written it; the images are those of the workspace."""
        if path == files.PREPARED / MANIFEST:
            return path.read_bytes() if path.is_file() else None
        inside = Path("plots", files.TABLES.name, path.name) if path.parent == files.PLOTS else Path(path.name)
        return super().read(inside)


def find_revision(name: str) -> Revision:
    """The revision of this name, or what `python -m stages pool` wrote to the folder of this name."""
    # Not by `Path`, which fails where a name is too long for a file.
    is_pooled = all(os.path.isfile(f"{name}/{file.name}") for file in (files.PREDICTIONS, files.DETAILS, PARAMS))  # noqa: PTH113
    return PooledRun(Path(name)) if is_pooled else Revision(name)


def _open(name: str) -> tuple[str, Any]:
    """The hash of a commit, and its files as a `DVCFileSystem` that starts at the working directory's place in it."""
    top = run_git("rev-parse", "--show-toplevel")  # Git itself says best what is wrong with a repository
    here = open_repository()
    scm: Any = here.scm
    commit = _commit_of(scm, name)
    root = Path(here.root_dir).resolve()
    if root != Path.cwd():
        raise InputError(f"this is a folder of the repository in {root}; run from there")
    # DVC alone looks from Git's root on: of a project below it, it would find no file, and say nothing.
    place = f"/{root.relative_to(top).as_posix()}".removesuffix("/.")
    try:
        scm.pygit2.repo.index  # noqa: B018  with one that is split, or sparse, reading any file would wait for ever
    except Exception as error:
        raise InputError(
            f"DVC cannot read Git's index here ({one_line(error)}); write it anew: `git config core.splitIndex false "
            "&& git update-index --no-split-index`, or `git sparse-checkout reapply --no-sparse-index`"
        ) from None
    _require_files(commit)
    git = GitFileSystem(scm=scm, rev=commit)
    if not git.isdir(f"{place}/{Repo.DVC_DIR}"):
        raise InputError(f"{name} is from before DVC, or from before the project moved here: it has no {place}/.dvc")
    # A relative path in the commit's settings would be taken as one from Git's root; and this is where the data is now.
    storage = {section: here.config[section] for section in ("cache", "core", "remote")}
    return commit, DVCFileSystem(Repo(place or "/", fs=git, scm=scm, config=storage))


def _commit_of(scm: Any, name: str) -> str:
    problem = f"{name!r} is not a commit, branch, tag or experiment here; if it is one elsewhere, `git fetch` it"
    try:
        # A name of Git's may stand for a file or folder, too.
        return run_git("rev-parse", "--verify", "--quiet", resolve_rev(scm, name) + "^{commit}")
    except RevError as error:
        if "ambiguous" in str(error):
            problem = (
                f"{name!r} names several; give the hash of one, as `git for-each-ref refs/exps` has of experiments"
            )
    except (InputError, OSError, ValueError):  # pygit2's, of a name that is too long or no text
        pass
    raise InputError(problem)


def _require_files(*commits: str) -> None:
    """Have Git read all files of commits: for one that is damaged or not here DVC would wait for ever.

    A partial clone (`--filter=blob:none`) fetches what it lacks, all at once, where reading each would fetch it alone.
    """
    empty = run_git("hash-object", "-t", "tree", os.devnull)
    for commit in commits:
        run_git("diff", "--shortstat", empty, commit, "--", ".")


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in content.items():
        entries |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return entries


def differing_parameters(revisions: Sequence[Revision]) -> list[str]:
    """The names of the parameters that are not the same in all, in the order of params.yaml."""
    names, none = dict.fromkeys(name for revision in revisions for name in revision.parameters), object()
    return [name for name in names if len({repr(each.parameters.get(name, none)) for each in revisions}) > 1]


def environment_differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two environments differ, as metrics/environment.json has them: both values of each such entry."""
    return {
        key: (one.get(key), other.get(key))
        for key in sorted((one | other).keys() - OF_THE_RUN)
        if one.get(key) != other.get(key)
    }


def has_remote() -> bool:
    """Whether any DVC remote is configured."""
    return bool(run_dvc("remote", "list").strip())


def list_experiments() -> tuple[list[str], list[str]]:
    """The names of HEAD's experiments, and of those in the queue that failed and were not run since."""
    names: dict[str, set[str]] = {"success": set(), "failed": set()}
    _require_files("HEAD", *run_git("for-each-ref", "--format=%(refname)", "refs/exps").split())
    for commit in json.loads(run_dvc("exp", "show", "--json", "--hide-workspace", "--hide-queued")):
        for experiment in commit["experiments"] or []:
            # One that did not come from the queue has no executor.
            state = (experiment["executor"] or {"state": "success"})["state"]
            names.setdefault(state, set()).add(experiment["name"])
    return sorted(names["success"]), sorted(names["failed"] - names["success"])
