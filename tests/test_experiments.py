"""Experiments of the real pipeline, with a dataset that DVC tracks: run in a temporary folder, pushed, handed on.

One clone serves all tests, which go on from each other: each run of the pipeline costs many seconds.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_report_in_browser
from tests.clone import ENVIRONMENT, ROOT, Clone, overrides
from tests.test_pipeline import PLOTS

pytestmark = pytest.mark.xdist_group("experiments")
browser = test_report_in_browser.browser
CHARTS = 11  # in dvc.yaml
SEVEN = {
    "data__data_dir": "data/ham10000",
    "model__num_classes": "7",
    "training__learning_rate": "3e-5",
    "data__image_size": "48",
    "split__test_fold": "1",
}


def texts(chart: object, key: str) -> list[str]:
    """All texts under a key, anywhere in a chart."""
    parts = chart.values() if isinstance(chart, dict) else chart if isinstance(chart, list) else ()
    found = [chart[key]] if isinstance(chart, dict) and isinstance(chart.get(key), str) else []
    return found + [text for part in parts for text in texts(part, key)]


@pytest.fixture(scope="module")
def clone(ran, tmp_path_factory):
    """A clone after an experiment, `tracked`, in another folder, on a dataset that DVC tracks.

    All stages run: it has seven classes, a learning rate in exponent notation and other images in other folds. There is
    a remote for Git and one for DVC.
    """
    clone = Clone(tmp_path_factory.mktemp("experiments"), copied=ran)
    git, storage = (tmp_path_factory.mktemp(name) for name in ("git", "storage"))
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", git], check=True)
    clone._git("remote", "add", "origin", str(git))
    clone.dvc("remote", "add", "--default", "storage", str(storage))
    shutil.copytree(ROOT / "data/sample", clone.folder / "data/ham10000")
    clone.dvc("add", "data/ham10000")
    clone.commit("a remote and a dataset")
    clone.dvc("exp", "run", "--temp", "--name", "tracked", *overrides(**SEVEN))
    return clone


def test_the_tests_of_a_group_share_a_process(request):
    if hasattr(request.config, "workerinput"):  # where there is more than one
        assert request.node.nodeid.endswith("@experiments")


def test_an_experiment_elsewhere_finds_a_dataset_that_dvc_tracks(clone):
    [baseline] = [entry for entry in json.loads(clone.dvc("exp", "show", "--json")) if entry["rev"] != "workspace"]
    [experiment] = baseline["experiments"]
    assert experiment["name"] == "tracked"
    data = experiment["revs"][0]["data"]
    assert data["params"]["params.yaml"]["data"]["data"]["data_dir"] == "data/ham10000"
    assert 0 < data["metrics"]["metrics/evaluation.json"]["data"]["macro_auroc"] < 1
    # The workspace is as it was.
    assert clone.changes() == ""


def test_an_experiment_keeps_the_comments_of_params_yaml_and_the_exponent_that_dvc_writes(clone):
    experiment = clone._git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/tracked").strip()
    text = clone._git("show", f"{experiment}:params.yaml")
    assert "learning_rate: 3e-05" in text
    assert "# images per batch and device" in text


def test_an_experiment_can_be_applied_saved_and_pushed(clone):
    clone.dvc("exp", "apply", "tracked")
    clone.dvc("exp", "save", "--name", "saved")
    clone.dvc("exp", "push", "origin", "tracked", "saved")
    assert clone._git("ls-remote", "origin", "refs/exps/*").count("refs/exps/") == 2
    remote = clone.dvc("exp", "list", "--name-only", "origin")
    assert {"tracked", "saved"} <= set(remote.split())


def test_another_repository_gets_the_model_by_its_name(clone, tmp_path):
    clone.commit("the experiment")
    clone.dvc("push")
    # DVC looks for a version, which is a tag that GTO, one of its dependencies, gives and reads.
    gto = [Path(sys.executable).parent / "gto", "register", "classifier", "--version", "v1.0.0"]
    subprocess.run(gto, cwd=clone.folder, env=ENVIRONMENT, check=True, capture_output=True)
    assert clone._git("tag").split() == ["classifier@v1.0.0"]
    clone._git("push", "--quiet", "origin", "main", "classifier@v1.0.0")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    url = clone._git("remote", "get-url", "origin").strip()
    command = [sys.executable, "-m", "dvc", "artifacts", "get", url, "classifier", "--out", "model.safetensors"]
    got = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert got.returncode == 0, got.stderr
    model = (tmp_path / "model.safetensors").read_bytes()
    assert model == (clone.folder / "models/model.safetensors").read_bytes()


def test_plots_draw_without_a_network(clone, browser):
    clone.dvc("plots", "show")
    visit = test_report_in_browser.Visit(browser, clone.folder / "dvc_plots/index.html", {"width": 1280, "height": 900})
    try:
        assert [url for url in visit.requests if not url.startswith(("data:", "file:", "blob:"))] == []
        charts = "document.querySelectorAll('.vega-embed canvas, .vega-embed svg.marks').length"
        visit.page.wait_for_function(f"{charts} >= {CHARTS}")
        # Vega warns of entries of DVC's templates that mean nothing.
        assert [complaint for complaint in visit.complaints if not complaint.startswith("WARN ")] == []
    finally:
        visit.context.close()


def test_every_chart_has_a_title_and_axes(clone):
    charts = json.loads(clone.dvc("plots", "show", "--json"))["data"]
    drawn = {name: chart[0]["content"] for name, chart in charts.items() if chart and "content" in chart[0]}
    assert len(drawn) >= CHARTS - 1  # one is of the files of a training in this folder
    for name, chart in drawn.items():
        assert chart["title"]["text"] == name
        titles = set(texts(chart, "title"))
        [declared] = [entry[name] for entry in PLOTS if isinstance(entry, dict) and name in entry]
        assert {declared["x_label"], declared["y_label"]} <= titles


@pytest.mark.slow
def test_going_back_to_parameters_of_before_computes_nothing(clone):
    """Of no stage; neither here nor in an experiment's own folder, as the queue and `sweep` have."""
    stages = ["prepare", "split", "train", "evaluate", "plot"]
    clone._git("checkout", "--quiet", "HEAD", ".")
    clone.dvc("exp", "apply", "tracked")
    clone.commit("seven classes")
    shutil.copy(ROOT / "params.yaml", clone.folder)
    printed = clone.dvc("repro")
    assert [stage for stage in stages if f"Stage '{stage}' is cached" not in printed] == []
    for name in ("dvc.lock", "metrics/details.json", "models/README.md"):
        assert (clone.folder / name).read_bytes() == (ROOT / name).read_bytes()
    clone.commit("two classes again")
    printed = clone.dvc("exp", "run", "--temp", *overrides(**SEVEN))
    assert [stage for stage in stages if f"Stage '{stage}' is cached" not in printed] == []


@pytest.mark.slow
def test_other_networks_and_other_layouts_of_the_data(clone):
    """ResNet-18 from scratch on zipped images in another folder, after a change of the data's folder only."""
    parameters = SEVEN | {"model__name": "resnet", "model__variant": "18", "model__num_classes": "2"}
    clone.dvc("exp", "run", *overrides(**parameters | {"data__data_dir": "data/sample"}))
    sample, zipped = clone.folder / "data/sample", clone.folder / "data/zipped"
    zipped.mkdir()
    shutil.copy(sample / "HAM10000_metadata.csv", zipped)
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        shutil.make_archive(str(zipped / part), "zip", sample / part)
    output = clone.dvc("exp", "run", *overrides(**parameters | {"data__data_dir": "data/zipped"}))
    # The same images in another layout are the same prepared data: the split does not run again.
    assert "Stage 'split' didn't change" in output
    assert clone.json("models/model.json")["architecture"] == "resnet18"
