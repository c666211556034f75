"""Against a pipeline of one stage, with and without a remote."""

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands.check import main
from stages.errors import InputError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository after `dvc repro` of one stage, as the working directory."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    Repo.init(".").close()
    Path("in.txt").write_text("1")
    Path("dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp in.txt out.txt\n    deps: [in.txt]\n    outs: [out.txt]\n"
    )
    with Repo() as repo:
        repo.reproduce()
    subprocess.run(["git", "add", "--all"], check=True)
    commit = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "run"]
    subprocess.run(commit, check=True)
    return tmp_path


def add_remote(url):
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["storage"] = {"url": str(url)}
        config["core"]["remote"] = "storage"


def test_without_a_remote_only_the_lock_is_looked_at(repository, capsys):
    main([])
    printed = capsys.readouterr().out
    assert "no DVC remote is configured" in printed
    assert "the remote has every output" not in printed


def test_outputs_that_the_remote_lacks_are_named_until_they_are_pushed(repository, tmp_path, capsys):
    add_remote(tmp_path / "storage")
    with pytest.raises(SystemExit, match=r"^out\.txt is not on the remote; `dvc push` it$"):
        main([])
    with Repo() as repo:
        repo.push()
    main([])
    assert "the remote has every output" in capsys.readouterr().out


def test_a_clone_without_data_is_as_good(repository, tmp_path):
    add_remote(tmp_path / "storage")
    with Repo() as repo:
        repo.push()
    Path("out.txt").unlink()
    main([])


def test_a_stale_lock_is_named(repository):
    Path("in.txt").write_text("2")
    with pytest.raises(SystemExit, match=r"stage copy would run again: dvc\.lock is not of this code"):
        main([])


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not inside of a DVC repository"):
        main([])
