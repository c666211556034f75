from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands.check import main
from stages.errors import InputError


def test_without_a_remote_only_the_lock_is_looked_at(pipeline, capsys):
    Path(".dvc/config").write_text("")
    main([])
    printed = capsys.readouterr().out
    assert "no DVC remote is configured" in printed
    assert "the remote has every output" not in printed


def test_outputs_that_the_remote_lacks_are_named_until_they_are_pushed(pipeline, capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    outputs = ("folder/", "model.json", "data/given/")
    assert set(str(ended.value).splitlines()) == {f"{out} is not on the remote; `dvc push` it" for out in outputs}
    with Repo() as repo:
        repo.push()
    # A clone without data is as good.
    Path("model.json").unlink()
    main([])
    assert "the remote has every output" in capsys.readouterr().out


def test_a_stale_lock_is_named(pipeline):
    with Path("stage.py").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(SystemExit, match=r"stage compute would run again: dvc\.lock is not of this code"):
        main([])


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"not inside of a DVC repository.*; run from the root of the repository"):
        main([])
