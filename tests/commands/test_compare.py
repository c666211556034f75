"""The command in a small repository: a Git history whose predictions DVC tracks, as after `dvc repro` and a commit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.commands.compare import main
from stages.errors import InputError
from stages.files import MODELS, PREDICTIONS, PREPARED
from tests.history import IMAGES, commit, git, start_repository, write_predictions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A repository with commits `empty`, `weak`, `strong` and `other_images`; not to be changed."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_repository()
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        git("add", "--all")
        git("commit", "--quiet", "--message", "empty")
        git("branch", "empty")
        write_predictions(0.4)
        commit("weak")
        write_predictions(2.0)
        commit("strong")
        write_predictions(2.0, images=range(6, IMAGES))
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace("test_fold: 0", "test_fold: 3"))
        commit("other_images")
    return folder


@pytest.fixture
def repository(history, tmp_path, monkeypatch):
    """A copy of the history, its workspace as in `strong`, as the working directory."""
    shutil.copytree(history, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    write_predictions(2.0)
    return tmp_path / "repository"


def compared(*arguments, replicates="300"):
    """What the command writes with --json."""
    main([*arguments, "--json", "result.json", "--replicates", replicates])
    return json.loads(Path("result.json").read_text())


def test_a_better_model_is_called_better_in_the_first_line(repository, capsys):
    main(["weak", "strong", "--replicates", "300"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weak -> strong: better; AUROC +0.")
    assert lines[0].endswith("], better")
    assert [line for line in lines if line.startswith("brier (lower is better)") and line.endswith("better")]


def test_one_revision_is_compared_with_the_workspace(repository):
    write_predictions(0.4)
    result = compared("strong")
    assert (result["base"], result["new"]) == ("strong", "workspace")
    assert result["verdict"] == "worse"
    assert compared("weak")["metrics"]["auroc"]["difference"]["value"] == 0
    assert compared("workspace", "strong")["verdict"] == "better"


def test_commits_and_tags_are_revisions_too_and_nothing_is_checked_out(repository, bytes_below):
    git("tag", "v1", "weak")
    before = bytes_below(Path("data")) | bytes_below(Path("models"))
    assert compared("v1", "main~1")["verdict"] == "better"
    assert bytes_below(Path("data")) | bytes_below(Path("models")) == before


def test_predictions_are_read_from_the_remote_where_the_cache_has_none(repository, tmp_path):
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["storage"] = {"url": str(tmp_path / "storage")}
        config["core"]["remote"] = "storage"
    with Repo() as repo:
        repo.push(all_branches=True)
    shutil.rmtree(".dvc/cache")
    result = compared("weak", "strong")
    assert result["verdict"] == "better"
    assert result["subgroups"]["looked_at"] > 0


def test_predictions_that_are_nowhere_are_told_with_what_to_do(repository):
    shutil.rmtree(".dvc/cache")
    with pytest.raises(InputError, match=r"^weak:data/predictions\.csv is neither in DVC's cache nor on its remote"):
        main(["weak", "workspace"])


def test_without_a_manifest_only_subgroups_are_left_out(repository, capsys):
    shutil.rmtree(PREPARED)
    listings = list(Path(".dvc/cache").rglob("*.dir"))
    assert listings
    for path in listings:
        path.unlink()
    main(["weak", "--replicates", "300"])
    assert "Subgroups: not compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nonsense", "'nonsense' is no commit, branch, tag or experiment here"),
        ("main~99", "'main~99' is no commit"),
        ("", "the name of a revision is empty"),
        ("empty", r"empty has no data/predictions\.csv; name a revision in which a `dvc repro` is committed"),
    ],
)
def test_a_revision_without_predictions_is_refused(repository, revision, message):
    with pytest.raises(InputError, match=message):
        main([revision])


def test_outside_of_a_repository_revisions_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    with pytest.raises(InputError, match="not a git repository"):
        main(["main"])


def test_a_damaged_table_is_named_as_git_names_it(repository):
    PREDICTIONS.write_text("image_id\nI000\n")
    commit("damaged")
    with pytest.raises(InputError, match=r"^damaged:data/predictions\.csv lacks the column"):
        main(["damaged", "weak"])


def test_other_test_images_are_refused_with_the_parameter_that_differs(repository):
    with pytest.raises(InputError) as caught:
        main(["weak", "other_images"])
    assert "6 only in weak (I000, I001, I002, I003, I004, …)" in str(caught.value)
    assert "their params.yaml differ in split.test_fold (0, 3)" in str(caught.value)


def test_other_test_images_of_the_same_parameters_are_another_dataset(repository):
    write_predictions(2.0, images=range(2, IMAGES))
    with pytest.raises(InputError, match="so the dataset itself has changed"):
        main(["weak"])


def test_a_gate_fails_on_the_named_metric_only(repository, capsys):
    with pytest.raises(SystemExit, match="--fail-if-worse: auroc is worse in weak than in strong"):
        main(["strong", "weak", "--replicates", "300", "--fail-if-worse", "auroc"])
    assert "strong -> weak: worse" in capsys.readouterr().out
    main(["weak", "strong", "--replicates", "300", "--fail-if-worse", "auroc", "--fail-if-worse", "brier"])


def test_a_gate_on_an_error_fails_when_it_grows(repository):
    with pytest.raises(SystemExit, match="brier is worse"):
        main(["strong", "weak", "--replicates", "300", "--fail-if-worse", "brier"])


def test_a_gate_on_a_metric_that_is_not_compared_does_not_pass(repository):
    with pytest.raises(InputError, match=r"--fail-if-worse acuracy: it is no headline metric; .* accuracy,"):
        main(["weak", "--replicates", "300", "--fail-if-worse", "acuracy"])
    (MODELS / "calibration.json").unlink()
    with pytest.raises(InputError, match="sensitivity_at_threshold: a model has no decision threshold"):
        main(["weak", "--replicates", "300", "--fail-if-worse", "sensitivity_at_threshold"])


def test_markdown_says_the_verdict_first_and_means_nothing_else(repository, capsys):
    git("branch", "a|b<i>_x_", "strong")
    main(["weak", "a|b<i>_x_", "--md", "--replicates", "300"])
    lines = capsys.readouterr().out.splitlines()
    name = "<code>a&#124;b&#60;i&#62;&#95;x&#95;</code>"
    assert lines[0].startswith(f"**<code>weak</code> → {name}: better; AUROC +0.")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 13
    assert {line.count("|") for line in table} == {7}
    assert any(line.startswith("| AUROC |") and line.endswith("| **better** |") for line in table)


def test_images_that_changed_sides_are_counted_and_all_are_in_the_json(repository, capsys):
    result = compared("weak", "strong")
    found = result["changed"]["malignant"]["wrong_to_right"]
    assert len(found) > 10
    printed = capsys.readouterr().out
    assert f"wrong to right {len(found)} ({found[0]}, " in printed
    assert f" and {len(found) - 10} more)" in printed


def test_each_model_is_judged_at_its_own_threshold(repository, capsys):
    write_predictions(2.0, threshold=0.999)
    metrics = compared("strong")["metrics"]
    assert metrics["sensitivity_at_threshold"]["verdict"] == "worse"
    assert metrics["auroc"]["difference"]["value"] == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "strong -> workspace: worse; AUROC +0.000 [0.000, 0.000], no evidence of a difference; "
        "worse: Sensitivity at the threshold"
    )


def test_a_commit_from_before_the_threshold_is_compared_in_all_else(repository, capsys):
    write_predictions(0.4)
    (MODELS / "calibration.json").unlink()
    Path("models/calibration.json.dvc").unlink()
    with Repo() as repo:
        repo.add([str(PREDICTIONS)])
    git("add", "--all")
    git("commit", "--quiet", "--message", "old")
    write_predictions(2.0)
    result = compared("HEAD")
    assert result["verdict"] == "better"
    assert set(result["not_compared"]) == {"sensitivity_at_threshold", "specificity_at_threshold"}
    assert "Changed decisions: not compared" in capsys.readouterr().out


def test_two_and_seven_classes_are_compared_by_malignancy(repository):
    write_predictions(2.0, classes=7)
    result = compared("weak")
    assert result["classes"] == ["benign", "malignant"]
    assert result["metrics"]["auroc"]["verdict"] == "better"


def test_replicates_and_confidence_come_from_the_parameters_unless_given(repository):
    text = Path("params.yaml").read_text().replace("bootstrap_replicates: 2000", "bootstrap_replicates: 150")
    Path("params.yaml").write_text(text)
    main(["weak", "--json", "result.json"])
    assert json.loads(Path("result.json").read_text())["bootstrap_replicates"] == 150
    main(["weak", "--json", "result.json", "--confidence", "0.8"])
    assert json.loads(Path("result.json").read_text())["confidence"] == 0.8
    with pytest.raises(InputError, match=r"evaluation\.bootstrap_replicates is 3; it must be"):
        main(["weak", "--replicates", "3"])


def test_a_result_that_cannot_be_written_is_told_and_nothing_is_lost(repository):
    with pytest.raises(InputError, match="--json data is no file"):
        main(["weak", "--replicates", "300", "--json", "data"])
    assert PREDICTIONS.exists()
    with pytest.raises(InputError, match=r"--json params\.yaml/result\.json cannot be written"):
        main(["weak", "--replicates", "300", "--json", "params.yaml/result.json"])


def test_torch_is_not_waited_for():
    code = "import sys, stages.commands.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
