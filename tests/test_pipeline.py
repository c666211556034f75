"""The pipeline through DVC, as a user runs it in a fresh clone with the committed parameters."""

import hashlib

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.arithmetic import has_avx2
from tests.clone import ROOT, Clone
from tests.figures.findings import DRAWN

PLOTS = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
pytestmark = pytest.mark.xdist_group("pipeline")


@pytest.fixture(scope="module")
def clone(ran, tmp_path_factory):
    """A copy of the clone in which `dvc repro` has run."""
    return Clone(tmp_path_factory.mktemp("pipeline"), copied=ran)


def test_the_sample_can_be_learnt_and_is_not_trivial(clone):
    assert 0.75 < clone.json("metrics/evaluation.json")["auroc"] < 0.98
    assert clone.json("models/model.json")["synthetic"], "whoever predicts with it is told"


def test_the_committed_lock_file_is_of_the_committed_code_and_parameters(ran):
    # In a fresh clone the data is still missing ("deleted"); nothing that Git has may differ ("modified").
    assert "modified" not in (ran.parent / "status.txt").read_text()


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
    assert f"| AUROC | {auroc}\N{NO-BREAK SPACE}(" in card.read_text(encoding="utf-8")
    # The weights that the card names are those that DVC keeps.
    weights = hashlib.md5((clone.folder / "models/model.safetensors").read_bytes()).hexdigest()
    assert weights in card.read_text(encoding="utf-8")
    assert weights in (clone.folder / "dvc.lock").read_text(encoding="utf-8")


def test_a_second_repro_does_nothing(clone):
    assert "Data and pipelines are up to date." in clone.dvc("repro")


@pytest.mark.skipif(not has_avx2(), reason="the committed bytes need AVX2 instructions")
def test_git_has_no_changes_afterwards(clone):
    assert not clone.changes()


@pytest.mark.parametrize(
    ("file", "old", "new", "runs"),
    [
        # And plot, which writes the model card: it lists the parameters.
        ("params.yaml", "test_fold: 0 ", "test_fold: 2 ", ["plot", "split"]),
        ("params.yaml", "learning_rate: 0.003 ", "learning_rate: 0.1 ", ["plot", "train"]),
        ("params.yaml", "augment: true ", "augment: false ", ["plot", "train"]),
        ("params.yaml", "batch_size: 64 ", "batch_size: 65 ", ["evaluate", "plot"]),
        ("params.yaml", "num_workers: null ", "num_workers: 1 ", []),
        ("stages/figures/performance.py", "import", "# edited\nimport", ["plot"]),
    ],
)
def test_a_change_runs_only_what_reads_it(clone, monkeypatch, file, old, new, runs):
    monkeypatch.chdir(clone.folder)
    path = clone.folder / file
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new, 1), encoding="utf-8")
    try:
        with Repo() as repo:
            assert sorted(repo.status()) == runs
    finally:
        path.write_text(before, encoding="utf-8")


def test_mistakes_stop_an_experiment_with_a_clear_line(tmp_path):
    # A clone of its own: what an earlier, failed experiment left in a workspace decides which stage runs first.
    output = Clone(tmp_path).fails("exp", "run", "-S", "training.learning_rate=fast", "-S", "data.augment=3")
    for message in (
        "training.learning_rate is 'fast'; it must be a valid number",
        "data.augment is 3; it must be true or",
    ):
        assert message in output
    assert "Traceback" not in output
