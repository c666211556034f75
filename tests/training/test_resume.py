"""A training that is stopped anywhere goes on to the bytes of one that was not.

Anywhere: at every call of a function of `stages.training`, be it in a step, a validation, between them, in a checkpoint
being saved, in the first epoch, the last, or the one in which early stopping decides. All that a kill leaves is what
lies on the disk: training goes on from each state of the disk that one of the calls saw. SIGTERM is only noted, for the
end of the batch to stop at: it is sent at one call of each batch; with STOP_EVERYWHERE=1 in the environment, at all.
"""

import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from stages import training
from stages.errors import TerminatedError
from stages.files import CHECKPOINTS, MODELS, TRAINING_METRICS
from stages.training import ensemble, module, step
from stages.training.fit import train_model

PACKAGE = str(Path(training.__file__).parent)
SHORT = {
    "training.batch_size": 12,
    "training.max_epochs": 2,
    "training.checkpoint_minutes": 1e-9,
    "training.log_every_n_steps": 2,
    "model.dropout_rate": 0.5,
}
CASES = {
    "an epoch's end": {},
    "checkpoints that are seldom due": {"training.checkpoint_minutes": 60.0},
    "validations within an epoch": {"training.val_check_interval": 2},
    "early stopping": {
        "training.max_epochs": 4,
        "training.early_stopping_patience": 1,
        "training.learning_rate": 0.05,
        "training.optimizer": "sgd",
    },
    "accumulation, average and schedule": {
        "training.batch_size": 4,
        "training.accumulate_grad_batches": 3,
        "training.ema_decay": 0.9,
        "training.learning_rate": 0.05,
        "training.val_check_interval": 1,
        "training.lr_scheduler": "reduce_on_plateau",
        "training.lr_plateau_patience": 0,
        "training.frozen_epochs": 1,
        "training.class_balance": "sampling",
        "data.mixup": 0.3,
        "model.metadata": "fused",
    },
    "16 bits": {"training.precision": 16},
    "an ensemble": {"model.ensemble": 2, "training.max_epochs": 1},
}
ALWAYS = "accumulation, average and schedule"
EACH_CASE = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == ALWAYS else [pytest.mark.slow]) for case in CASES]
)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Several validation batches, as HAM10000 has; and the loss scaling of 16 bits, in which a CPU computes too slowly.
    monkeypatch.setitem(module.PRECISIONS, 16, None)
    # So small a scale, in each step another, that it decides the last bits of the gradients.
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**-126, growth_factor=16.0, growth_interval=1)
    monkeypatch.setattr(step.torch.amp, "GradScaler", scaler)
    monkeypatch.setattr(ensemble, "VALIDATION_BATCH", 6)
    monkeypatch.setattr(ensemble, "choose_precision", lambda config, _: 16 if config.training.precision == 16 else 32)
    # Where training does not listen, SIGTERM ends the process, as a kill does: that is the other parameter.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@contextmanager
def at_every_call(happens):
    """Call `happens` with the number of each call of a function of training; yields their names, in order."""
    calls = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls.append(frame.f_code.co_qualname)
            happens(len(calls) - 1)

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


class Snapshots:
    """Copies of a training's folder: one of each state of its checkpoints that a call sees."""

    def __init__(self, folder):
        self.folder, self.states = folder, {}

    def __call__(self, _):
        files = [path for path in (self.folder / CHECKPOINTS).rglob("*") if path.is_file()]
        with suppress(FileNotFoundError, shutil.Error):  # a thread has just moved it: the next call sees the new state
            state = frozenset((path, path.name.endswith(".partial") or path.stat().st_mtime_ns) for path in files)
            if state not in self.states:
                copy = self.folder.with_name(f"killed {len(self.states)}")
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(self.folder, copy)
                self.states[state] = copy.name


def one_call_of_each_batch(calls):
    """Numbers of calls: of those between two places where training would stop, now an early one, now a late one."""
    if os.environ.get("STOP_EVERYWHERE"):
        return range(len(calls))
    ends = [0, *(number for number, name in enumerate(calls) if name == "TrainingLoop._checkpoint"), len(calls) - 1]
    return [start + (end - start) * (index % 4) // 4 for index, (start, end) in enumerate(pairwise(ends))]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(tiny, quick, tmp_path):
    """A function that trains into a folder of a name."""

    def run(name, changes):
        places = (tmp_path / name / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
        return train_model(quick(**SHORT | changes), *tiny, *places)

    return run


@pytest.fixture
def outputs(tmp_path, bytes_below):
    """A function that gives the bytes of a training's outputs."""
    return lambda name: {place: bytes_below(tmp_path / name / place) for place in (MODELS, TRAINING_METRICS)}


@EACH_CASE
def test_a_training_that_is_killed_anywhere_ends_in_the_same_bytes(train, outputs, tmp_path, case):
    (tmp_path / "whole").mkdir()
    snapshots = Snapshots(tmp_path / "whole")
    with at_every_call(snapshots):
        train("whole", CASES[case])
    expected = outputs("whole")
    for name in snapshots.states.values():
        train(name, CASES[case])
        assert outputs(name) == expected, name
    # One of each checkpoint, besides those that were half written.
    assert len(snapshots.states) > CASES[case].get("model.ensemble", 1)


@EACH_CASE
def test_a_training_that_is_terminated_anywhere_ends_in_the_same_bytes(train, outputs, case):
    with at_every_call(lambda _: None) as calls:
        train("whole", CASES[case])
    expected, stopped = outputs("whole"), 0
    for chosen in one_call_of_each_batch(calls):
        name = f"terminated {chosen}"
        with at_every_call(lambda number, chosen=chosen: number == chosen and terminate()):
            try:
                train(name, CASES[case])
            except TerminatedError:
                stopped += 1
        train(name, CASES[case])
        assert outputs(name) == expected, f"{calls[chosen]}, call {chosen} of {len(calls)}"
    assert stopped >= 2
