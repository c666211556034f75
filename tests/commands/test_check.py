import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands.check import main
from stages.errors import InputError
from stages.experiments.revision import Revision
from tests.history import commit, git, replace


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
    with pytest.raises(SystemExit, match=r"compute would run again: dvc\.lock has another stage\.py; `dvc repro`"):
        main([])


def test_results_are_stale_after_any_change_of_what_they_come_from(pipeline):
    """In the workspace and in a commit, also where no data were pulled."""
    Path("code").mkdir()
    Path("code/a.py").write_text("a")
    Path("code/README.md").write_text("about")
    Path(".dvcignore").write_text("code/README.md\n")
    Path("params.yaml").write_text("rate: 1\nother: 1\n")
    for folder in ("data/mine", "sub", "../elsewhere"):
        Path(folder).mkdir()
        Path(folder, "x.txt").write_text("x")
    Path("link").symlink_to(Path("../elsewhere").resolve())
    with Path(".gitignore").open("a") as file:
        file.write("/data/mine\n")
    git("init", "--quiet", "module")
    git("-C", "module", "commit", "--quiet", "--allow-empty", "--message", "a submodule")
    stage = "deps: [code, stage.py, data/given, data/mine, ../elsewhere, link, module]\n    params: [rate]"
    replace("dvc.yaml", "deps: [stage.py, data/given]", stage)
    Path("sub/dvc.yaml").write_text("stages:\n  compute: {cmd: echo, deps: [x.txt]}\n")
    with Repo() as repo:
        repo.reproduce(all_pipelines=True)
    commit("sound")
    for folder in ("folder", "data/given", "data/mine", ".dvc/cache"):
        shutil.rmtree(folder)
    Path("model.json").unlink()
    changes = {
        "params.yaml": ("rate: 1", "rate: 2", "rate"),
        "code/a.py": ("a", "b", "code"),
        "dvc.yaml": ("cmd: python", "cmd: python -B", "cmd"),
        "metrics/evaluation.json": ("0.75", "0.95", "metrics/evaluation.json"),
        "data/given.dvc": ("md5: ", "md5: 0", "data/given"),
        "sub/x.txt": ("x", "y", "x.txt"),
    }
    deleted = {"stage.py": "stage.py", "code/a.py": "code", "metrics/evaluation.json": "metrics/evaluation.json"}
    for path, differing in [(path, what) for path, (*_, what) in changes.items()] + list(deleted.items()):
        if path in changes:
            replace(path, *changes.pop(path)[:2])
        else:
            Path(path).unlink()
        stale = Revision("workspace").stale_stages
        git("commit", "--quiet", "--all", "--message", "changed")
        expected = {"sub/dvc.yaml:compute" if path.startswith("sub") else "compute": [differing]}
        assert (path, stale, Revision("HEAD").stale_stages) == (path, expected, expected)
        git("reset", "--quiet", "--hard", "sound")
    replace("params.yaml", "other: 1", "other: 2")
    replace("code/README.md", "about", "more")
    assert Revision("workspace").stale_stages == {}
    git("commit", "--quiet", "--all", "--message", "harmless")
    assert Revision("HEAD").stale_stages == {}


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"not inside of a DVC repository.*; run from the root of the repository"):
        main([])
