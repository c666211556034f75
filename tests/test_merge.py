"""`make merge`: two branches that both changed the model, in a pipeline of two stages that take no time."""

import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.files import ENVIRONMENT as ENVIRONMENT_FILE
from tests.clone import ENVIRONMENT, ROOT
from tests.history import change_parameter, git, start_repository

PIPELINE = """
stages:
  train:
    cmd: grep rate params.yaml > metrics/training.json
    params: [rate]
    outs: [metrics/training.json: {cache: false}]
  evaluate:
    cmd: cat params.yaml metrics/training.json > metrics/evaluation.json
    deps: [metrics/training.json]
    params: [threshold]
    outs: [metrics/evaluation.json: {cache: false}]
"""


def run_and_commit(*changes):
    for old, new in changes:
        change_parameter(old, new)
    with Repo() as repo:
        repo.reproduce()
    git("add", "--all")
    git("commit", "--quiet", "--message", "changed")


@pytest.fixture
def branches(tmp_path, monkeypatch):
    """A repository with a run on its branch, `main`, and one on another, `other`."""
    monkeypatch.chdir(tmp_path)
    start_repository()
    Path("metrics").mkdir()
    for name in ("Makefile", ".gitattributes"):
        shutil.copy(ROOT / name, name)
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text("rate: 1\n" + 9 * "#\n" + "threshold: 1\n")
    run_and_commit()
    git("switch", "--quiet", "--create", "other")
    run_and_commit(("rate: 1", "rate: 3"), ("threshold: 1", "threshold: 2"))
    git("switch", "--quiet", "main")
    run_and_commit(("rate: 1", "rate: 2"))


def make_merge(*arguments):
    # The environment of the tests serves.
    command = ["make", "--old-file=.venv/installed", "merge", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, check=False)


def test_a_merge_has_the_outputs_of_a_run_of_both_branches(branches):
    mine = Path("metrics/evaluation.json").read_text()
    done = make_merge("BRANCH=other")
    assert done.returncode != 0
    assert "error: in conflict, or changed and not added: params.yaml (" in done.stderr
    assert Path("metrics/evaluation.json").read_text() == mine

    params, makefile = Path("params.yaml"), Path("Makefile")
    params.write_text("rate: 4\n" + params.read_text().split(">>>>>>> other\n")[1])
    git("add", "params.yaml")
    makefile.write_text(makefile.read_text() + "# not part of what is committed\n")
    done = make_merge("BRANCH=other")
    assert done.returncode != 0
    assert "error: in conflict, or changed and not added: Makefile (" in done.stderr
    assert Path("metrics/evaluation.json").read_text() == mine

    git("restore", "Makefile")
    done = make_merge("BRANCH=other")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threshold: 2" in params.read_text()
    assert Path("metrics/evaluation.json").read_text() == params.read_text() + "rate: 4\n"
    assert git("status", "--porcelain") == ""
    assert git("rev-parse", "HEAD^2") == git("rev-parse", "other")
    with Repo() as repo:
        assert repo.status() == {}


def test_what_stages_write_into_git_is_never_merged_line_by_line():
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"].values()
    outputs = [
        next(iter(output))
        for stage in stages
        for kind in ("outs", "metrics", "plots")
        for output in stage.get(kind, [])
        if isinstance(output, dict) and next(iter(output.values())).get("cache") is False
    ]
    assert len(outputs) > 5
    paths = [f"{output}/file" if (ROOT / output).is_dir() else output for output in outputs]
    command = ["git", "check-attr", "merge", "--", "dvc.lock", ENVIRONMENT_FILE, *paths]
    lines = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout.splitlines()
    assert [line for line in lines if not line.endswith(": merge: unset")] == []
