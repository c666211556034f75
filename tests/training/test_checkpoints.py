"""Which training resumes from which checkpoint. That it ends in the same bytes is in test_resume.py."""

import os
import shutil
import signal
import sys
import time

import pytest
import torch

from stages import train as train_stage
from stages.errors import InputError
from stages.files import CHECKPOINTS, MODELS, TRAINING_METRICS
from stages.launch import run
from stages.training.checkpoints import (
    CHECKPOINT,
    Checkpoints,
    checkpoint_folder,
    fingerprint,
    loaded_code,
    prune,
)
from stages.training.fit import train_model
from stages.training.module import TrainingModule


class Killed(BaseException):
    """What a process does not survive."""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def train(tiny, quick, tmp_path, monkeypatch):
    """A function that trains into a folder of a name, with checkpoints at every batch; killed in a step, if asked."""

    def run(name, killed_in=None, **changes):
        losses, seen = TrainingModule.losses, []

        def losses_or_death(module, network, batch):
            seen.append(batch)
            if len(seen) == killed_in:
                raise Killed
            return losses(module, network, batch)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "losses", losses_or_death)
            places = (tmp_path / name / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
            train_model(quick(**{"training.checkpoint_minutes": 1e-9} | changes), *tiny, *places)
        return len(seen)

    return run


@pytest.mark.parametrize(
    "change",
    [
        {"training.seed": 1},
        {"training.resume": False},
        {"model.dropout_rate": 0.3},
        {"model.ensemble": 2},
        {"runtime.cpu_threads": 2},
    ],
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
    train("killed", **{"training.checkpoint_minutes": 3.0})
    assert "epoch 2, batch 2" in capsys.readouterr().out


def test_a_training_that_was_left_behind_is_not_done_again(train, monkeypatch):
    """Where `dvc` was killed, the stage goes on, and the next `dvc repro` wants its result."""
    parents = iter([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", lambda: next(parents))
        assert train("left") == 15
    assert train("left") == 0


def test_data_and_code_are_part_of_the_fingerprint(quick, tmp_path):
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
    assert len(names) == 3


def test_the_code_of_the_stage_itself_is_part_of_the_fingerprint(monkeypatch):
    """`python -m stages.train` runs it under the name `__main__`."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", train_stage.__file__, raising=False)
    monkeypatch.delitem(sys.modules, "stages.train")
    assert {"train.py", "checkpoints.py", "config.py"} <= {path.name for path in loaded_code()}


def test_a_training_that_ended_leaves_no_checkpoint(train, tmp_path):
    with pytest.raises(Killed):
        train("killed", 7)
    (folder,) = (tmp_path / "killed" / CHECKPOINTS).iterdir()
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    train("killed")
    assert list((tmp_path / "killed" / CHECKPOINTS).iterdir()) == []


def test_what_was_logged_after_the_checkpoint_is_logged_once(train, tmp_path, bytes_below):
    train("whole")
    with pytest.raises(Killed):
        train("killed", 12, **{"training.checkpoint_minutes": 60.0})
    folder = tmp_path / "killed" / TRAINING_METRICS
    curve = folder / "plots/metrics/train/loss.tsv"
    (curve.parent / "other.tsv").write_bytes(curve.read_bytes())
    train("killed")
    assert bytes_below(folder) == bytes_below(tmp_path / "whole" / TRAINING_METRICS)


def test_curves_that_are_deleted_meanwhile_cost_nothing(train, tmp_path, bytes_below, monkeypatch):
    """What a second `dvc repro` does to a stage that the first, which was killed, has left behind."""
    train("whole")
    folder = tmp_path / "left" / TRAINING_METRICS
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state: (save(self, state), shutil.rmtree(folder, ignore_errors=True))
    )
    parents = iter([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", lambda: next(parents))
        train("left")
    monkeypatch.setattr(Checkpoints, "save", save)
    train("left")
    assert bytes_below(folder) == bytes_below(tmp_path / "whole" / TRAINING_METRICS)


def test_of_trainings_that_did_not_end_the_latest_are_kept(tmp_path):
    for number in range(15):
        (tmp_path / f"{number:02d}").mkdir()
        os.utime(tmp_path / f"{number:02d}", (number, number))
    prune(tmp_path, finished=[tmp_path / "14"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02d}" for number in range(4, 14)]


def test_trainings_that_may_be_running_keep_their_checkpoints_however_many(tmp_path):
    now, hour = time.time(), 3600
    for number in range(30):
        (tmp_path / f"{number:02d}").mkdir()
        written_at = now - (number if number < 20 else 2 * number) * hour
        os.utime(tmp_path / f"{number:02d}", (written_at, written_at))
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02d}" for number in range(20)]


def test_a_checkpoint_holds_no_code_and_a_damaged_one_is_named(train, tmp_path):
    with pytest.raises(Killed):
        train("killed", 12)
    (path,) = (tmp_path / "killed" / CHECKPOINTS).glob(f"*/{CHECKPOINT}")
    assert torch.load(path, weights_only=True)["progress"]["epoch"] == 2
    for content in (b"no archive", path.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{CHECKPOINT} is not a checkpoint .*; delete it, or set training"):
            train("killed")
    torch.save({"other": 1}, path)
    with pytest.raises(InputError, match=r"is not a checkpoint \(it holds something else\)"):
        train("killed")


def test_a_stage_that_is_interrupted_says_what_is_kept_and_goes_on_when_it_is_run_again(workspace, monkeypatch, capsys):
    """Where it is a shell's background job, too, which ignores SIGINT until it asks for it."""
    losses = TrainingModule.losses

    def interrupt(*batch):
        os.kill(os.getpid(), signal.SIGINT)
        return losses(*batch)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "losses", interrupt)
            with pytest.raises(SystemExit, match="130"):
                run(train_stage.main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; " in "".join(capsys.readouterr())
    train_stage.main()
    assert "resuming from" in capsys.readouterr().out


def test_a_folder_that_takes_no_checkpoints_is_told_before_training(train, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "file/below"))
    with pytest.raises(InputError, match=r"cannot be written in .*/file/below \(Not a directory\); CHECKPOINT_DIR"):
        train("a")


def test_checkpoints_lie_in_the_main_repository_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for named, expected in (("", CHECKPOINTS), ("scratch", "scratch"), (str(tmp_path / "disk"), "disk")):
        monkeypatch.setenv("CHECKPOINT_DIR", named)
        assert checkpoint_folder(CHECKPOINTS) == tmp_path / expected
