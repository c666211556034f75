"""The workflows of GitHub and GitLab, and the hooks of pre-commit, against published schemas and our own rules."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def load(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def check(*arguments, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def steps_of(path):
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_workflows_of_github_follow_the_schema():
    check("check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))


def test_the_pipeline_of_gitlab_follows_the_schema():
    schema = ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]
    check("check_jsonschema", *schema, str(ROOT / ".gitlab-ci.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version(path):
    uses = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert uses
    assert [line for line in uses if not re.match(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+\b", line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_unless_a_job_says_why_not(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    written = {
        permission
        for job in workflow["jobs"].values()
        for permission, access in job.get("permissions", {}).items()
        if access == "write"
    }
    assert written == {"report.yml": {"pull-requests"}, "train.yml": {"contents"}}.get(path.name, set())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_steps_are_single_commands_in_which_nobody_can_write(path):
    for step in steps_of(path):
        command = step.get("run", "")
        assert "\n" not in command.strip()
        # What a branch or an input is called must not become part of a command.
        assert "${{" not in command


def test_commands_of_the_workflows_exist():
    texts = [path.read_text(encoding="utf-8") for path in (*WORKFLOWS, ROOT / ".gitlab-ci.yml")]
    commands = {name for text in texts for name in re.findall(r"python -m stages (\w+)", text)}
    targets = {name for text in texts for name in re.findall(r"(?:run:|-) make (\w+)", text)}
    assert commands == {"report", "check"}
    assert all((ROOT / f"stages/commands/{command}.py").is_file() for command in commands)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"audit", "docs", "install", "scan", "test"}
    assert all(f"\n{target}: " in makefile for target in targets)


def test_hooks_of_pre_commit_are_valid_and_those_of_dvc():
    check("pre_commit", "validate-config")
    hooks = {hook["id"]: hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    for name in ("pre-commit", "pre-push", "post-checkout"):
        assert hooks[f"dvc-{name}"]["entry"] == f"dvc git-hook {name}"
        assert hooks[f"dvc-{name}"]["stages"] == [name]


def test_hooks_of_pre_commit_pass_on_this_code_and_find_what_ruff_and_detect_secrets_find(tmp_path):
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    module = tmp_path / "module.py"
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)

    def run_hooks(line):
        module.write_text(f"{line}\n", encoding="utf-8")
        subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
        check("pre_commit", "run", "--all-files", cwd=tmp_path)

    with pytest.raises(AssertionError, match="imported but unused"):
        run_hooks("import os")
    key = "AKIA" + "Z7" * 8
    with pytest.raises(AssertionError, match="AWS Access Key"):
        run_hooks(f'KEY = "{key}"')
    run_hooks("print()")


def test_no_file_holds_a_secret():
    check("pre_commit", "run", "--all-files", "detect-secrets")


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".gitlab-ci.yml"], ids=lambda path: path.name)
def test_secrets_and_vulnerabilities_are_searched_without_any_secret(path):
    jobs = load(path).get("jobs", load(path))
    searches = [str(job) for job in jobs.values() if "make audit" in str(job) or "make scan" in str(job)]
    assert bool(searches) == (path.name in ("tests.yml", ".gitlab-ci.yml"))
    assert [job for job in searches if "secrets." in job or "REPO_TOKEN" in job] == []
