"""What `dvc plots` and `dvc exp show` make of the results."""

import json
import re

import pytest
from ruamel.yaml import YAML

from tests.clone import ROOT

PLOTS = {}
for entry in YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]:
    PLOTS |= entry if isinstance(entry, dict) else {}
TEMPLATES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / ".dvc/plots").glob("*.json")}
SHOWN = {
    "auroc", "malignant_auroc", "balanced_accuracy", "ece", "sensitivity_at_threshold", "specificity_at_threshold",
    "val.calibrated_loss",
}  # fmt: skip


def flat(content, prefix=""):
    for key, value in content.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_the_table_of_experiments_has_the_main_metrics_and_parameters_alone():
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nexperiments:")[1].split("\n\n")[0]
    drop = re.compile(re.search("'(.+)'", rule)[1].replace("$$", "$"))
    metrics = [json.loads((ROOT / f"metrics/{name}.json").read_text()) for name in ("evaluation", "training/metrics")]
    names = {name for content in metrics for name in flat(content)} | set(SHOWN) | {"Created"}
    assert {name for name in names if not drop.match(name)} == SHOWN
    lock = YAML(typ="safe", pure=True).load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    files = {dep["path"] for stage in lock.values() for dep in stage.get("deps", [])}
    assert [name for name in files if not drop.match(name)] == []
    parameters = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert [name for name in flat(parameters) if drop.match(name)] == []


def test_every_template_is_there_and_used():
    used = {plot["template"] for plot in PLOTS.values()}
    assert used - TEMPLATES.keys() == {"simple"}  # DVC's own
    assert TEMPLATES.keys() <= used


def test_no_precision_is_shown_that_no_threshold_has():
    plot = PLOTS["Precision–recall, malignant against benign"]
    assert TEMPLATES[plot["template"]]["mark"]["interpolate"] == "step-before"  # as the average precision adds up


@pytest.mark.parametrize("name", ["ROC, malignant against benign", "Reliability, probability of malignancy"])
def test_curves_that_are_judged_by_the_diagonal_show_it(name):
    diagonal, curve = TEMPLATES[PLOTS[name]["template"]]["layer"]
    assert diagonal["data"]["values"] == [{"from": 0, "to": 1}]
    assert {curve["encoding"][axis]["scale"]["domain"] == [0, 1] for axis in "xy"} == {True}


def test_groups_that_are_too_small_are_not_shown_and_others_with_their_intervals():
    plot = PLOTS["AUROC by subgroup"]
    template = TEMPLATES[plot["template"]]
    [(file, _)] = plot["y"].items()
    columns = (ROOT / file).read_text(encoding="utf-8").splitlines()[0].split(",")
    assert template["transform"] == [{"filter": "datum.auroc_judged == 'True'"}]
    interval = template["layer"][0]["encoding"]
    assert {"auroc_judged", interval["x"]["field"], interval["x2"]["field"]} <= set(columns)
    assert template["layer"][2]["encoding"]["x"] == {"datum": 0.5}


def test_the_confusion_matrix_has_the_axes_of_the_picture():
    plot = PLOTS["Confusion matrix"]
    assert (plot["x"], plot["x_label"]) == ("predicted", "predicted")
    assert (list(plot["y"].values()), plot["y_label"]) == (["actual"], "true")
