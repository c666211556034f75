"""The workflows of GitHub and GitLab, and the hooks of pre-commit, against published schemas and our own rules."""

import os
import re
import subprocess
import sys
import tomllib
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


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_the_forge_follow_their_schemas(schema, path):
    check("check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / path))


def test_the_release_is_of_the_version_that_is_cited():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert load(ROOT / "CITATION.cff")["version"] == version


def test_the_pipeline_of_gitlab_follows_the_schema():
    schema = ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]
    check("check_jsonschema", *schema, str(ROOT / ".gitlab-ci.yml"))


def test_a_merge_queue_does_not_wait_for_checks_that_never_start():
    assert {"push", "pull_request", "merge_group"} == load(ROOT / ".github/workflows/tests.yml")["on"].keys()


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
    assert written == {
        "report.yml": {"pull-requests"},
        "train.yml": {"contents"},
        "release.yml": {"contents", "id-token"},
    }.get(path.name, set())


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
    targets = {name for text in texts for name in re.findall(r"(?:run:|-) make ([\w-]+)", text)}
    assert commands == {"report", "check", "compare"}
    assert all((ROOT / f"stages/commands/{command}.py").is_file() for command in commands)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"audit", "docs", "install", "release", "repro", "scan", "test", "test-all"}
    assert all(f"\n{target}: " in makefile for target in targets)


def test_cml_is_pinned_by_commit_and_counts_nobody():
    for path in (ROOT / ".github/workflows/report.yml", ROOT / ".gitlab-ci.yml"):
        text = path.read_text(encoding="utf-8")
        pins = re.findall(r"\bCML: (\S+ # \S+)", text)
        assert pins == ["github:iterative/cml#a3a66c74b218b08710f42bf599b066e37cb4cba7 # v0.20.6"]
        assert 'ITERATIVE_DO_NOT_TRACK: "true"' in text
        assert set(re.findall("npx .*? comment", text)) == {'npx --yes "$CML" comment'}


CALL = "--yes cml comment update --target=pr {}--watermark-title=model-report {}"


@pytest.fixture
def post(tmp_path):
    """A function that runs a command beside a report, with a CML that fails at first, and tells all that was asked."""
    report = "verdict\n\n### Curves\n\n| ![roc](report_pictures/roc.png) |\n\n### Data\n\nless\n"
    (tmp_path / "report.md").write_text(report)
    cml = tmp_path / "bin/npx"
    cml.parent.mkdir()
    cml.write_text('#!/bin/sh\necho "$@" >> calls\ntest $(wc -l < calls) -gt $FAILS\n')
    cml.chmod(0o755)

    def run(command, fails, **environment):
        (tmp_path / "calls").unlink(missing_ok=True)
        path = f"{cml.parent}{os.pathsep}{os.environ['PATH']}"
        variables = os.environ | {"PATH": path, "CML": "cml", "FAILS": str(fails)} | environment
        status = subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, env=variables, check=False).returncode
        return status, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_where_pictures_cannot_be_uploaded_the_comment_on_gitlab_has_none(post, tmp_path, fails):
    url = "http://127.0.0.1:8080/git/a/b"
    status, calls = post("\n".join(load(ROOT / ".gitlab-ci.yml")["comment"]["script"]), fails, CI_PROJECT_URL=url)
    options = ["--publish-native report.md", "--publish=false report_without_pictures.md"][: fails + 1]
    assert (status == 0, calls) == (fails < 2, [CALL.format(f"--repo={url} ", each) for each in options])
    if fails:
        assert (tmp_path / "report_without_pictures.md").read_text() == "verdict\n\n### Data\n\nless\n"


def test_where_pictures_cannot_be_uploaded_the_comment_on_github_has_none_and_all_is_checked(post, tmp_path):
    def step(words):
        return next(step for step in steps_of(ROOT / ".github/workflows/report.yml") if words in step.get("run", ""))

    comment, again, summary = step("model-report report.md"), step("--publish=false"), step("GITHUB_STEP_SUMMARY")
    commands = f"{summary['run']}\n{comment['run']} || {again['run']}"
    _, calls = post(commands, 1, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert calls == [CALL.format("", each) for each in ("report.md", "--publish=false report_without_pictures.md")]
    for name in ("report_without_pictures.md", "summary"):
        assert (tmp_path / name).read_text() == "verdict\n\n### Data\n\nless\n"
    assert comment["continue-on-error"]
    assert again["if"] == f"steps.{comment['id']}.outcome == 'failure'"
    assert "!cancelled()" in step("stages check")["if"]


def test_the_gate_takes_the_metrics_of_a_variable(post):
    (step,) = [step for step in steps_of(ROOT / ".github/workflows/report.yml") if "compare" in step.get("run", "")]
    command = step["run"].replace(".venv/bin/python -m stages", "npx")
    _, calls = post(command, 0, BASE="origin/main", FAIL_IF_WORSE="auroc sensitivity")
    assert calls == ["compare origin/main HEAD --fail-if-worse auroc --fail-if-worse sensitivity"]


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


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".gitlab-ci.yml"], ids=lambda path: path.name)
def test_secrets_and_vulnerabilities_are_searched_without_any_secret(path):
    jobs = load(path).get("jobs", load(path))
    searches = [str(job) for job in jobs.values() if "make audit" in str(job) or "make scan" in str(job)]
    assert bool(searches) == (path.name in ("tests.yml", ".gitlab-ci.yml"))
    assert [job for job in searches if "secrets." in job or "REPO_TOKEN" in job] == []
