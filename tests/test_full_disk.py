"""Every stage on a full disk: one line that names what could not be written, and nothing half-written."""

import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import evaluate, plot, prepare, split, train
from stages.files import CHECKPOINTS, write_array
from stages.launch import run
from stages.training.module import TrainingModule

STAGES = {"prepare": prepare, "split": split, "train": train, "evaluate": evaluate, "plot": plot}
# The largest file that the stage may write, and what it is stopped at: its largest, and an earlier one.
LIMITS = [
    ("prepare", 4_000, "data/prepared"),
    ("split", 500, "data/split.csv"),
    ("split", 1_500, "data/split.json"),
    ("train", 60, "data/training"),
    ("train", 20_000, "models/model.safetensors"),
    ("evaluate", 500, "data/predictions.csv"),
    ("evaluate", 10_000, "data/details.json"),
    ("plot", 500, "plots/tables"),
    ("plot", 50_000, "plots/pictures"),
]
SMALL, PAGE = 32 * 2**20, 4096  # bytes of a file system, and of its smallest part
# Files that say how long something took.
MEASURED = ("metrics/environment.json",)


@contextmanager
def largest_file(size):
    """While the block runs, the system refuses to let a file grow above a size, as it does where the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def outputs(bytes_below):
    """A function that gives the bytes of all that stages wrote in the working directory."""

    def read():
        return {
            name: content
            for name, content in bytes_below(Path()).items()
            if not name.startswith((CHECKPOINTS.name, "dataset")) and name not in MEASURED
        }

    return read


@pytest.fixture
def ready(workspace, written_dataset, params, quick_pictures):
    """A function that makes the working directory one in which a stage can run."""

    def make(stage):
        if stage == "prepare":
            params({"data.data_dir": str(written_dataset.folder), "data.image_size": 16})
        if stage == "plot":
            evaluate.main()

    return make


def stopped(stage):
    """Run a stage, which must stop; what it says."""
    with pytest.raises(SystemExit) as end:
        run(STAGES[stage].main)
    return end.value.code


def assert_nothing_is_half_written(before, after, whole):
    for name, content in after.items():
        assert content in (before.get(name), whole.get(name)), name


@pytest.mark.parametrize(("stage", "size", "named"), LIMITS)
def test_a_stage_without_space_names_the_file_and_leaves_the_rest_whole(ready, outputs, stage, size, named):
    ready(stage)
    before = outputs()
    with largest_file(size):
        message = stopped(stage)
    full = f"{named} cannot be written: the disk is full (File too large)"
    assert message == f"error: {full}; make space and run the same command again"
    after = outputs()
    # DVCLive's files grow while training runs: those of before go at its start.
    assert stage == "train" or after.keys() >= before.keys()
    run(STAGES[stage].main)
    assert_nothing_is_half_written(before, after, outputs())


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of some bytes, on which the working directory's files are copied."""
    mounted = []

    def mount(size):
        folder = tmp_path / "small"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], text=True, capture_output=True
        )
        if done.returncode:
            pytest.skip(f"needs to mount a file system of its own: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_disk_that_is_full_goes_on_when_there_is_space(ready, outputs, small_disk, monkeypatch, stage):
    ready(stage)
    disk = small_disk(SMALL)
    for name in ("params.yaml", "data", "metrics", "models", "plots"):
        if Path(name).exists():
            (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, disk / name)
    monkeypatch.chdir(disk)
    before = outputs()
    with Path("filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(PAGE)):
            pass
    message = stopped(stage)
    assert re.match(r"error: (data|metrics|models|plots)\S* cannot be written: the disk is full", message), message
    assert "No space left on device" in message
    Path("filler").unlink()
    after = outputs()
    run(STAGES[stage].main)
    assert_nothing_is_half_written(before, after, outputs())


def test_training_goes_on_without_a_checkpoint(workspace, outputs, capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("checkpoint_minutes: 0.5", "checkpoint_minutes: 1e-9"))
    train.main()
    whole = outputs()
    weights = Path("models/model.safetensors").stat().st_size
    capsys.readouterr()
    with largest_file(weights):
        train.main()
    printed = capsys.readouterr().out
    warning = f"warning: no checkpoint: {CHECKPOINTS}/\\w+/last.ckpt cannot be written: the disk is full"
    assert len(re.findall(warning, printed)) == 15  # batches
    assert outputs() == whole
    assert list(CHECKPOINTS.iterdir()) == []


def test_a_training_that_is_terminated_does_not_promise_a_checkpoint_that_is_not_there(workspace, monkeypatch):
    losses = TrainingModule.losses
    monkeypatch.setattr(TrainingModule, "losses", lambda *batch: os.kill(os.getpid(), signal.SIGTERM) or losses(*batch))
    with largest_file(Path("models/model.safetensors").stat().st_size):
        message = stopped("train")
    assert message.startswith("error: terminated; there was no space for a checkpoint")
    assert not list(CHECKPOINTS.rglob("*.ckpt*"))


def test_an_array_without_space_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with largest_file(1000), pytest.raises(SystemExit, match=r"a\.npy cannot be written"):
        run(lambda: write_array(Path("a.npy"), np.zeros(9999)))
    assert list(tmp_path.iterdir()) == []
