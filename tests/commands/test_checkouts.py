"""Repositories as people set them up: below Git's root, partly fetched, elsewhere, with other people's settings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands import check, compare, report, summarize, verify
from stages.dataset.pixels import MANIFEST
from stages.errors import InputError
from stages.experiments import programs, queue, revision
from stages.experiments.revision import Revision
from stages.files import PREPARED
from tests.commands.conftest import ROOT
from tests.history import add_remote, commit, git


@pytest.fixture
def below(monkeypatch):
    """A function that moves the repository in the working directory, with all of its branches, to project/ in it."""

    def move():
        root, project = Path.cwd(), Path.cwd() / "project"
        for branch in git("for-each-ref", "--format=%(refname)", "refs/heads").split():
            git("read-tree", "--empty")
            git("read-tree", "--prefix=project/", branch)
            git("update-ref", branch, git("commit-tree", git("write-tree").strip(), "-m", branch).strip())
        git("read-tree", "HEAD")
        project.mkdir()
        for path in root.iterdir():
            if path.name not in (".git", "project"):
                path.rename(project / path.name)
        monkeypatch.chdir(project)

    return move


def test_commits_of_a_project_below_the_root_are_compared(repository, below, tmp_path, capfdbinary):
    below()
    assert git("status", "--porcelain") == ""
    add_remote(tmp_path / "storage", ".dvc/config.local")
    with Repo() as repo:
        repo.push(all_branches=True)
    shutil.rmtree(".dvc/cache")
    Path(".dvc/config.local").unlink()
    add_remote("../../../storage")  # a path that leads elsewhere from Git's root
    compare.main(["weak", "strong"])
    assert b"weak \xe2\x86\x92 strong: better" in capfdbinary.readouterr().out
    report.main(["weak"])
    text = Path("report.md").read_text(encoding="utf-8")
    assert "`weak` → `workspace`: better" in text
    assert "`0.003` | `0.01`" in text
    assert text.count(".png)") == 4
    with pytest.raises(SystemExit, match="0"):
        summarize.main(["weak", "strong"])
    assert b"| AUROC | 0.580 | **0.900** |" in capfdbinary.readouterr().out
    queue.check_data("data/prepared", "HEAD")


def test_a_project_below_the_root_is_verified_and_checked(pipeline, below, capsys):
    below()
    Path("../other.txt").write_text("of another project")
    verify.main([])
    printed = capsys.readouterr().out
    assert "gives the same bytes in all 4 files" in printed
    assert "other.txt" not in printed
    with pytest.raises(SystemExit, match=r"model\.json is not on the remote") as ended:
        check.main([])
    assert "would run" not in str(ended.value)
    assert Revision("HEAD").stale_stages == {}


def test_what_is_not_found_is_an_error_and_not_what_did_not_change(repository, below, monkeypatch):
    git("tag", "moved", "strong")
    below()
    with pytest.raises(InputError, match=r"^moved is from before DVC, .* moved here: it has no /project/\.dvc$"):
        report.main(["moved"])
    monkeypatch.chdir("plots")
    with pytest.raises(InputError, match=r"this is a folder of the repository in .*/project; run from there"):
        Revision("strong")
    monkeypatch.chdir("..")
    for tag, path in (("unlocked", "dvc.lock"), ("bare", "params.yaml")):
        git("rm", "--quiet", "--cached", path)
        git("commit", "--quiet", "--message", tag)
        git("tag", tag)
    with pytest.raises(InputError, match=r"^bare has no params\.yaml; name a revision"):
        report.main(["strong", "bare"])
    with pytest.raises(InputError, match=r"^unlocked has no dvc\.lock; name a revision"):
        summarize.main(["unlocked", "strong"])


def missing(name):
    """The files of a commit that are not here."""
    return [line for line in git("rev-list", "--objects", "--missing=print", "--no-walk", name).split() if "?" in line]


def test_what_a_partial_clone_lacks_is_fetched_before_it_is_read(history, tmp_path, monkeypatch):
    """DVC waits for ever for a file that is not there."""
    server = "git -c uploadpack.allowFilter=true -c uploadpack.allowAnySHA1InWant=true upload-pack"
    git("clone", "--quiet", "--filter=blob:none", "--upload-pack", server, history.as_uri(), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    assert missing("origin/weak")
    assert Revision("origin/weak").parameters["training.learning_rate"] == 0.003
    assert missing("origin/weak") == []
    git("update-ref", "refs/exps/00/11/tuned", "origin/more_images")
    assert missing("origin/more_images")
    monkeypatch.setattr(revision, "run_dvc", lambda *_: "[]")
    revision.list_experiments()
    assert missing("origin/more_images") == []


def test_a_commit_is_verified_whatever_the_path_and_peoples_settings(pipeline, tmp_path, capsys, monkeypatch):
    place = tmp_path / "Läsion's [b] {c} %20 # "
    pipeline.rename(place)
    monkeypatch.chdir(place)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text("#!/bin/sh\nexit 1\n")
    (hooks / "post-checkout").chmod(0o755)
    settings = {
        "core.hooksPath": str(hooks),
        "protocol.file.allow": "never",
        "protocol.version": "0",
        "status.renames": "copies",
        "color.ui": "always",
    }
    for key, value in settings.items():
        git("config", "--file", str(tmp_path / "gitconfig"), key, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    Path("Bild ä\n.txt").write_text("new")
    verify.main([])
    printed = capsys.readouterr().out
    assert "gives the same bytes in all 4 files" in printed
    assert "not verified: Bild ä\\n.txt\n" in printed


def test_what_programs_print_is_read_whatever_the_terminal_takes(pipeline, tmp_path, capsys, monkeypatch):
    Path(".dvc/config").write_text(f"[core]\n    remote = ä\n['remote \"ä\"']\n    url = {tmp_path / 'ä'}\n")
    with Repo() as repo:
        repo.push()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    check.main([])
    assert "the remote has every output" in capsys.readouterr().out


def test_a_cache_may_be_at_a_relative_path(repository):
    shutil.move(".dvc/cache", "../cache")
    add_remote("../../storage")
    with Path(".dvc/config").open("a") as file:
        file.write("[cache]\n    dir = ../../cache\n")
    commit("cache")
    assert Revision("strong").read(PREPARED / MANIFEST)


def test_another_users_repository_is_refused_with_gits_advice(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(InputError, match=r"dubious ownership .* git config --global --add safe\.directory"):
        Revision("strong")


def test_a_file_that_git_has_lost_is_an_error(repository):
    """DVC would wait for it for ever."""
    name = git("rev-parse", "strong:metrics/predictions.csv").strip()
    Path(".git/objects", name[:2], name[2:]).unlink()
    with pytest.raises(InputError, match=f"unable to read {name}"):
        Revision("strong")


@pytest.mark.parametrize("name", ["HEAD^{tree}", "HEAD:params.yaml", "\udce9", "x" * 5000], ids=ascii)
def test_what_is_no_commit_is_said_to_be_none(repository, name):
    with pytest.raises(InputError, match="is not a commit, branch, tag or experiment here"):
        Revision(name)


def test_an_experiment_of_two_commits_is_asked_for_by_its_hash(repository):
    for branch in ("weak", "more_images"):
        head = git("rev-parse", branch).strip()
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tuned", "strong")
    with pytest.raises(InputError, match="'tuned' names several; give the hash of one"):
        Revision("tuned")


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (".dvc/config", "[core]\n nonsense = 1\n", r"^config file error: extra keys not allowed [^;]*$"),
        (
            ".dvc/config",
            "[core]\n site_cache_dir = /proc/no\n",
            r"^DVC cannot open .*/proc/no'\); it writes to \.dvc/tmp ",
        ),
        (".git/config", "[extensions]\n partialClone = origin\n", r"^DVC .* \(UnsupportedExtension: partialClone\)$"),
    ],
)
def test_a_repository_that_dvc_cannot_open_is_refused(repository, file, settings, message):
    with Path(file).open("a") as config:
        config.write(settings)
    for command in (lambda: Revision("strong"), check.find_problems):
        with pytest.raises(InputError, match=message):
            command()


def test_programs_heed_no_variables_of_another_repository(repository, monkeypatch):
    strong = git("rev-parse", "strong").strip()
    for name in ("GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, "/nothing")
    assert Revision("strong").commit == strong


def test_without_git_one_is_told_to_install_it(repository, monkeypatch):
    monkeypatch.setattr(programs, "environment_of_programs", lambda: {"PATH": "/nothing"})
    with pytest.raises(InputError, match="there is no git here; install it"):
        Revision("strong")


def test_an_index_that_dvc_cannot_read_is_refused(repository):
    """DVC would wait for ever for the first file."""
    git("config", "core.splitIndex", "true")
    git("update-index", "--split-index")
    with pytest.raises(
        InputError, match=r"cannot read Git's index here \(.*`git config core\.splitIndex false && git up"
    ):
        Revision("strong")
    git("config", "core.splitIndex", "false")
    git("update-index", "--no-split-index")
    assert Revision("strong").parameters


WAY_BACK = """\
from stages.config import load_config
from stages.launch import run

run(load_config)
"""


def test_an_experiment_that_fails_tells_the_way_back(pipeline, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    for folder in ("models", "plots"):
        Path(folder).mkdir()
        Path(folder, "table.csv").write_text("a\n")
    commit("parameters")
    Path("stage.py").write_text(WAY_BACK)
    command = [sys.executable, "-m", "dvc", "exp", "run", "--set-param", "+training.max_epoch=1"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode
    assert "training.max_epoch is unknown" in failed.stderr
    assert "max_epoch:" in Path("params.yaml").read_text(encoding="utf-8")
    assert not Path("model.json").exists()
    way = failed.stderr.partition("`")[2].partition("`")[0]
    subprocess.run(way, shell=True, check=True, capture_output=True, env=programs.environment_of_programs())
    assert git("status", "--porcelain").split() == ["M", "stage.py"]
    assert Path("model.json").exists()
