"""A training that is stopped anywhere goes on to the bytes of one that was not.

Anywhere: at the first and the last call of every function of `stages.training`, be it in a step, a validation, between
them, in a checkpoint being saved, in the first epoch, the last, or the one in which early stopping decides. With
STOP_EVERYWHERE=1 in the environment each case tries them all.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stages import training
from stages.errors import TerminatedError
from stages.files import CHECKPOINTS, MODELS, TRAINING_METRICS
from stages.train import train_model
from stages.training import ensemble, module

EACH = 7  # of the first and last calls of every function, a case tries one in so many
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
        "training.lr_scheduler": "reduce_on_plateau",
        "training.lr_plateau_patience": 0,
        "training.frozen_epochs": 1,
        "training.class_balance": "sampling",
        "data.mixup": 0.3,
    },
    "16 bits": {"training.precision": 16},
    "an ensemble": {"model.ensemble": 2, "training.max_epochs": 1},
}


class Killed(BaseException):
    """What a process does not survive."""


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Several validation batches, as HAM10000 has; and the loss scaling of 16 bits, in which a CPU computes too slowly.
    monkeypatch.setitem(module.PRECISIONS, 16, None)
    monkeypatch.setattr(ensemble, "VALIDATION_BATCH", 6)
    monkeypatch.setattr(ensemble, "choose_precision", lambda config, _: 16 if config.training.precision == 16 else 32)
    # Where training does not listen, SIGTERM ends the process, as a kill does: that is the other parameter.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@contextmanager
def happening_at(number, happens):
    """Let `happens` happen at the call of this number; yields a list of all calls."""
    calls = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls.append(frame.f_code.co_qualname)
            if len(calls) == number:
                happens()

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


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


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("happens", [kill, terminate])
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_stopped_anywhere_ends_in_the_same_bytes(train, outputs, case, happens):
    changes = CASES[case]
    with happening_at(0, happens) as calls:
        train("whole", changes)
    expected, first = outputs("whole"), {}
    for number, name in enumerate(calls, 1):
        first.setdefault(name, number)
    last = {name: number for number, name in enumerate(calls, 1)}
    numbers = sorted({*first.values(), *last.values()})
    if not os.environ.get("STOP_EVERYWHERE"):  # in seconds: each case has its share of the places
        numbers = numbers[list(CASES).index(case) % EACH :: EACH]
    stopped = 0
    for number in numbers:
        try:
            with happening_at(number, happens):
                train(f"stopped {number}", changes)
        except (Killed, TerminatedError):
            stopped += 1
        train(f"stopped {number}", changes)
        assert outputs(f"stopped {number}") == expected, f"{calls[number - 1]}, call {number} of {len(calls)}"
    assert stopped >= 3
