"""A training that was stopped goes on to the bits of one that was not."""

import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dvclive.plots.metric import Metric

from stages.classifier import checkpoints
from stages.classifier.checkpoints import CHECKPOINT, fingerprint, prune
from stages.classifier.module import SkinLesionClassifier
from stages.classifier.packing import unpack
from stages.dataset.loaders import SplitImages
from stages.errors import InputError
from stages.files import CHECKPOINTS, MODELS, TRAINING_METRICS
from stages.train import train_model

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "model.dropout_rate": 0.5,
    "data.mixup": 0.3,
    "training.ema_decay": 0.9,
    "training.val_check_interval": 0.4,
    "training.lr_scheduler": "reduce_on_plateau",
    "training.lr_plateau_patience": 0,
    "training.monitor": "val_calibrated_loss",
    "training.log_every_n_steps": 2,
    "training.class_balance": "sampling",
    "training.frozen_epochs": 1,
    "training.accumulate_grad_batches": 2,
    "training.batch_size": 4,
}
EVERY_STEP = 1e-9  # minutes

pytestmark = pytest.mark.usefixtures("checkpoint_behind_every_epoch")


class Killed(BaseException):
    """What a process does not survive."""


def kill():
    raise Killed


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def train(tiny, quick, tmp_path, monkeypatch):
    """A function that trains into a folder of a name; before a step, if one is given, something happens to it."""

    def run(name, before=None, happens=kill, **changes):
        folder = tmp_path / name
        step = SkinLesionClassifier.training_step

        def disturbed_step(module, batch, batch_idx):
            if module.global_step == before:
                happens()
            return step(module, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(SkinLesionClassifier, "training_step", disturbed_step)
            places = (folder / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
            return train_model(quick(**changes), *tiny, *places)

    return run


@pytest.fixture
def outputs(tmp_path, bytes_below):
    """A function that gives the bytes of a training's outputs."""
    return lambda name: {place: bytes_below(tmp_path / name / place) for place in (MODELS, TRAINING_METRICS)}


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("minutes", [EVERY_STEP, 60], ids=["every step", "every epoch"])
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(train, outputs, capsys, changes, minutes):
    changes = changes | {"training.checkpoint_minutes": minutes}
    train("whole", **changes)
    for step in (7, 12):  # 5 steps an epoch: in the second epoch, and in the third
        with pytest.raises(Killed):
            train("killed", step, **changes)
    capsys.readouterr()
    train("killed", **changes)
    assert "resuming from" in capsys.readouterr().out
    assert outputs("killed") == outputs("whole")


def test_the_best_epoch_before_the_kill_is_still_the_best(train, outputs, monkeypatch):
    """Three validation images have wrong labels: val_loss is lowest in the first epoch, the monitored one later."""

    def contradictory(store, name, *rest):
        images = SplitImages(store, name, *rest)
        if name == "val":
            images.labels[:3] = 1 - images.labels[:3]
        return images

    monkeypatch.setattr("stages.train.SplitImages", contradictory)
    changes = {"training.monitor": "val_calibrated_loss", "training.lr_scheduler": "step"}
    changes |= {"training.seed": 1, "training.learning_rate": 0.001}
    assert train("whole", **changes).description.epochs == [1]
    with pytest.raises(Killed):
        train("killed", 12, **changes)
    train("killed", **changes)
    assert outputs("killed") == outputs("whole")


def test_a_training_killed_in_its_first_epoch_goes_on_where_a_checkpoint_was_due(train, outputs, capsys):
    changes = {"training.checkpoint_minutes": EVERY_STEP}
    train("whole", **changes)
    with pytest.raises(Killed):
        train("killed", 3, **changes)
    train("killed", **changes)
    assert "epoch 1, batch 4" in capsys.readouterr().out
    assert outputs("killed") == outputs("whole")


@pytest.mark.parametrize(("seconds", "expected"), [(3, [2, 4]), (9, [1, 2, 3, 4]), (0.1, [])])
def test_epochs_of_seconds_are_not_saved_each(train, monkeypatch, seconds, expected):
    """What packing costs on a GPU is much for an epoch of a second."""
    epoch, saved = 0, []
    start, save = SkinLesionClassifier.on_train_epoch_start, checkpoints.Checkpoints.save

    def start_counting(module):
        nonlocal epoch
        epoch = module.current_epoch + 1
        start(module)

    def save_noting(self, trainer, module, at, batch, later=False):
        saved.append(at)
        save(self, trainer, module, at, batch, later)

    monkeypatch.setattr(checkpoints, "EPOCH_SECONDS", 5.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: seconds * epoch, time=time.time))
    monkeypatch.setattr(SkinLesionClassifier, "on_train_epoch_start", start_counting)
    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_noting)
    train("short", **{"training.max_epochs": 5})
    assert saved == expected


@pytest.mark.parametrize("every", [7, 14])
def test_what_is_logged_for_the_last_time_before_a_kill_stays_in_the_summary(train, outputs, every):
    changes = {"training.checkpoint_minutes": EVERY_STEP, "training.log_every_n_steps": every}
    train("whole", **changes)
    with pytest.raises(Killed):
        train("killed", 14, **changes)  # the last step; the loss of the one before it was logged
    train("killed", **changes)
    assert outputs("killed") == outputs("whole")


def test_what_was_logged_behind_the_checkpoint_is_logged_once(train, outputs, tmp_path):
    train("whole")
    with pytest.raises(Killed):
        train("killed", 7)
    logged = tmp_path / "killed" / TRAINING_METRICS / "plots/metrics/train/loss.tsv"
    (logged.parent / "other.tsv").write_bytes(logged.read_bytes())
    train("killed")
    assert outputs("killed") == outputs("whole")


@pytest.mark.parametrize("deleted_before", [2, 7])
@pytest.mark.parametrize("minutes", [EVERY_STEP, 60], ids=["every step", "every epoch"])
def test_a_training_whose_curves_are_deleted_leaves_the_rest_to_the_next(
    train, outputs, tmp_path, deleted_before, minutes
):
    """What a second `dvc repro` does to a stage that the first, which was killed, has left behind."""
    changes = {"training.checkpoint_minutes": minutes}
    train("whole", **changes)
    curves = tmp_path / "left" / TRAINING_METRICS
    with pytest.raises(InputError, match=r"metrics/training was deleted .* goes on from the last checkpoint"):
        train("left", deleted_before, lambda: shutil.rmtree(curves), **changes)
    train("left", **changes)
    assert outputs("left") == outputs("whole")


@pytest.mark.parametrize("opened", [1, 15, 30])
def test_curves_that_are_deleted_while_one_is_opened_are_no_error_of_the_program(
    train, outputs, tmp_path, monkeypatch, opened
):
    train("whole")
    path, seen = Metric.output_path.fget, iter(range(1, 1000))

    def path_deleted_at_once(curve):
        found = path(curve)
        if next(seen) >= opened:
            shutil.rmtree(tmp_path / "left" / TRAINING_METRICS)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Metric, "output_path", property(path_deleted_at_once))
        with pytest.raises(InputError, match=r"metrics/training was deleted .* goes on from the last checkpoint"):
            train("left")
    train("left")
    assert outputs("left") == outputs("whole")


@pytest.mark.parametrize("resumed", [False, True])
def test_no_checkpoint_takes_curves_of_which_some_are_deleted_already(train, outputs, tmp_path, resumed):
    """A folder is deleted file by file, and DVCLive begins a new file where it finds none."""
    changes = {"training.checkpoint_minutes": EVERY_STEP}
    train("whole", **changes)
    if resumed:
        with pytest.raises(Killed):
            train("left", 8, **changes)
    curve = tmp_path / "left" / TRAINING_METRICS / "plots/metrics/val/loss.tsv"
    with pytest.raises(InputError, match=r"metrics/training was deleted"):
        train("left", 8, curve.unlink, **changes)
    train("left", **changes)
    assert outputs("left") == outputs("whole")


def test_a_training_that_was_left_behind_is_not_done_again(train, outputs, capsys, monkeypatch):
    train("whole")
    parents = iter([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", lambda: next(parents))
        train("left")
    capsys.readouterr()
    train("left")
    assert "epoch 3, batch 1" in capsys.readouterr().out  # the last one
    assert outputs("left") == outputs("whole")


def test_an_ensemble_goes_on_with_the_network_that_was_killed(train, outputs, capsys, monkeypatch):
    changes = {"model.ensemble": 3, "model.dropout_rate": 0.5}
    train("whole", **changes)
    trained = SkinLesionClassifier.on_train_start

    def killed_in(number):
        """Die at the start of the second epoch of the network of this number."""
        seen = iter(range(10))

        def start(module):
            trained(module)
            if next(seen) == number:
                step = module.training_step

                def step_or_die(batch, batch_idx):
                    if module.global_step == 7:
                        raise Killed
                    return step(batch, batch_idx)

                module.training_step = step_or_die

        return start

    with monkeypatch.context() as patch:
        patch.setattr(SkinLesionClassifier, "on_train_start", killed_in(1))
        with pytest.raises(Killed):
            train("killed", **changes)
    capsys.readouterr()
    train("killed", **changes)
    # Of the first network only the last epoch is trained again.
    assert re.findall(r"epoch (\d), batch 1", capsys.readouterr().out) == ["3", "2"]
    assert outputs("killed") == outputs("whole")


@pytest.mark.parametrize(
    "change",
    [{"training.seed": 1}, {"training.resume": False}, {"model.dropout_rate": 0.3}, {"model.ensemble": 2}],
    ids=str,
)
def test_another_training_never_goes_on_from_it(train, capsys, change):
    with pytest.raises(Killed):
        train("killed", 7)
    train("killed", **change)
    assert "resuming" not in capsys.readouterr().out


def test_a_parameter_without_effect_does_not_stop_the_resumption(train, capsys):
    with pytest.raises(Killed):
        train("killed", 7)
    train("killed", **{"training.checkpoint_minutes": 3})
    assert "resuming" in capsys.readouterr().out


def test_data_and_code_are_part_of_the_fingerprint(quick, tmp_path, monkeypatch):
    folder, table = tmp_path / "prepared", tmp_path / "split.csv"
    folder.mkdir()
    (folder / "pixels").write_bytes(b"1")
    table.write_text("a")
    names = {fingerprint(quick(), (folder, table))}
    assert names == {fingerprint(quick(), (folder, table))}
    table.write_text("b")
    names.add(fingerprint(quick(), (folder, table)))
    (folder / "pixels").write_bytes(b"2")
    names.add(fingerprint(quick(), (folder, table)))
    monkeypatch.setattr(checkpoints, "sha256_of", lambda path: "other code" if path.suffix == ".py" else "")
    names.add(fingerprint(quick(), (folder, table)))
    assert len(names) == 4


def test_a_training_that_ended_leaves_no_checkpoint(train, tmp_path):
    with pytest.raises(Killed):
        train("killed", 7)
    (folder,) = (tmp_path / "killed" / CHECKPOINTS).iterdir()
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    train("killed")
    assert list((tmp_path / "killed" / CHECKPOINTS).iterdir()) == []


def test_of_trainings_that_did_not_end_the_latest_are_kept(tmp_path):
    for number in range(15):
        (tmp_path / f"{number:02d}").mkdir()
        os.utime(tmp_path / f"{number:02d}", (number, number))
    prune(tmp_path, finished=tmp_path / "14")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02d}" for number in range(4, 14)]


def test_trainings_that_may_be_running_keep_their_checkpoints_however_many(tmp_path):
    now, hour = time.time(), 3600
    for number in range(30):
        (tmp_path / f"{number:02d}").mkdir()
        written_at = now - (number if number < 20 else 2 * number) * hour
        os.utime(tmp_path / f"{number:02d}", (written_at, written_at))
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02d}" for number in range(20)]


def test_a_checkpoint_that_another_training_deletes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([tmp_path / "gone"]))
    prune(tmp_path)


def test_a_checkpoint_holds_no_code(train, tmp_path):
    with pytest.raises(Killed):
        train("killed", 12, **EVERYTHING)
    (path,) = (tmp_path / "killed" / CHECKPOINTS).glob(f"*/{CHECKPOINT}")
    assert unpack(torch.load(path, weights_only=True))["epoch"] == 2


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_that_gets_a_signal_goes_on_when_it_is_run_again(workspace, interrupted, sent):
    """The process that `dvc repro` starts; a queued experiment would run in a folder of its own."""
    params = Path("params.yaml").read_text()
    params = params.replace("max_epochs: 3", "max_epochs: 12")
    Path("params.yaml").write_text(params.replace("checkpoint_minutes: 0.5", "checkpoint_minutes: 0.0001"))
    ended, rest, output = interrupted("epoch 5/12", sent)
    assert ended == (1 if sent == signal.SIGTERM else -signal.SIGKILL)
    if sent == signal.SIGTERM:
        assert "error: terminated; " in rest
    assert "Traceback" not in rest
    assert "resuming from" in output
