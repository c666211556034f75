"""Experiments of the real pipeline, with a dataset that DVC tracks: queued, in a temporary folder, pushed, handed on.

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


def sweep(clone: Clone, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stages", "sweep", *options]
    return subprocess.run(command, cwd=clone.folder, env=ENVIRONMENT, text=True, capture_output=True, check=False)


def texts(chart: object, key: str) -> list[str]:
    """All texts under a key, anywhere in a chart."""
    parts = chart.values() if isinstance(chart, dict) else chart if isinstance(chart, list) else ()
    found = [chart[key]] if isinstance(chart, dict) and isinstance(chart.get(key), str) else []
    return found + [text for part in parts for text in texts(part, key)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with a remote for Git and one for DVC, and a dataset that nothing tracks yet in data/ham10000."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    shutil.copytree(ROOT / "data/sample", clone.folder / "data/ham10000")
    git, storage = (tmp_path_factory.mktemp(name) for name in ("git", "storage"))
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", git], check=True)
    clone._git("remote", "add", "origin", str(git))
    clone.dvc("remote", "add", "--default", "storage", str(storage))
    clone.commit("a remote")
    return clone


@pytest.fixture(scope="module")
def swept(clone):
    """That clone after a sweep of one experiment, `tracked`, on the dataset that DVC tracks by then."""
    options = [*overrides(data__data_dir="data/ham10000"), "--name", "tracked"]
    stopped = sweep(clone, *options)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("error: data.data_dir is 'data/ham10000', which nothing tracks")
    assert "Traceback" not in stopped.stderr
    # The commands that it names.
    assert stopped.stderr.rstrip().endswith("dvc add data/ham10000 && git add data/ham10000.dvc")
    clone.dvc("add", "data/ham10000")
    clone._git("add", "data/ham10000.dvc")
    clone.commit("the dataset")
    done = sweep(clone, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracked: success" in done.stdout
    return clone


def test_the_tests_of_a_group_share_a_process(request):
    if hasattr(request.config, "workerinput"):  # where there is more than one
        assert request.node.nodeid.endswith("@experiments")


def test_a_queued_experiment_finds_a_dataset_that_dvc_tracks(swept):
    [baseline] = [entry for entry in json.loads(swept.dvc("exp", "show", "--json")) if entry["rev"] != "workspace"]
    [experiment] = baseline["experiments"]
    assert experiment["name"] == "tracked"
    data = experiment["revs"][0]["data"]
    assert data["params"]["params.yaml"]["data"]["data"]["data_dir"] == "data/ham10000"
    assert 0 < data["metrics"]["metrics/evaluation.json"]["data"]["auroc"] < 1
    # The workspace is as it was: experiments of the queue run elsewhere.
    assert swept.changes() == ""


@pytest.mark.slow
def test_so_does_one_in_a_temporary_folder(swept):
    swept.dvc(
        "exp", "run", "--temp", "--name", "temporary", *overrides(data__data_dir="data/ham10000", training__seed="1")
    )
    assert {"tracked", "temporary"} <= set(swept.dvc("exp", "list", "--name-only").split())
    assert swept.changes() == ""


def test_an_experiment_can_be_applied_saved_and_pushed(swept):
    swept.dvc("exp", "apply", "tracked")
    swept.dvc("exp", "save", "--name", "saved")
    swept.dvc("exp", "push", "origin", "tracked", "saved")
    assert swept._git("ls-remote", "origin", "refs/exps/*").count("refs/exps/") == 2
    remote = swept.dvc("exp", "list", "--name-only", "origin")
    assert {"tracked", "saved"} <= set(remote.split())


def test_another_repository_gets_the_model_by_its_name(swept, tmp_path):
    swept.commit("the experiment")
    swept.dvc("push")
    # DVC looks for a version, which is a tag that GTO, one of its dependencies, gives and reads.
    gto = [Path(sys.executable).parent / "gto", "register", "classifier", "--version", "v1.0.0"]
    subprocess.run(gto, cwd=swept.folder, env=ENVIRONMENT, check=True, capture_output=True)
    assert swept._git("tag").split() == ["classifier@v1.0.0"]
    swept._git("push", "--quiet", "origin", "main", "classifier@v1.0.0")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    url = swept._git("remote", "get-url", "origin").strip()
    command = [sys.executable, "-m", "dvc", "artifacts", "get", url, "classifier", "--out", "model.safetensors"]
    got = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert got.returncode == 0, got.stderr
    model = (tmp_path / "model.safetensors").read_bytes()
    assert model == (swept.folder / "models/model.safetensors").read_bytes()


def test_plots_draw_without_a_network(swept, browser):
    swept.dvc("plots", "show")
    visit = test_report_in_browser.Visit(browser, swept.folder / "dvc_plots/index.html", {"width": 1280, "height": 900})
    try:
        assert [url for url in visit.requests if not url.startswith(("data:", "file:", "blob:"))] == []
        charts = "document.querySelectorAll('.vega-embed canvas, .vega-embed svg.marks').length"
        visit.page.wait_for_function(f"{charts} >= {CHARTS}")
        # Vega warns of entries of DVC's templates that mean nothing.
        assert [complaint for complaint in visit.complaints if not complaint.startswith("WARN ")] == []
    finally:
        visit.context.close()


def test_every_chart_has_a_title_and_axes(swept):
    charts = json.loads(swept.dvc("plots", "show", "--json"))["data"]
    drawn = {name: chart[0]["content"] for name, chart in charts.items() if chart and "content" in chart[0]}
    assert len(drawn) >= CHARTS - 1  # one is of the files of a training in this folder
    for name, chart in drawn.items():
        assert chart["title"]["text"] == name
        titles = set(texts(chart, "title"))
        [declared] = [entry[name] for entry in PLOTS if isinstance(entry, dict) and name in entry]
        assert {declared["x_label"], declared["y_label"]} <= titles
