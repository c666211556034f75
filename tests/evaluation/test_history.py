import json

import pytest
from dvclive import Live

from stages.errors import InputError
from stages.evaluation.history import read_history
from stages.files import TRAINING_METRICS


def test_the_history_is_what_dvclive_logged(trained):
    history = read_history(trained / TRAINING_METRICS)
    assert list(history.columns) == [
        "epoch",
        "train_loss",
        "val_loss",
        "val_calibrated_loss",
        "val_acc",
        "learning_rate",
    ]
    assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    # To the last bit, which pandas before 3.1 does not read by default.
    kept = json.loads((trained / TRAINING_METRICS / "metrics.json").read_text())
    row = history.set_index("epoch").loc[kept["epoch"]]
    assert row["val_loss"] == kept["val"]["loss"]
    assert row["val_calibrated_loss"] == kept["val"]["calibrated_loss"] == history["val_calibrated_loss"].min()
    assert row["val_acc"] == kept["val"]["acc"]
    assert history["learning_rate"].is_monotonic_decreasing
    assert history["val_acc"].between(0, 1).all()


@pytest.fixture
def logged(tmp_path):
    """A function that logs epochs of given val_loss and one constant curve each for the others."""

    def log(losses, without=()):
        with Live(str(tmp_path), dvcyaml=None, save_dvc_exp=False, report=None) as live:
            for loss in losses:
                curves = {"train/loss": 1.0, "val/loss": loss, "val/calibrated_loss": 0.4, "val/acc": 0.5}
                for name, value in (curves | {"learning_rate": 0.1}).items():
                    if name not in without:
                        live.log_metric(name, value)
                live.next_step()
        return tmp_path

    return log


def test_an_epoch_that_diverged_is_a_number_too(logged):
    history = read_history(logged([0.5, float("nan"), float("inf")]))
    assert history["val_loss"].idxmin() == 0
    assert list(history["val_loss"].isna()) == [False, True, False]


def test_of_several_validations_in_an_epoch_the_last_counts(tmp_path):
    with Live(str(tmp_path), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for step, values in {
            4: {"val/loss": 0.9, "val/calibrated_loss": 0.5, "val/acc": 0.1},
            9: {"val/loss": 0.8, "val/calibrated_loss": 0.4, "val/acc": 0.2, "train/loss": 1.0, "learning_rate": 0.1},
            14: {"val/loss": 0.7, "val/calibrated_loss": 0.3, "val/acc": 0.3},
            19: {"val/loss": 0.6, "val/calibrated_loss": 0.2, "val/acc": 0.4, "train/loss": 0.5, "learning_rate": 0.05},
        }.items():
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)
    history = read_history(tmp_path)
    assert list(history["val_loss"]) == [0.8, 0.6]
    assert list(history["val_calibrated_loss"]) == [0.4, 0.2]
    assert list(history["train_loss"]) == [1.0, 0.5]


@pytest.mark.parametrize("name", ["train/loss", "val/loss", "val/calibrated_loss", "val/acc", "learning_rate"])
def test_a_missing_curve_is_named(logged, name):
    folder = logged([0.5], without=[name])
    with pytest.raises(InputError, match=f"{name}.tsv.*`dvc repro`"):
        read_history(folder)


def test_a_curve_of_text_is_refused_with_its_name(logged):
    folder = logged([0.5])
    path = folder / "plots" / "metrics" / "val" / "loss.tsv"
    path.write_text("step\tloss\n0\tlow\n")
    with pytest.raises(InputError, match=r"loss\.tsv is not a curve of numbers"):
        read_history(folder)


def test_a_folder_without_curves_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}.*`dvc repro`"):
        read_history(tmp_path / "training")
