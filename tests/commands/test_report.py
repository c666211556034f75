"""The report between commits of a small repository, laid out as after `dvc repro`."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from dvc.repo import Repo
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

from stages.commands import compare
from stages.commands.report import main
from stages.errors import InputError
from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.predictions import Predictions
from stages.files import (
    DETAILS,
    ENVIRONMENT,
    EVALUATION,
    PLOTS,
    SPLIT_METRICS,
    write_csv,
    write_json,
)
from stages.plot import confusion_table
from tests.history import IMAGES, commit, git, start_repository, write_predictions

ROOT = Path(__file__).parents[2]


def write_run(skill, images=range(IMAGES), diagnosis_of_first="nv", speed=100.0):
    """Write what the stages would: two test images a lesion, whose predictions get better with the skill."""
    rows, table = write_predictions(skill, images, diagnosis_of_first=diagnosis_of_first)
    test = Predictions(table, ("benign", "malignant"))
    for name, curve in (
        ("roc", roc_table(test.is_malignant, test.malignant_probability)),
        ("precision_recall", precision_recall_table(test.is_malignant, test.malignant_probability)),
    ):
        write_csv(PLOTS / f"{name}.csv", curve.assign(lower=0.1, upper=1.0))
    bins = {"predicted": [0.1, 0.9], "observed": [0.2, 0.8], "lower": [0.1, 0.6], "upper": [0.3, 0.9]}
    write_csv(PLOTS / "reliability.csv", pd.DataFrame(bins))
    write_csv(PLOTS / "confusion_matrix.csv", confusion_table(test))
    metrics = {"auroc": {"value": min(0.5 + skill / 5, 1), "interval": [0.5, 0.9]}}
    write_json(DETAILS, {"classes": list(test.classes), "confidence": 0.95, "test": {"metrics": metrics}})
    write_json(EVALUATION, {"auroc": metrics["auroc"]["value"]})
    counts = {dx: {"images": int(count), "lesions": 1} for dx, count in sorted(rows["dx"].value_counts().items())}
    split = {"images": len(rows), "lesions": rows["lesion_id"].nunique(), "diagnoses": counts}
    write_json(SPLIT_METRICS, {"test": split})
    # A commit differs always, and says nothing of the cost.
    environment = {"cpu": "x86_64", "cpu_cores": 2, "gpu": None, "commit": f"{speed}", "dirty": speed > 100}
    write_json(ENVIRONMENT, {**environment, "training_seconds": 60.0, "training_images_per_second": speed})


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A repository with commits `weak`, `strong` and `more_images`; not to be changed."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_repository()
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        Path("params.yaml").write_text(text.replace("bootstrap_replicates: 2000", "bootstrap_replicates: 300"))
        write_run(0.4, range(8, IMAGES))
        commit("weak")
        write_run(2.0, range(8, IMAGES), speed=150.0)
        Path("params.yaml").write_text(
            Path("params.yaml").read_text().replace("learning_rate: 0.003", "learning_rate: 0.01")
        )
        commit("strong")
        write_run(2.0, range(IMAGES - 2), "bkl")
        commit("more_images")
    return folder


@pytest.fixture
def repository(history, tmp_path, monkeypatch):
    """A copy of the history, with its last commit in the workspace, as the working directory."""
    shutil.copytree(history, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def sections(*arguments):
    """The report by headings; what stands before the first has an empty one."""
    main([*arguments])
    parts = re.split(r"^### (.*)\n", Path("report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2]))


def test_the_verdict_comes_first_and_all_sections_follow(repository, capsys):
    report = sections("weak", "strong")
    first = report[""].splitlines()[0]
    assert re.fullmatch(
        r"\*\*<code>weak</code> → <code>strong</code>: better; AUROC \+0\.\d+ \[0\.\d+, 0\.\d+\], better\*\*", first
    )
    assert capsys.readouterr().out.startswith(first)
    assert list(report)[1:] == ["Metrics", "Parameters", "Curves", "Subgroups that got worse", "Data", "Cost"]
    assert "| AUROC | 0.580 (0.500 to 0.900) | 0.900 (0.500 to 0.900) | +0." in report["Metrics"]
    assert "rate</code> | <code>0.003</code> | <code>0.01</code> |" in report["Parameters"]
    assert report["Parameters"].count("\n| <code>") == 1
    assert "none is evidence" in report["Subgroups that got worse"]
    assert "The same 112 images of 56 lesions" in report["Data"]
    assert "| training speed [images/s] | 100.0 | 150.0 | +50 % |" in report["Cost"]


def test_the_last_bits_do_not_depend_on_the_cores(repository, monkeypatch):
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("cpu_threads: 2", "cpu_threads: 1"))
    compare_predictions, threads = compare.compare_predictions, set()

    def recorded(*arguments):
        threads.update(pool["num_threads"] for pool in threadpool_info())
        return compare_predictions(*arguments)

    monkeypatch.setattr(compare, "compare_predictions", recorded)
    with threadpool_limits(3):
        sections("weak", "strong")
    assert threads == {1}


def test_pictures_lie_beside_the_report_under_relative_links(repository):
    Path("out").mkdir()
    main(["weak", "strong", "--output", "out/comparison.md"])
    links = re.findall(r"!\[.*?\]\((.*?)\)", Path("out/comparison.md").read_text(encoding="utf-8"))
    assert [Path(link).name for link in links] == [
        "roc.png",
        "precision_recall.png",
        "reliability.png",
        "confusion_matrix.png",
    ]
    for link in links:
        with Image.open(Path("out") / link) as picture:
            assert picture.width == 900


def test_the_workspace_is_compared_with_main_where_nothing_is_said(repository):
    write_run(0.4, range(IMAGES - 2), "bkl")
    assert "<code>main</code> → <code>workspace</code>: worse" in sections()[""]


def test_a_subgroup_that_got_worse_has_a_line(repository):
    report = sections("strong", "weak")
    assert "| sex: <code>male</code> | AUROC |" in report["Subgroups that got worse"]
    assert "→ <code>weak</code>: worse" in report[""]


def test_images_lesions_and_diagnoses_that_came_and_went_are_counted(repository):
    report = sections("strong", "more_images")
    assert "not compared" in report[""]
    assert "judged on different test images" in report[""]
    assert "| images | 112 | 118 | 8 | 2 |" in report["Data"]
    assert "| lesions | 56 | 59 | 4 | 1 |" in report["Data"]
    assert "| images of <code>bkl</code> | 28 | 29 | 3 | 2 |" in report["Data"]
    assert "Images of each split: test 112 before; test 118 now." in report["Data"]


def test_without_predictions_it_says_so_and_shows_what_git_has(repository):
    shutil.rmtree(".dvc/cache")
    report = sections("weak", "strong")
    assert report[""].startswith("**<code>weak</code> → <code>strong</code>: not compared**")
    assert "is neither in DVC&#39;s cache nor on its remote" in report[""]
    assert "No DVC remote is configured" in report[""]
    assert "| AUROC | 0.580 (0.500 to 0.900) | 0.900 (0.500 to 0.900) |" in report["Metrics"]
    assert report["Curves"].count("![") == 4
    assert report["Subgroups that got worse"].strip() == "Not compared."
    assert "As many images and lesions of each diagnosis" in report["Data"]
    assert "| images | 112 | 118 | +6 |" in sections("strong", "more_images")["Data"]


def test_a_remote_is_read_and_then_not_said_to_be_missing(repository, tmp_path):
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["storage"] = {"url": str(tmp_path / "storage")}
        config["core"]["remote"] = "storage"
    with Repo() as repo:
        repo.push(all_branches=True)
    shutil.rmtree(".dvc/cache")
    report = sections("weak", "strong")
    assert ": better; AUROC" in report[""]
    assert "No DVC remote" not in report[""]


def test_a_commit_from_before_there_was_anything_is_shown_as_such(repository):
    git("checkout", "--quiet", "--orphan", "bare")
    git("rm", "--quiet", "-r", "--cached", ".")
    git("add", "-f", ".dvc/config", "params.yaml")
    git("commit", "--quiet", "--message", "bare")
    report = sections("bare", "strong")
    assert "not compared" in report[""]
    assert "No curve is in Git in both revisions." in report["Curves"]
    assert "| AUROC | – | 0.900 (0.500 to 0.900) |" in report["Metrics"]
    assert "Unknown" in report["Data"]
    assert "Unknown" in report["Cost"]


def test_names_and_values_mean_nothing_but_themselves(repository):
    git("branch", "a|b<i>_$x$", "strong")
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("weights: null", 'weights: "<script>|![x](http://x)"'))
    report = sections("a|b<i>_$x$", "workspace")
    text = "".join(report.values())
    assert "<script>" not in text
    assert "<i>" not in text
    assert "![x]" not in text
    for block in ("Metrics", "Parameters", "Cost"):
        table = [line for line in report[block].splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "'nonsense' is no commit"),
        ([""], "the name of a revision is empty"),
        (["weak", "--output", "data"], "--output data is a folder"),
        (["weak", "--output", "params.yaml/report.md"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_clear_line(repository, arguments, message):
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_pictures_replace_those_of_a_report_and_nothing_else(repository, bytes_below):
    pictures = Path("thesis_pictures")
    pictures.write_text("mine")
    with pytest.raises(InputError, match="thesis_pictures, which is no folder; name another file"):
        main(["weak", "strong", "--output", "thesis.md"])
    pictures.unlink()
    pictures.mkdir()
    (pictures / "photo.jpg").write_text("mine")
    (pictures / "roc.png").write_text("old")
    before = bytes_below(pictures)
    with pytest.raises(InputError, match=r"replace the folder thesis_pictures, which holds photo\.jpg"):
        main(["weak", "strong", "--output", "thesis.md"])
    assert bytes_below(pictures) == before
    assert not Path("thesis.md").exists()
    (pictures / "photo.jpg").unlink()
    main(["weak", "strong", "--output", "thesis.md"])
    assert len(list(pictures.iterdir())) == 4


def test_a_damaged_file_is_named_as_git_names_it(repository):
    DETAILS.write_text("{")
    git("commit", "--quiet", "--all", "--message", "damaged")
    with pytest.raises(InputError, match=r"^HEAD:metrics/details\.json is not JSON"):
        main(["HEAD"])
    git("checkout", "--quiet", "HEAD~1", "--", str(DETAILS))
    (PLOTS / "roc.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"^workspace:plots/roc\.csv is not a table"):
        main(["strong"])


def test_two_and_seven_classes_are_compared_by_malignancy(repository):
    details = json.loads(DETAILS.read_text())
    write_json(DETAILS, details | {"classes": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]})
    report = sections("more_images")
    assert "confusion" not in report["Curves"]
    assert re.search(r"\| AUROC \| 0\.900 \(0\.500 to 0\.900\) \| [01]\.\d{3} \|", report["Metrics"])
