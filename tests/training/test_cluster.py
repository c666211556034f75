"""Two machines that share a folder, started by torchrun and by a real SLURM: they train to the bytes of one machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from stages.files import MODELS, PREPARED, SPLIT, TRAINING_METRICS
from tests.slurm import free_ports, tail, wait_for

ROOT = Path(__file__).parents[2]
# So many epochs that there is time to kill it. Dropout draws from the random numbers of each process.
SLOW = {
    "training.batch_size": 2,
    "training.max_epochs": 15,
    "training.early_stopping_patience": 15,
    "training.checkpoint_minutes": 0.0001,
    "model.dropout_rate": 0.5,
}
ON_CPUS = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
PIPELINE = """\
stages:
  train:
    cmd: python -m stages.train
    outs:
      - models/model.json
      - models/model.safetensors
      - data/training
"""

pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture(scope="module")
def start(tiny, quick, tmp_path_factory):
    """A function that gives a folder for a training by so many processes, as machines and processes of each."""

    def prepare(machines, processes):
        folder = tmp_path_factory.mktemp("training")
        shutil.copytree(tiny.folder, folder / PREPARED)
        shutil.copy(tiny.split, folder / SPLIT)
        config = quick(**SLOW, **{"training.devices": processes, "training.num_nodes": machines})
        (folder / "params.yaml").write_text(json.dumps(asdict(config)), encoding="utf-8")  # which YAML 1.2 includes
        (folder / ".dvc").mkdir()
        return folder

    return prepare


def run(folder, *commands):
    """Run commands beside each other in a folder; all must succeed."""
    log = folder / "log"
    with log.open("w") as output:
        running = [
            subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=ON_CPUS, stdout=output, stderr=output)
            for command in commands
        ]

    def have_ended():
        states = [process.poll() for process in running]
        assert not any(states), log.read_text()
        return None not in states

    try:
        wait_for(have_ended, lambda: tail(log))
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def whole(start):
    """A function that gives what so many processes of one machine write."""

    @cache
    def train(processes):
        folder = start(1, processes)
        run(folder, ["stages.train"])
        return written(folder)

    return train


def written(folder):
    """The content of the files that training has written, by name."""
    files = [path for place in (MODELS, TRAINING_METRICS) for path in (folder / place).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def has_come_to(epoch, log):
    """A function that says whether a training is at an epoch, as what it prints tells."""
    return lambda: log.exists() and f"epoch {epoch - 1}/" in log.read_text()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torchrun_on_two_machines_trains_to_the_bytes_of_one(processes, start, whole):
    folder = start(2, processes)
    rendezvous = [f"--rdzv-endpoint=127.0.0.1:{free_ports(1)[0]}", "--rdzv-backend=c10d", "--rdzv-id=1"]
    options = ["--nnodes=2", f"--nproc-per-node={processes}", *rendezvous]
    command = ["torch.distributed.run", *options, "-m", "stages.train"]
    run(folder, command, command)
    assert (folder / "log").read_text().count("best epoch") == 1
    assert written(folder) == whole(2 * processes)


@pytest.mark.slow
def test_two_processes_on_each_of_two_machines_of_slurm_train_to_the_bytes_of_one(slurm, start, whole):
    folder = start(2, 2)
    tasks = ["--nodes=2", "--ntasks-per-node=2", "--overcommit"]
    slurm.run("srun", *tasks, sys.executable, "-m", "stages.train", cwd=folder)
    assert written(folder) == whole(4)


def test_a_job_goes_on_to_the_same_bytes_after_its_time_is_up_and_after_a_node_has_died(slurm, start, whole, tmp_path):
    folder = start(2, 1)
    (folder / ".dvc").rmdir()
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    slurm.run("dvc", "init", "--no-scm", "--quiet", cwd=folder)
    log = folder / "log"
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60", "--signal=B:USR1@60"]
    options += [f"--export=ALL,CHECKPOINT_DIR={tmp_path}", f"--output={log}"]
    job = slurm.run("sbatch", "--parsable", *options, str(ROOT / "slurm/train.sbatch"), cwd=folder).strip()
    slurm.wait_for(has_come_to(4, log), log)
    assert list(tmp_path.iterdir())
    # SLURM looks every half a minute at whose time is up; meanwhile the training waits, too.
    training = slurm.processes(SLURM_JOB_ID=job, SLURM_STEP_ID="0")
    assert len(training) == 2
    for process in training:
        process.suspend()
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    expected = whole(2)
    slurm.wait_for(lambda: "time is nearly up" in log.read_text(), log)
    for process in training:
        process.resume()
    slurm.start_soon(job, "TimeLimit=60")
    slurm.wait_for(has_come_to(9, log), log)
    assert log.read_text().count("terminated; ") == 1
    slurm.kill_node("n2")
    slurm.start_node("n2")
    slurm.start_soon(job)
    slurm.wait_for_end(job, log)
    assert log.read_text().count("resuming from") == 2
    assert written(folder) == expected


def test_more_processes_than_the_parameters_say_write_nothing(slurm, start):
    folder = start(1, 1)
    files = lambda: [path for path in folder.rglob("*") if ".dvc" not in path.parts]  # noqa: E731  where the lock is
    before = files()
    printed = slurm.fails("srun", "--nodes=1", "--ntasks=2", sys.executable, "-m", "stages.train", cwd=folder)
    message = "error: SLURM started 2 processes on 1 machine, but training.devices × training.num_nodes is 1 × 1"
    assert [line[: len(message)] for line in re.findall("^error: .*", printed, re.MULTILINE)] == [message]
    assert files() == before
