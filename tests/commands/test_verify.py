"""Against a pipeline of one stage, whose result is moved as another processor would move it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands.verify import DIFFERENT, IDENTICAL, WITHIN, main
from stages.errors import InputError

STAGE = """
import hashlib, json, os, pathlib

shift, data = float(os.environ.get("SHIFT", 0)), pathlib.Path("data/given/a.txt").read_text()
pathlib.Path("folder").mkdir()
pathlib.Path("folder/a.csv").write_text(f"p\\n{0.25 + shift}\\n")
pathlib.Path("folder/b.csv").write_text(data)
pathlib.Path("model.json").write_text(json.dumps({"w": 0.5 - shift}))
# As the model card does.
digest = hashlib.md5(pathlib.Path("model.json").read_bytes()).hexdigest()
pathlib.Path("folder/card.md").write_text(f"The model is {digest}.")
pathlib.Path("metrics/evaluation.json").write_text(json.dumps({"auroc": 0.75}))
pathlib.Path("metrics/environment.json").write_text(json.dumps({"cpu": os.environ.get("CPU"), "commit": "x"}))
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
OUTPUTS = ["folder/a.csv", "folder/b.csv", "folder/card.md", "metrics/evaluation.json", "model.json"]


def git(*arguments):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(message):
    git("add", "--all")
    git("commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository in which a run is committed; not to be changed. DVC tracks what the stage reads."""
    folder = tmp_path_factory.mktemp("made") / "repository"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        git("init", "--quiet", "--initial-branch=main")
        Repo.init(".").close()
        for name in ("data/given", "metrics"):
            Path(name).mkdir(parents=True)
        Path("data/given/a.txt").write_text("given\n")
        Path("stage.py").write_text(STAGE)
        Path("dvc.yaml").write_text(PIPELINE)
        # The remote is named by a relative path, which leads elsewhere from a clone.
        Path(".dvc/config").write_text(
            "[core]\n    remote = storage\n    analytics = false\n['remote \"storage\"']\n    url = ../../storage\n"
        )
        with Repo() as repo:
            repo.add("data/given")
            repo.reproduce()
        commit("run")
    return folder


@pytest.fixture
def repository(made, tmp_path, monkeypatch):
    """A copy of the repository, as the working directory."""
    shutil.copytree(made, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    # A hook of Git's would set it: the clone must be another repository for all that.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "repository/.git"))
    return tmp_path / "repository"


def verify(capsys, *arguments):
    """The exit status, what became of each output, by its path, and the other lines."""
    try:
        main([*arguments])
        status = 0
    except SystemExit as error:
        status = error.code
    outputs, rest = capsys.readouterr().out.split("\n\n")
    lines = [re.split("  +", line) for line in outputs.splitlines()]
    return status, {path: " ".join([found, *why]) for found, path, *why in lines}, rest


def tree(folder):
    """Every file but DVC's scratch space, and what it holds."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".dvc/tmp/" not in path.as_posix() and ".git/" not in path.as_posix()
    }


def test_a_commit_that_gives_the_same_bytes(repository, capsys):
    before = tree(repository)
    status, lines, rest = verify(capsys)
    assert status == 0
    assert lines == dict.fromkeys(OUTPUTS, IDENTICAL)
    assert "5 outputs, 5 identical, 0 equal within 1e-05, 0 different" in rest
    assert "the environment is the one it was made in" in rest
    assert "not verified" not in rest
    # Nothing is left behind, neither in the workspace nor in the cache.
    assert tree(repository) == before
    assert git("status", "--porcelain") == ""
    assert list(repository.glob(".dvc/tmp/verify-*")) == []


def test_numbers_that_move_a_little_and_an_environment_that_explains_it(repository, capsys, monkeypatch):
    monkeypatch.setenv("SHIFT", "1e-7")
    monkeypatch.setenv("CPU", "another")
    status, lines, rest = verify(capsys)
    moved, named = f"{WITHIN} largest difference 1e-07", f"{WITHIN} largest difference 0"
    changed = {"folder/a.csv": moved, "model.json": moved, "folder/card.md": named}
    assert lines == dict.fromkeys(OUTPUTS, IDENTICAL) | changed
    assert status == 0
    assert "environment: cpu was none, is another" in rest
    status, lines, _ = verify(capsys, "--tolerance", "0")
    assert status == 1
    assert [path for path in OUTPUTS if lines[path].startswith(DIFFERENT)] == ["folder/a.csv", "model.json"]


def test_numbers_that_move_far(repository, capsys, monkeypatch):
    monkeypatch.setenv("SHIFT", "0.125")
    status, lines, rest = verify(capsys)
    assert status == 1
    moved, named = f"{DIFFERENT} largest difference 0.12", f"{WITHIN} largest difference 0"
    changed = {"folder/a.csv": moved, "model.json": moved, "folder/card.md": named}
    assert lines == dict.fromkeys(OUTPUTS, IDENTICAL) | changed
    assert "5 outputs, 2 identical, 1 equal within 1e-05, 2 different" in rest


def test_results_that_were_written_by_hand(repository, capsys):
    """A number in Git, and hashes in dvc.lock: of what Git has, of a file, and of a folder."""
    Path("metrics/evaluation.json").write_text('{"auroc": 0.875}')
    commit("a better number")
    assert verify(capsys)[:2] == (
        1, dict.fromkeys(OUTPUTS, IDENTICAL) | {"metrics/evaluation.json": f"{DIFFERENT} largest difference 0.12"}
    )  # fmt: skip
    git("checkout", "--quiet", "HEAD~1", "metrics/evaluation.json")
    lock = Path("dvc.lock").read_text()
    hashes = dict(re.findall(r"path: (\S+)\n      hash: md5\n      md5: (\w{32})", lock))
    for out in ("metrics/evaluation.json", "model.json", "folder"):
        lock = lock.replace(hashes[out], hashes[out][::-1])
    Path("dvc.lock").write_text(lock)
    commit("other hashes")
    status, lines, _ = verify(capsys)
    assert status == 1
    assert lines["metrics/evaluation.json"] == f"{DIFFERENT} the revision's dvc.lock has the hash of another content"
    unknown = f"{DIFFERENT} another hash; the former content is neither in DVC's cache nor on its remote"
    assert lines["model.json"] == lines["folder"] == unknown


def test_without_cache_hashes_are_compared_and_with_a_remote_contents(repository, capsys, monkeypatch):
    with Repo() as repo:
        repo.push()
    cache = repository / ".dvc/cache"
    shutil.rmtree(cache)
    monkeypatch.setenv("SHIFT", "1e-7")
    # The data that the stage reads comes from the remote, and so does what it is compared with.
    assert verify(capsys)[1]["model.json"] == f"{WITHIN} largest difference 1e-07"
    pulled = [path for path in cache.rglob("*") if path.is_file()]
    shutil.rmtree(repository.parent / "storage")
    monkeypatch.setenv("SHIFT", "0")
    assert verify(capsys)[:2] == (0, dict.fromkeys(OUTPUTS, IDENTICAL))
    assert [path for path in cache.rglob("*") if path.is_file()] == pulled
    monkeypatch.setenv("SHIFT", "1e-7")
    status, lines, _ = verify(capsys)
    assert status == 1
    assert lines["folder"].startswith(f"{DIFFERENT} another hash; the former content is neither")
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"what data/given\.dvc of HEAD names is neither in DVC's cache nor"):
        main([])


def test_another_revision_than_the_one_in_the_workspace(repository, capsys):
    git("tag", "v1")
    Path("stage.py").write_text(STAGE.replace("0.75", "0.875"))
    status, _, rest = verify(capsys)
    assert status == 0
    assert "the workspace has changes that are not committed and not verified: stage.py" in rest
    commit("code, and no run")
    status, lines, rest = verify(capsys)
    assert status == 1
    assert lines["metrics/evaluation.json"] == f"{DIFFERENT} largest difference 0.12"
    assert "dvc.lock was made from other code, data or parameters: compute: stage.py" in rest
    status, _, rest = verify(capsys, "v1")
    assert status == 0
    assert git("rev-parse", "--short", "v1").strip() in rest
    assert "dvc.lock was made" not in rest


def test_an_output_that_is_new_and_one_that_is_not_made_again(repository, capsys):
    Path("stage.py").write_text(STAGE.replace("folder/b.csv", "folder/c.csv"))
    commit("another file")
    lines = verify(capsys)[1]
    assert lines["folder/b.csv"] == f"{DIFFERENT} was not made again"
    assert lines["folder/c.csv"] == f"{DIFFERENT} not in the revision"


def test_a_stage_that_fails(repository, monkeypatch, capfd):
    monkeypatch.setenv("SHIFT", "far")
    with pytest.raises(InputError, match="a stage of HEAD fails here; what it printed stands above"):
        main([])
    assert "could not convert string to float: 'far'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], r"'nowhere' is no commit, branch, tag or experiment here; .* `git fetch` it"),
        ([""], "the name of a revision is empty"),
        (["empty"], r"empty has no dvc\.lock; name a revision in which a `dvc repro` is committed"),
        (["damaged"], r"damaged:dvc\.lock is none \(.*\); `dvc repro` makes it again"),
        (["early"], "is from before DVC"),
    ],
)
def test_revisions_that_cannot_be_verified(repository, arguments, message):
    for branch, change in (
        ("early", lambda: shutil.rmtree(".dvc")),
        ("empty", Path("dvc.lock").unlink),
        ("damaged", lambda: Path("dvc.lock").write_text("stages: [")),
    ):
        if branch in arguments:
            git("checkout", "--quiet", "-b", branch)
            change()
            commit(branch)
            git("checkout", "--quiet", "--force", "main")
    with pytest.raises(InputError, match=message):
        main(arguments)


@pytest.mark.parametrize("tolerance", ["-1", "nan", "much"])
def test_a_tolerance_is_a_number_from_0(tolerance, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--tolerance", tolerance])
    assert "argument --tolerance: invalid" in capsys.readouterr().err


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not inside of a DVC repository"):
        main([])
    Repo.init(".", no_scm=True).close()
    with pytest.raises(InputError, match="is no Git repository; there is no commit to verify"):
        main([])
