"""Against a pipeline of one stage, whose result is moved as another processor would move it."""

import re
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.classifier import hardware
from stages.commands.verify import DIFFERENT, MISSING, NEW, SAME, UNLOCKED, Verification, main, render_text
from stages.errors import InputError
from tests.commands.conftest import STAGE
from tests.history import commit, git

OUTPUTS = ["folder/a.csv", "folder/b.csv", "metrics/evaluation.json", "model.json"]
ALL_SAME = dict.fromkeys(OUTPUTS, SAME)
MOVED = ALL_SAME | dict.fromkeys(["folder/a.csv", "metrics/evaluation.json", "model.json"], DIFFERENT)


@pytest.fixture(autouse=True)
def git_dir(monkeypatch, tmp_path):
    """A hook of Git's would set it: the clone must be another repository for all that."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "repository/.git"))


def verify(capsys, *arguments):
    """The exit status, what became of each file, by its path, and the other lines."""
    try:
        main([*arguments])
        status = 0
    except SystemExit as error:
        status = error.code
    files, rest = capsys.readouterr().out.split("\n\n")
    return status, {path: found for found, path in map(str.split, files.splitlines())}, rest.splitlines()


def tree(folder):
    """Every file but DVC's scratch space, and what it holds."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if not {"tmp", ".git"} & {*path.parts[-6:]}}


def test_a_commit_that_gives_the_same_bytes(pipeline, capsys):
    before = tree(pipeline)
    status, files, rest = verify(capsys)
    assert (status, files) == (0, ALL_SAME)
    commit_hash = git("rev-parse", "--short=7", "HEAD").strip()
    assert rest == [
        "the environment is the one it was made in",
        f"{commit_hash} gives the same bytes in all 4 files of its outputs.",
    ]
    # Nothing is left behind, neither in the workspace nor in the cache.
    assert tree(pipeline) == before
    assert git("status", "--porcelain") == ""
    assert list(pipeline.glob(".dvc/tmp/verify-*")) == []


def test_other_numbers_and_an_environment_that_explains_them(pipeline, capsys, monkeypatch):
    monkeypatch.setenv("SHIFT", "0.125")
    distance = "; the numbers of metrics/evaluation.json are at most 0.12 apart, within the tolerance of 0.2."
    status, files, rest = verify(capsys, "--tolerance", "0.2")
    assert (status, files) == (0, MOVED)
    bytes_differ = " gives other bytes in 3 of 4 files of its outputs, and "
    assert rest[-1].endswith(f"{bytes_differ}nothing that is known here explains it{distance}")
    monkeypatch.setattr(hardware, "is_portable", lambda: False)
    monkeypatch.setattr(hardware.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    _, _, rest = verify(capsys, "--tolerance", "0.2")
    assert rest[0] == "environment: cpu_instructions was avx2, is AVX512"
    assert rest[-1].endswith(f"{bytes_differ}that cpu_instructions differ explains it{distance}")


@pytest.mark.parametrize(
    ("largest", "status", "tolerance", "verified", "end"),
    [
        (0.125, DIFFERENT, None, False, "at most 0.12 apart."),
        (0.125, DIFFERENT, 0.125, True, "at most 0.12 apart, within the tolerance of 0.125."),
        (0.125, DIFFERENT, 0.1, False, "at most 0.12 apart, not within the tolerance of 0.1."),
        (0.0, MISSING, 0.1, False, "within the tolerance of 0.1, but not every file is same or different."),
        (0.0, UNLOCKED, 0.1, False, "within the tolerance of 0.1, but not every file is same or different."),
        (None, DIFFERENT, 0.1, False, "other names or values, not within the tolerance of 0.1."),
    ],
)
def test_a_tolerance_is_of_the_headline_numbers_alone(largest, status, tolerance, verified, end):
    result = Verification("abc", {"model.json": status, "data.csv": SAME}, largest, {}, [], [])
    text, found = render_text(result, tolerance, [])
    assert found == verified
    assert text.endswith(end)


def test_results_that_were_written_by_hand(pipeline, capsys):
    """A number in Git, and hashes in dvc.lock: of what Git has, of a file, and of a folder."""
    Path("metrics/evaluation.json").write_text('{"auroc": 0.875, "macro_auroc": null}')
    commit("better")
    assert verify(capsys)[:2] == (1, ALL_SAME | {"metrics/evaluation.json": DIFFERENT})
    git("checkout", "--quiet", "HEAD~1", "metrics/evaluation.json")
    lock = Path("dvc.lock").read_text()
    hashes = dict(re.findall(r"path: (\S+)\n      hash: md5\n      md5: (\w{32})", lock))
    for out in ("metrics/evaluation.json", "model.json", "folder"):
        lock = lock.replace(hashes[out], hashes[out][::-1])
    Path("dvc.lock").write_text(lock)
    commit("hashes")
    status, files, _ = verify(capsys, "--tolerance", "1")
    assert status == 1
    assert files == {"folder": DIFFERENT, "metrics/evaluation.json": UNLOCKED, "model.json": DIFFERENT}


@pytest.mark.slow
def test_outputs_of_a_stage_that_is_no_more_are_not_said_to_be_made(pipeline, capsys):
    """DVC leaves the stage in dvc.lock, and Git its file."""
    Path("metrics/old.json").write_text("{}")
    out = "{path: metrics/old.json, hash: md5, md5: 99914b932bd37a50b983c5e7c90ae93b}"
    with Path("dvc.lock").open("a") as lock:
        lock.write(f"  old:\n    cmd: x\n    outs:\n    - {out}\n")
    commit("renamed")
    assert verify(capsys)[:2] == (1, ALL_SAME | {"metrics/old.json": MISSING})


@pytest.mark.slow
def test_without_cache_folders_count_once_and_data_comes_from_the_remote(pipeline, tmp_path, capsys, monkeypatch):
    with Repo() as repo:
        repo.push()
    shutil.rmtree(".dvc/cache")
    assert verify(capsys)[:2] == (0, ALL_SAME)
    shutil.rmtree(pipeline.parent / "storage")
    with pytest.raises(InputError, match=r"HEAD:data/given is neither in DVC's cache nor on its remote.*`dvc push` it"):
        main([])
    # The data alone, and nothing that DVC remembers elsewhere of what was in the folder.
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.rmtree(".dvc/cache", ignore_errors=True)
    with Repo() as repo:
        repo.add("data/given")
    assert verify(capsys)[:2] == (0, {"folder": SAME, "metrics/evaluation.json": SAME, "model.json": SAME})
    monkeypatch.setenv("SHIFT", "0.125")
    assert verify(capsys)[:2] == (1, dict.fromkeys(["folder", "metrics/evaluation.json", "model.json"], DIFFERENT))


@pytest.mark.slow
def test_another_revision_than_the_one_in_the_workspace(pipeline, capsys):
    git("tag", "v1")
    Path("stage.py").write_text(STAGE.replace("0.75", "0.875").replace("folder/b.csv", "folder/c.csv"))
    status, _, rest = verify(capsys)
    assert status == 0
    assert "the workspace has changes that are not committed and not verified: stage.py" in rest
    commit("no_run")
    status, files, rest = verify(capsys, "--tolerance", "1")
    assert status == 1
    assert files == ALL_SAME | {
        "folder/b.csv": MISSING,
        "folder/c.csv": NEW,
        "metrics/evaluation.json": DIFFERENT,
    }
    assert "dvc.lock was made from other code, data or parameters: compute: stage.py" in rest
    status, _, rest = verify(capsys, "v1")
    assert (status, len(rest)) == (0, 2)


def test_a_stage_that_fails(pipeline, monkeypatch, capfd):
    monkeypatch.setenv("SHIFT", "far")
    with pytest.raises(InputError, match="a stage of HEAD fails here; what it printed is above"):
        main([])
    assert "could not convert string to float: 'far'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", r"'nowhere' is not a commit, branch, tag or experiment here; .* `git fetch` it"),
        ("", "the name of a revision is empty"),
        ("workspace", "workspace is not a commit"),
        ("empty", r"empty has no dvc\.lock; name a revision in which a `dvc repro` is committed"),
        ("damaged", r"damaged:dvc\.lock: .*`dvc repro`"),
        ("early", "is from before DVC"),
    ],
)
def test_revisions_that_cannot_be_verified(pipeline, revision, message):
    if revision in ("early", "empty", "damaged"):
        if revision == "early":
            shutil.rmtree(".dvc")
        Path("dvc.lock").write_text({"early": Path("dvc.lock").read_text(), "damaged": "stages: ["}.get(revision, ""))
        git("add", "--all")
        git("commit", "--quiet", "--message", revision)
        git("branch", revision)
        git("reset", "--quiet", "--hard", "HEAD~1")
    with pytest.raises(InputError, match=message):
        main([revision])


@pytest.mark.parametrize("tolerance", ["-1", "nan", "much"])
def test_a_tolerance_is_a_number_from_0(tolerance, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--tolerance", tolerance])
    assert "argument --tolerance: invalid" in capsys.readouterr().err


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIT_DIR")
    with pytest.raises(InputError, match="run from the root of the repository"):
        main([])
    Repo.init(".", no_scm=True).close()
    with pytest.raises(InputError, match="not a git repository"):
        main([])
