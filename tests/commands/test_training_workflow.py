"""The steps of the workflows that train, run in a repository of one stage as a forge runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.history import git

ROOT = Path(__file__).parents[2]
YAML = YAML(typ="safe", pure=True)
JOB = YAML.load((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8"))["train"]
WORKFLOW = YAML.load((ROOT / ".github/workflows/train.yml").read_text(encoding="utf-8"))
STEPS = {
    "github": [step["run"] for step in WORKFLOW["jobs"]["train"]["steps"] if "run" in step],
    "gitlab": JOB["before_script"] + JOB["script"],
}
NAME = "it's-new|really"


def run(step, **environment):
    """The exit status of a step."""
    identity = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | identity | {"PATH": path, "NAME": NAME, "OVERRIDES": "-S shift=1"} | environment
    return subprocess.run(["bash", "-e", "-c", step], env=variables, check=False).returncode


def steps_with(words):
    return {next(step for step in steps if words in step) for steps in STEPS.values()}


@pytest.fixture
def origin(pipeline):
    """The repository of one stage with a parameter, pushed to a forge."""
    Path("dvc.yaml").write_text(Path("dvc.yaml").read_text() + "    params: [shift]\n")
    Path("params.yaml").write_text("shift: 0\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "a parameter")
    git("init", "--quiet", "--bare", "../origin.git")
    git("remote", "add", "origin", str(pipeline.parent / "origin.git"))
    git("push", "--quiet", "origin", "main")
    return pipeline.parent / "origin.git"


def test_a_training_starts_whatever_another_has_left(origin):
    with Repo() as repo:
        repo.push()
    Path("model.json").write_text("half")  # DVC does not replace what it does not know, unless it is told to
    git("branch", NAME)
    git("tag", NAME)
    head = git("rev-parse", "HEAD").strip()
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{NAME}", "HEAD")
    for step in STEPS["github"]:
        if step != "make install" and "GITHUB_PATH" not in step:
            assert run(step) == 0, step
    assert git("--git-dir", str(origin), "show", f"refs/heads/{NAME}:params.yaml") == "shift: 1\n"
    outputs = YAML.load(git("--git-dir", str(origin), "show", f"{NAME}:dvc.lock"))["stages"]["compute"]["outs"]
    stored = [out["md5"] for out in outputs if not out["path"].startswith("metrics")]
    assert all((origin.parent / "storage/files/md5" / md5[:2] / md5[2:]).is_file() for md5 in stored)


def test_both_forges_train_by_the_same_steps():
    own = ("git clean", "make install", "GITHUB_PATH", "export PATH", "git push")
    shared = [[step for step in steps if not step.startswith(own) and own[2] not in step] for steps in STEPS.values()]
    assert shared[0] == shared[1]
    assert len(shared[0]) > 5


def test_without_a_remote_nothing_is_trained(pipeline):
    (step,) = steps_with("dvc config core.remote")
    assert run(step) == 0
    Path(".dvc/config").write_text("")
    assert run(step) != 0
    for steps in STEPS.values():
        assert steps.index(step) < next(number for number, each in enumerate(steps) if "dvc exp run" in each)


@pytest.mark.parametrize("name", ["feature/x", "a b", "-x", "HEAD"])
def test_a_name_that_git_or_dvc_does_not_take_is_refused_before_anything_is_pulled(name):
    (step,) = steps_with("check-ref-format")
    assert run(step) == 0
    assert run(step, NAME=name) == 1
    for steps in STEPS.values():
        assert steps.index(step) < next(number for number, each in enumerate(steps) if "dvc pull" in each)


def test_a_branch_that_exists_is_found_and_a_forge_that_does_not_answer_too(origin):
    (step,) = steps_with("ls-remote")
    assert run(step) == 0
    assert run(step, NAME="main") != 0
    git("remote", "set-url", "origin", str(origin.parent / "nowhere.git"))
    assert run(step) != 0


def test_gitlab_is_pushed_to_at_its_own_port_and_path(origin):
    url = "https://gitlab.example.org:8443/gitlab/group/project"
    git("branch", NAME)
    git("tag", NAME)
    with_token = url.replace("://", "://token:secret@")  # pragma: allowlist secret
    git("config", f"url.{origin}.insteadOf", f"{with_token}.git")
    assert run(STEPS["gitlab"][-1], CI_PROJECT_URL=url, REPO_TOKEN="secret") == 0
    assert git("--git-dir", str(origin), "rev-parse", NAME) == git("rev-parse", "main")
