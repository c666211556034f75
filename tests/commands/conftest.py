"""Small repositories: with commits that hold a run each, with a pipeline of one stage, with a cross-validation."""

import shutil
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.classifier.hardware import describe_environment
from stages.files import ENVIRONMENT, write_json
from tests.cross_validation import NAMES, write_repository
from tests.history import IMAGES, add_remote, change_parameter, commit, start_repository, write_run

ROOT = Path(__file__).parents[2]
STAGE = """
import json, os, pathlib

shift, data = float(os.environ.get("SHIFT", 0)), pathlib.Path("data/given/a.txt").read_text()
pathlib.Path("folder").mkdir()
pathlib.Path("folder/a.csv").write_text(f"p\\n{0.25 + shift}\\n")
pathlib.Path("folder/b.csv").write_text(data)
pathlib.Path("model.json").write_text(json.dumps({"w": 0.5 - shift}))
pathlib.Path("metrics/evaluation.json").write_text(json.dumps({"auroc": 0.75 + shift, "macro_auroc": None}))
"""
PIPELINE = """
stages:
  compute:
    cmd: python stage.py
    deps: [stage.py, data/given]
    outs:
      - folder
      - model.json
    metrics:
      - metrics/evaluation.json: {cache: false}
"""


@pytest.fixture(scope="session")
def history(tmp_path_factory):
    """A repository with commits `empty`, `weak`, `more_images` and `strong`; not to be changed."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_repository()
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        change_parameter("bootstrap_replicates: 2000", "bootstrap_replicates: 300")
        commit("empty")
        write_run(0.4, range(8, IMAGES))
        commit("weak")
        change_parameter("test_fold: 0", "test_fold: 3")
        write_run(2.0, range(IMAGES - 2), diagnosis_of_first="bkl")
        commit("more_images")
        change_parameter("test_fold: 3", "test_fold: 0")
        change_parameter("learning_rate: 0.003", "learning_rate: 0.01")
        write_run(2.0, range(8, IMAGES), speed=150.0)
        commit("strong")
    return folder


@pytest.fixture
def repository(history, tmp_path, monkeypatch):
    """A copy of the history, with `strong` in the workspace, as the working directory."""
    shutil.copytree(history, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A repository in which a run of one stage is committed; not to be changed. DVC tracks what the stage reads."""
    folder = tmp_path_factory.mktemp("made") / "repository"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        start_repository()
        for name in ("data/given", "metrics"):
            Path(name).mkdir(parents=True)
        Path("data/given/a.txt").write_text("given\n")
        Path("stage.py").write_text(STAGE)
        Path("dvc.yaml").write_text(PIPELINE)
        # By a relative path, which leads elsewhere from a clone.
        add_remote("../../storage")
        with Repo() as repo:
            repo.add("data/given")
            repo.reproduce()
        write_json(ENVIRONMENT, describe_environment())
        commit("run")
    return folder


@pytest.fixture
def pipeline(made, tmp_path, monkeypatch):
    """A copy of that repository as the working directory."""
    shutil.copytree(made, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def cross_validated(tmp_path_factory):
    """A repository with the experiments of a cross-validation of seven diagnoses; not to be changed."""
    folder = tmp_path_factory.mktemp("cross-validated") / "repository"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_repository()
    return folder


@pytest.fixture(scope="module")
def made_of_folds(cross_validated, tmp_path_factory):
    """A function that runs `pool` or `release` in a copy of that repository; the folder that it makes."""

    def make(command):
        folder = tmp_path_factory.mktemp("made") / "repository"
        shutil.copytree(cross_validated, folder, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            command.main([*NAMES, "--output", "made"])
        return folder / "made"

    return make


@pytest.fixture
def cross_validation(cross_validated, tmp_path, monkeypatch):
    """A copy of that repository as the working directory."""
    shutil.copytree(cross_validated, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"
