import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from threadpoolctl import threadpool_info, threadpool_limits

from stages.commands.compare import main
from stages.errors import InputError
from stages.evaluation import uncertainty
from stages.experiments.revision import Revision
from stages.files import DETAILS, PREDICTIONS, PREPARED, PUBLISHED, read_json, write_csv, write_json
from tests.history import IMAGES, add_remote, change_parameter, commit, git, write_predictions

ROOT = Path(__file__).parents[2]
SAME = range(8, IMAGES)


def compared(*arguments):
    """What the command writes with --json."""
    main([*arguments, "--json", "result.json"])
    return json.loads(Path("result.json").read_text())


def test_a_better_model_is_called_better_in_the_first_line(repository, capsys):
    main(["weak", "strong"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weak → strong: better; AUROC +0.")
    assert lines[0].endswith("), better")
    assert [line for line in lines if line.startswith("Brier score, lower is better") and line.endswith("better")]


def test_one_revision_is_compared_with_the_workspace(repository):
    write_predictions(0.4, SAME)
    result = compared("strong")
    assert (result["base"], result["new"]) == ("strong", "workspace")
    assert result["verdict"] == "worse"
    assert compared("weak")["metrics"]["auroc"]["difference"]["value"] == 0


def test_tags_are_revisions_too_and_nothing_is_checked_out(repository, bytes_below):
    git("tag", "v1", "weak")
    before = bytes_below(Path("data")) | bytes_below(Path("models"))
    assert compared("v1", "main~0")["verdict"] == "better"
    assert bytes_below(Path("data")) | bytes_below(Path("models")) == before


def test_a_fresh_clone_without_any_data_compares_and_a_remote_adds_the_subgroups(repository, tmp_path, monkeypatch):
    add_remote(tmp_path / "storage", ".dvc/config.local")
    with Repo() as repo:
        repo.push(all_branches=True)
    shutil.rmtree(".dvc/cache")
    result = compared("weak", "strong")
    assert result["verdict"] == "better"
    assert result["subgroups"]["looked_at"] > 0
    git("clone", "--quiet", ".", str(tmp_path / "fork"))
    monkeypatch.chdir(tmp_path / "fork")
    alone = compared("origin/weak", "origin/strong")
    assert alone["metrics"] == result["metrics"]
    assert alone["subgroups"] is None


def test_without_a_manifest_only_subgroups_are_left_out(repository, capsys):
    shutil.rmtree(PREPARED)
    listings = list(Path(".dvc/cache").rglob("*.dir"))
    assert listings
    for path in listings:
        path.unlink()
    main(["weak"])
    assert "Subgroups: not compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nonsense", "'nonsense' is not a commit, branch, tag or experiment here"),
        ("main~99", "'main~99' is not a commit"),
        ("", "the name of a revision is empty"),
        ("empty", r"empty has no metrics/predictions\.csv; name a revision in which a `dvc repro` is committed"),
    ],
)
def test_a_revision_without_predictions_is_refused(repository, revision, message):
    with pytest.raises(InputError, match=message):
        main([revision])


def test_outside_of_a_repository_revisions_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    with pytest.raises(InputError, match=r"not a git repository.*; run from the root"):
        main(["main"])


def test_a_damaged_table_is_named_as_git_names_it(repository):
    PUBLISHED[PREDICTIONS].write_text("image_id\nI000\n")
    commit("damaged")
    with pytest.raises(InputError, match=r"^damaged:metrics/predictions\.csv lacks the column"):
        main(["damaged", "weak"])


def test_other_test_images_are_refused_with_the_parameter_that_differs(repository):
    with pytest.raises(InputError) as caught:
        main(["weak", "more_images"])
    assert "2 only in weak (I118, I119) and 8 only in more_images (I000, I001, I002, I003, I004, …)" in str(
        caught.value
    )
    assert "their params.yaml differ in split.test_fold (0, 3)" in str(caught.value)
    write_predictions(2.0, range(2, IMAGES))
    with pytest.raises(InputError, match="so the dataset itself has changed"):
        main(["weak"])


def test_a_gate_fails_on_the_named_metric_only(repository, capsys):
    with pytest.raises(SystemExit, match="--fail-if-worse: auroc, brier is worse in weak than in strong"):
        main(["strong", "weak", "--fail-if-worse", "auroc", "--fail-if-worse", "brier"])
    assert "strong → weak: worse" in capsys.readouterr().out
    main(["weak", "strong", "--fail-if-worse", "auroc", "--fail-if-worse", "brier"])


def test_a_gate_on_a_metric_that_is_not_compared_does_not_pass(repository):
    with pytest.raises(InputError, match=r"--fail-if-worse acuracy: it is not a headline metric; .* accuracy,"):
        main(["weak", "--fail-if-worse", "acuracy"])
    write_predictions(2.0, SAME, threshold=None)
    with pytest.raises(InputError, match="sensitivity_at_threshold: a model has no decision threshold"):
        main(["weak", "--fail-if-worse", "sensitivity_at_threshold"])


def test_a_gate_does_not_pass_on_results_of_other_code(repository, monkeypatch):
    monkeypatch.setattr(Revision, "stale_stages", {"train": ["rate"], "evaluate": ["rate"]})
    with pytest.raises(SystemExit, match=r"Not of this code.*strong, where dvc repro would run train, evaluate again"):
        main(["weak", "strong", "--fail-if-worse", "auroc"])


def test_a_metric_that_one_model_has_not_is_shown_and_passes_no_gate(repository, capsys):
    _, table = write_predictions(2.0, SAME)
    table["probability_malignant"] *= 0.4
    write_csv(PUBLISHED[PREDICTIONS], table.assign(probability_benign=1 - table["probability_malignant"]))
    with pytest.raises(InputError, match=r"--fail-if-worse precision: without a value in one: 0\.\d+ → none"):
        main(["weak", "--fail-if-worse", "precision"])
    main(["weak"])
    assert "Not compared: precision (without a value in one: 0." in capsys.readouterr().out


def test_markdown_says_the_verdict_first_and_means_nothing_else(repository, capsys):
    git("branch", "a|b<i>_x_", "strong")
    main(["weak", "a|b<i>_x_", "--md"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("**`weak` → `a|b<i>_x_`: better; AUROC +0.")
    table = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert len(table) == 2 + 13
    assert {line.count("|") for line in table} == {7}
    assert any(line.startswith("| AUROC |") and line.endswith("| **better** |") for line in table)


def test_images_that_changed_sides_are_counted_and_all_are_in_the_json(repository, capsys):
    found = compared("weak", "strong")["changed"]["malignant"]["wrong_to_right"]
    assert len(found) > 10
    printed = capsys.readouterr().out
    assert f"FN to TP {len(found)} ({found[0]}, " in printed
    assert f" and {len(found) - 10} more)" in printed


def test_each_model_is_evaluated_at_its_own_threshold(repository, capsys):
    write_predictions(2.0, SAME, threshold=0.999)
    metrics = compared("strong")["metrics"]
    assert metrics["sensitivity_at_threshold"]["verdict"] == "worse"
    assert metrics["auroc"]["difference"]["value"] == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "strong → workspace: worse; AUROC +0.000 (0.000 to 0.000), no evidence of a difference; "
        "worse: Sensitivity at the threshold"
    )


def test_a_commit_from_before_the_threshold_is_compared_in_all_else(repository, capsys):
    write_predictions(2.0, SAME, threshold=None)
    commit("old")
    write_predictions(2.0, SAME)
    result = compared("HEAD")
    assert set(result["not_compared"]) == {"sensitivity_at_threshold", "specificity_at_threshold"}
    assert "Changed decisions: not compared" in capsys.readouterr().out


def test_a_decision_by_cost_is_compared_with_a_commit_from_before_there_were_costs(repository, capsys):
    write_predictions(2.0, SAME)
    details = read_json(PUBLISHED[DETAILS])
    write_json(PUBLISHED[DETAILS], details | {"calibration": {"threshold": 0.5, "costs": [[0.0, 1.0], [1.0, 0.0]]}})
    main(["strong"])
    assert "identical predictions" in capsys.readouterr().out
    write_json(PUBLISHED[DETAILS], details | {"calibration": {"threshold": 0.5, "costs": [[0.0, 1.0], [1e9, 0.0]]}})
    metrics = compared("strong")["metrics"]
    assert (
        metrics["decided_accuracy"]["base"] == metrics["accuracy"]["base"] > metrics["decided_accuracy"]["new"] == 0.5
    )
    assert metrics["decided_accuracy"]["verdict"] == "worse"
    assert "Accuracy, decided" in capsys.readouterr().out
    write_json(PUBLISHED[DETAILS], details | {"calibration": {"threshold": 0.5, "costs": [[0.0]]}})
    with pytest.raises(InputError, match=r"costs are of 1 classes; workspace:metrics/predictions.csv has 2"):
        main(["strong"])


def test_two_and_seven_classes_are_compared_by_malignancy(repository):
    write_predictions(2.0, SAME, classes=7)
    result = compared("weak")
    assert result["classes"] == ["benign", "malignant"]
    assert result["metrics"]["auroc"]["verdict"] == "better"


def test_replicates_come_from_the_parameters(repository):
    change_parameter("bootstrap_replicates: 300", "bootstrap_replicates: 150")
    assert compared("weak")["bootstrap_replicates"] == 150


def test_the_last_bits_do_not_depend_on_the_cores(repository, monkeypatch):
    change_parameter("cpu_threads: 2", "cpu_threads: 1")
    replicate, threads = uncertainty.replicate, set()

    def recorded(*arguments):
        threads.update(pool["num_threads"] for pool in threadpool_info())
        return replicate(*arguments)

    monkeypatch.setattr(uncertainty, "replicate", recorded)
    with threadpool_limits(3):
        compared("weak", "strong")
    assert threads == {1}


def test_a_result_that_cannot_be_written_is_told_and_nothing_is_lost(repository):
    with pytest.raises(InputError, match="data is not a file"):
        main(["weak", "--json", "data"])
    assert PUBLISHED[PREDICTIONS].exists()
    with pytest.raises(InputError, match=r"--json params\.yaml/result\.json cannot be written"):
        main(["weak", "--json", "params.yaml/result.json"])


def test_torch_is_not_waited_for(repository):
    code = "import sys; from stages.commands.compare import main; main(['weak']); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
