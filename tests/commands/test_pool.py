import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.sweep import set_parameters
from stages.commands import compare, pool, report
from stages.dataset.pixels import PixelStore, add_places, write_manifest
from stages.errors import InputError
from stages.evaluation.details import read_details
from stages.experiments.pooling import read_folds, uncalibrated
from stages.experiments.revision import Revision
from stages.files import DETAILS, PREDICTIONS, PREPARED, PUBLISHED, read_csv, write_csv
from tests.cross_validation import (
    FOLDS,
    IMAGES,
    NAMES,
    commit_experiment,
    fold_of,
    images,
    outputs,
    replace_experiment,
    write_fold,
)
from tests.history import git

pytestmark = [pytest.mark.usefixtures("quick_pictures"), pytest.mark.xdist_group("pool")]


@pytest.fixture(scope="module")
def pooled(made_of_folds, quick_pictures):
    """The folder of a pooled run; not to be changed."""
    return made_of_folds(pool)


def test_every_image_is_judged_once_by_the_fold_that_had_not_seen_it(pooled):
    table = read_csv(pooled / PREDICTIONS.name, ["image_id"])
    assert table["image_id"].tolist() == images()["image_id"].tolist()
    assert table["fold"].tolist() == fold_of(images()).tolist()
    assert set(table["split"]) == {"test"}
    details = read_details(pooled / DETAILS.name)
    assert (details["test"]["images"], details["test"]["lesions"]) == (IMAGES, IMAGES // 2)
    # The decision of an image is that of its fold's threshold, not of one number for all.
    own = table["fold"].map({fold["test_fold"]: fold["calibration"]["threshold"] for fold in details["folds"]})
    assert own.nunique() == FOLDS
    malignant = table["label"].isin(["akiec", "bcc", "mel"])
    score = table[["probability_akiec", "probability_bcc", "probability_mel"]].sum(axis=1)
    assert details["test"]["metrics"]["sensitivity_at_threshold"]["value"] == pytest.approx(
        (score >= own)[malignant].mean(), abs=1e-6
    )
    # So is the class that is decided for, by the costs of its fold.
    decided = [table.index[table["fold"] == fold["test_fold"]] for fold in details["folds"]]
    assert len({str(fold["calibration"]["costs"]) for fold in details["folds"]}) > 1
    for rows, fold in zip(decided, details["folds"]):
        expected = table.filter(like="probability_").loc[rows] @ np.array(fold["calibration"]["costs"])
        assert table.loc[rows, "decided"].tolist() == [
            details["classes"][n] for n in expected.to_numpy().argmin(axis=1)
        ]
    assert details["test"]["decided"]["accuracy"]["value"] == pytest.approx(
        (table["decided"] == table["label"]).mean(), abs=1e-6
    )
    groups = details["test"]["subgroups"]["sex"]["groups"]
    men = (images()["sex"] == "male") & ~malignant
    found = next(group for group in groups if group["name"] == "male")
    assert found["specificity"]["value"] == pytest.approx((score < own)[men].mean(), abs=1e-6)


def test_the_folder_has_pictures_and_a_page_and_the_workspace_stays_as_it_is(pooled):
    page = (pooled / "plots/report.html").read_text(encoding="utf-8")
    assert "<h1>Evaluation on all 3 folds</h1>" in page
    assert page.count("<img") == 9
    assert not (pooled.parent / "metrics").exists()
    assert not (pooled.parent / "plots").exists()


def test_pooled_runs_are_compared_and_reported_like_revisions(pooled, monkeypatch, tmp_path, capsys):
    shutil.copytree(pooled.parent, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    table = read_csv(pooled / PREDICTIONS.name, ["image_id"])
    # The same probabilities at another threshold of one fold: nothing but decisions of its images change.
    lower = table.assign(threshold=table["threshold"].where(table["fold"] != 1, 1e-6))
    Path("made").rename("pooled")
    shutil.copytree("pooled", "other")
    write_csv(Path("other", PREDICTIONS.name), lower)
    compare.main(["pooled", "other", "--json", "result.json"])
    result = json.loads(Path("result.json").read_text(encoding="utf-8"))
    changed = [*result["changed"]["benign"]["right_to_wrong"], *result["changed"]["malignant"]["wrong_to_right"]]
    assert changed
    assert {fold_of(images())[int(image[1:])] for image in changed} == {1}
    assert result["metrics"]["accuracy"]["difference"]["value"] == 0
    assert result["metrics"]["sensitivity_at_threshold"]["difference"]["value"] > 0
    assert result["subgroups"]["looked_at"] > 0
    report.main(["pooled", "other"])
    text = Path("report.md").read_text(encoding="utf-8")
    assert "`pooled` is pooled from `" in text
    assert Path("report_pictures/roc.png").exists()
    with pytest.raises(InputError, match="different test images"):
        compare.main(["fold-0", "pooled"])


def test_uncalibrated_probabilities_come_back(cross_validated, monkeypatch):
    monkeypatch.chdir(cross_validated)
    for fold, raw in zip(read_folds([Revision(name) for name in NAMES]), outputs()):
        assert fold.calibration.temperature > 1.05
        tested = raw[fold_of(images()) == fold.number]
        found = uncalibrated(fold.test, fold.calibration.temperature)
        assert np.abs(np.log(found) - np.log(tested))[tested > 1e-6].max() < 0.02
        assert found == pytest.approx(tested, abs=1e-7)


def test_without_names_the_run_with_the_parameters_of_the_workspace_is_taken(cross_validation, capsys):
    base = git("rev-parse", "HEAD").strip()
    for number, raw in enumerate(outputs(own=0.1)):
        set_parameters(Path(), {"training.seed": 1})
        write_fold(number, raw)
        commit_experiment(f"seed-{number}", base)
    pool.main(["--output", "first"])
    folds = json.loads(Path("first", DETAILS.name).read_text())["folds"]
    assert [fold["revision"] for fold in folds] == [Revision(name).commit for name in NAMES]
    set_parameters(Path(), {"training.seed": 2})
    with pytest.raises(InputError, match=r"experiments of 2 runs, name those of one: fold-0, .*; seed-0, seed-1"):
        pool.main(["--output", "second"])


def _relabel():
    table = images()
    write_manifest(
        PREPARED, add_places(table.assign(dx=table["dx"].replace("bkl", "df"))), PixelStore(PREPARED).taxonomy
    )


def _forget_an_image():
    write_manifest(PREPARED, add_places(images()[:-1]), PixelStore(PREPARED).taxonomy)
    np.save(PREPARED / "pixels-00000.npy", np.zeros((IMAGES - 1, 16, 16, 3), np.uint8))


def _other_split():
    write_fold(1, outputs()[1])
    table = pd.read_csv(PUBLISHED[PREDICTIONS])
    of_fold_0 = images()["image_id"][fold_of(images()) == 0].iloc[0]
    table.loc[table["split"] == "test", "image_id"] = table.loc[table["split"] == "test", "image_id"].where(
        np.arange((table["split"] == "test").sum()) > 0, of_fold_0
    )
    write_csv(PUBLISHED[PREDICTIONS], table)
    replace_experiment(1)


def _forget_the_folds():
    lines = Path("params.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("params.yaml").write_text("".join(line for line in lines if "test_fold" not in line.split(":")[0]))
    git("commit", "--quiet", "--all", "--message", "before there were folds")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda: None,
            ["fold-0", "fold-2"],
            r"no run tests fold 1 of 3 \(split\.folds\); run `python -m stages sweep -S split\.test_fold=1`",
        ),
        (lambda: None, ["nowhere"], "'nowhere' is not a commit"),
        (_relabel, NAMES, "data/prepared does not hold the images of these runs: some have another label"),
        (_forget_an_image, NAMES, "data/prepared does not hold the images of these runs: 1 were tested, .*: I125"),
        (_other_split, NAMES, "fold-0 and fold-1 both test I000: their tables of splits are not the same"),
        (lambda: Path("there").mkdir(), ["--output", "there"], "--output is 'there', which exists"),
        (lambda: None, ["--output", "params.yaml/there"], "--output is .*; params.yaml is a file, not a folder"),
        (_forget_the_folds, ["HEAD"], r"HEAD:params\.yaml: split\.test_fold is missing"),
    ],
)
def test_mistakes_get_a_clear_answer_and_nothing_is_written(cross_validation, change, arguments, message):
    change()
    with pytest.raises(InputError, match=message):
        pool.main(["--output", "out", *arguments])
    assert not Path("out").exists()


def test_other_parameters_are_no_run(cross_validation):
    base = git("rev-parse", "HEAD").strip()
    set_parameters(Path(), {"training.learning_rate": 0.5})
    write_fold(1, outputs()[1])
    commit_experiment("faster", base)
    with pytest.raises(InputError, match=r"they differ in training\.learning_rate; they may in split\.test_fold alone"):
        pool.main(["fold-0", "faster", "fold-2", "--output", "out"])
