"""What `dvc repro` gives after a stage, or `dvc` itself, was killed; `benchmarks.kills` does it a hundred times."""

import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from benchmarks.sweep import set_parameters
from tests.clone import QUICK, Clone

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]
OUTPUTS = (
    "data/prepared/",
    "data/augmented.npy",
    "data/split",
    "data/training/",
    "models/model",
)


def read_until(process, text):
    """Read what a process prints until a line has a text."""
    for line in iter(process.stdout.readline, ""):
        if text in line:
            return
    pytest.fail(f"ended without {text!r}: {process.stderr.read()}")


@contextmanager
def paused_in_training(dvc):
    """Let the stage below a `dvc repro` begin to train, and stop it meanwhile."""
    read_until(dvc, "epoch 2/")
    (training,) = (child for child in psutil.Process(dvc.pid).children(recursive=True) if not child.children())
    training.suspend()
    try:
        yield
    finally:
        training.resume()


def contents(clone):
    """The bytes of the outputs, and the names of all half-written files."""
    files = {path.relative_to(clone.folder).as_posix(): path for path in clone.folder.rglob("*") if path.is_file()}
    outputs = {name: path.read_bytes() for name, path in files.items() if name.startswith(OUTPUTS)}
    return outputs, list(clone.folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which a `dvc repro` trains, and what another one said meanwhile."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    quick = {"max_epochs": "4", "early_stopping_patience": "100", "checkpoint_minutes": "0.001"}
    set_parameters(clone.folder, QUICK | {f"training.{name}": value for name, value in quick.items()})
    clone.running = clone.start("repro", "train")
    with paused_in_training(clone.running):
        clone.refused = clone.fails("repro", "train")
    return clone


@pytest.fixture(scope="module")
def whole(clone):
    """What the first `dvc repro`, which nobody kills, gives."""
    _, errors = clone.running.communicate()
    assert clone.running.returncode == 0, errors
    return contents(clone)


def test_a_second_repro_stops_and_says_which_process_it_would_disturb(clone):
    assert "is busy, it is being blocked by" in clone.refused
    assert f"(PID {clone.running.pid})" in clone.refused
    assert "Traceback" not in clone.refused


def test_whatever_dvc_left_behind_the_next_repro_ends_with_the_same_files(clone, whole):
    dvc = clone.start("repro", "train", "--force")
    with paused_in_training(dvc):
        dvc.kill()
        dvc.wait()  # DVC takes one that was not waited for, a zombie, for one that still runs
        again = clone.start("repro", "train", "--force")
        read_until(again, "another stage is running in this folder")
    printed, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "resuming from" in printed
    dvc.communicate()
    assert contents(clone) == whole


def test_prepare_after_a_kill_leaves_no_trace_of_it(clone, whole):
    prepare = subprocess.Popen([sys.executable, "-m", "stages.prepare"], cwd=clone.folder, env=clone.environment)
    while not list(clone.folder.glob("data/.prepared.partial/pixels-*.npy")):
        assert prepare.poll() is None
        time.sleep(0.001)
    prepare.kill()
    prepare.wait()
    clone.dvc("repro", "prepare", "--force")
    assert contents(clone) == whole
