"""The pipeline through DVC, as a user runs it in a fresh clone with the committed parameters.

One clone serves all tests: each stage starts an interpreter that imports torch, and that is what costs.
"""

import hashlib
import shutil

import pytest
from ruamel.yaml import YAML

from stages.arithmetic import has_avx2
from tests.clone import ROOT, Clone, overrides
from tests.figures.findings import DRAWN

PLOTS = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
SEVEN = {
    "model__num_classes": "7",
    "training__learning_rate": "3e-5",
    "data__image_size": "32",
    "split__test_fold": "1",
}
pytestmark = pytest.mark.xdist_group("pipeline")


def stages_that_would_run(dry_run: str) -> list[str]:
    """The stages that a change touches itself; a dry run cannot know whether their outputs will change."""
    return [line.split("'")[1] for line in dry_run.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which `dvc repro` has run with the committed parameters.

    That it gives the committed bytes where nothing was computed before is what CI sees first. Here DVC takes what it
    has kept of that.
    """
    clone = Clone(tmp_path_factory.mktemp("clone"))
    clone.status_before = clone.dvc("status")
    if (ROOT / ".dvc/cache/files").is_dir():
        shutil.copytree(ROOT / ".dvc/cache/files", clone.folder / ".dvc/cache/files")
    clone.dvc("repro")
    return clone


def test_the_sample_can_be_learnt_and_is_not_trivial(clone):
    assert 0.75 < clone.json("metrics/evaluation.json")["auroc"] < 0.98
    assert clone.json("models/model.json")["synthetic"], "whoever predicts with it is told"


def test_the_committed_lock_file_is_of_the_committed_code_and_parameters(clone):
    # In a fresh clone the data is still missing ("deleted"); nothing that Git has may differ ("modified").
    assert "modified" not in clone.status_before


def test_every_picture_and_table_is_there(clone):
    for name in DRAWN:
        assert (clone.folder / f"plots/pictures/{name}.png").stat().st_size > 10_000
    drawn = {path for plot in PLOTS if isinstance(plot, dict) for entry in plot.values() for path in entry["y"]}
    tables = {path.relative_to(clone.folder).as_posix() for path in (clone.folder / "plots").glob("*.csv")}
    assert {path for path in drawn if path.startswith("plots/")} == tables
    for path in drawn:
        assert len((clone.folder / path).read_text().splitlines()) > 2


def test_report_and_model_card_tell_of_the_run(clone):
    auroc = f"{clone.json('metrics/evaluation.json')['auroc']:.3f}"
    report = (clone.folder / "plots/report.html").read_text(encoding="utf-8")
    assert report.count("<img ") == len(DRAWN)
    assert f"<b>{auroc}</b>" in report
    card = clone.folder / "models/README.md"
    assert f"| AUROC | {auroc} (" in card.read_text(encoding="utf-8")
    # The weights that the card names are those that DVC keeps.
    weights = hashlib.md5((clone.folder / "models/model.safetensors").read_bytes()).hexdigest()
    assert weights in card.read_text(encoding="utf-8")
    assert weights in (clone.folder / "dvc.lock").read_text(encoding="utf-8")


def test_a_second_repro_does_nothing(clone):
    assert "Data and pipelines are up to date." in clone.dvc("repro")
    assert "up to date" in clone.dvc("status")


@pytest.mark.skipif(not has_avx2(), reason="the committed bytes need AVX2 instructions")
def test_git_has_no_changes_afterwards(clone):
    assert not clone.changes()


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        # And plot, which writes the model card: it lists the parameters.
        ("split.test_fold: 0 -> 2", ["split", "plot"]),
        ("training.learning_rate: 0.003 -> 0.1", ["train", "plot"]),
        ("data.augment: true -> false", ["train", "plot"]),
        ("evaluation.batch_size: 64 -> 65", ["evaluate", "plot"]),
        ("runtime.num_workers: null -> 1", []),
    ],
)
def test_a_changed_parameter_runs_only_what_reads_it(clone, change, runs):
    name, values = change.split(": ")
    key, (old, new) = name.split(".")[1], values.split(" -> ")
    params = clone.folder / "params.yaml"
    before = params.read_text(encoding="utf-8")
    assert f"{key}: {old} " in before
    params.write_text(before.replace(f"{key}: {old} ", f"{key}: {new} "), encoding="utf-8")
    try:
        assert stages_that_would_run(clone.dvc("repro", "--dry")) == runs
    finally:
        params.write_text(before, encoding="utf-8")


def test_editing_a_figure_trains_nothing(clone):
    figure = clone.folder / "stages/figures/performance.py"
    before = figure.read_bytes()
    figure.write_bytes(before + b"# edited\n")
    try:
        assert stages_that_would_run(clone.dvc("repro", "--dry")) == ["plot"]
    finally:
        figure.write_bytes(before)


@pytest.fixture(scope="module")
def experiment(clone):
    """The same clone after an experiment with seven classes and a learning rate in exponent notation.

    So that all stages run, it is also of other images in other folds.
    """
    clone.commit("two classes")
    clone.dvc("exp", "run", "--name", "seven", *overrides(**SEVEN))
    return clone


def test_an_experiment_reads_the_exponent_that_dvc_writes(experiment):
    assert "learning_rate: 3e-05" in (experiment.folder / "params.yaml").read_text(encoding="utf-8")
    assert "macro_auroc" in experiment.json("metrics/evaluation.json")
    assert "seven" in experiment.dvc("exp", "show", "--md", "--drop", "stages/.*")


def test_an_experiment_keeps_the_comments_of_params_yaml(experiment):
    assert "# images per batch and device" in (experiment.folder / "params.yaml").read_text(encoding="utf-8")


def test_diffs_between_two_commits(experiment):
    experiment.commit("seven classes")
    metrics = experiment.dvc("metrics", "diff", "--md", "HEAD~1", "HEAD")
    assert "| metrics/evaluation.json" in metrics
    assert "balanced_accuracy" in metrics
    parameters = experiment.dvc("params", "diff", "--md", "HEAD~1", "HEAD")
    assert "training.learning_rate" in parameters
    assert "model.num_classes" in parameters
    assert "evaluation.json" in experiment.dvc("metrics", "show", "--md")
    experiment.dvc("plots", "diff", "HEAD~1", "HEAD", "--out", "dvc_plots")
    page = (experiment.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "HEAD~1" in page
    assert "1 − specificity" in page or r"1 \u2212 specificity" in page


def test_going_back_to_parameters_of_before_computes_nothing(experiment):
    """Of no stage; neither here nor in an experiment's own folder, as the queue and `sweep` have."""
    experiment.commit("seven classes, whatever else")
    params = experiment.folder / "params.yaml"
    seven = params.read_text(encoding="utf-8")
    params.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    stages = ["prepare", "split", "train", "evaluate", "plot"]
    printed = experiment.dvc("repro")
    assert [stage for stage in stages if f"Stage '{stage}' is cached" not in printed] == []
    for name in ("dvc.lock", "metrics/details.json", "models/README.md"):
        assert (experiment.folder / name).read_bytes() == (ROOT / name).read_bytes()
    experiment.commit("two classes again")
    printed = experiment.dvc("exp", "run", "--temp", *overrides(**SEVEN))
    assert [stage for stage in stages if f"Stage '{stage}' is cached" not in printed] == []
    params.write_text(seven, encoding="utf-8")
    experiment.dvc("repro")
    experiment.commit("seven classes again")


@pytest.mark.slow
def test_other_networks_and_other_layouts_of_the_data(experiment):
    """ResNet-18 from scratch on zipped images in another folder, after a change of the data's folder only."""
    sample, other = experiment.folder / "data/sample", experiment.folder / "data/ham10000"
    other.mkdir()
    shutil.copy(sample / "HAM10000_metadata.csv", other)
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        shutil.make_archive(str(other / part), "zip", sample / part)
    resnet = {"model__name": "resnet", "model__variant": "18", "model__num_classes": "2"}
    parameters = overrides(**SEVEN | resnet | {"data__data_dir": "data/ham10000"})
    output = experiment.dvc("exp", "run", "--name", "zipped", *parameters)
    # The same images in another layout are the same prepared data: the split does not run again.
    assert "Stage 'split' didn't change" in output
    assert experiment.json("models/model.json")["architecture"] == "resnet18"


@pytest.mark.parametrize(
    ("mistakes", "messages"),
    [
        (["training.learning_rat=1"], ["learning_rat"]),
        (["data.data_dir=data/nowhere"], ["data/nowhere"]),
        (
            ["training.learning_rate=fast", "data.augment=3"],
            ["training.learning_rate is 'fast'; it must be a valid number", "data.augment is 3; it must be true or"],
        ),
    ],
)
def test_a_mistake_stops_with_a_clear_line(tmp_path, mistakes, messages):
    # A clone of its own: what an earlier, failed experiment left in a workspace decides which stage runs first.
    output = Clone(tmp_path).fails("exp", "run", *(option for mistake in mistakes for option in ("-S", mistake)))
    assert [message for message in messages if message not in output] == [], output
    assert "Traceback" not in output
