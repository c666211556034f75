"""Two machines that share a folder, started by torchrun and by a real SLURM: they train to the bytes of one machine."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from stages.files import MODELS, PREPARED, SPLIT, TRAINING_METRICS
from tests.slurm import free_ports, wait_for

ROOT = Path(__file__).parents[2]
# So many epochs that there is time to kill it. Dropout draws from the random numbers of each process.
SLOW = {
    "training.batch_size": 2,
    "training.max_epochs": 24,
    "training.early_stopping_patience": 24,
    "training.checkpoint_minutes": 0.0001,
    "model.dropout_rate": 0.5,
}
ON_CPUS = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
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


@pytest.fixture(scope="module")
def whole(start):
    """A function that gives what so many processes of one machine write."""

    @cache
    def train(processes):
        folder = start(1, processes)
        subprocess.run([sys.executable, "-m", "stages.train"], cwd=folder, env=os.environ | ON_CPUS, check=True)
        return written(folder)

    return train


def written(folder):
    """The content of the files that training has written, by name."""
    files = [path for place in (MODELS, TRAINING_METRICS) for path in (folder / place).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_torchrun_on_two_machines_trains_to_the_bytes_of_one(start, whole):
    folder, port = start(2, 1), free_ports(1)[0]
    rendezvous = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", "--rdzv-id=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *rendezvous]
    running = [
        subprocess.Popen([*command, "-m", "stages.train"], cwd=folder, env=os.environ | ON_CPUS) for _ in range(2)
    ]
    assert [process.wait(600) for process in running] == [0, 0]
    assert written(folder) == whole(2)


def test_two_nodes_of_which_one_dies_train_to_the_bytes_of_one_machine(slurm, start, whole):
    folder = start(2, 2)
    log = folder / "log"
    options = ["--nodes=2", "--ntasks-per-node=2", "--requeue", "--open-mode=append", f"--output={log}"]
    job = slurm.run("sbatch", "--parsable", *options, "--wrap=python -m stages.train", cwd=folder).strip()
    wait_for(lambda: log.exists() and "epoch 5/" in log.read_text())
    slurm.kill_node("n2")
    slurm.start_node("n2")
    slurm.start_soon(job)
    wait_for(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(job) == "COMPLETED", log.read_text()
    assert log.read_text().count("resuming from") == 1
    assert written(folder) == whole(4)


def test_a_job_that_is_told_to_end_saves_and_goes_on_to_the_same_bytes(slurm, start, whole, tmp_path):
    folder = start(2, 1)
    (folder / ".dvc").rmdir()
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    slurm.run("dvc", "init", "--no-scm", "--quiet", cwd=folder)
    log = folder / "log"
    # On CPUs; a shared disk for checkpoints.
    options = [
        "--nodes=2",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        f"--export=ALL,CHECKPOINT_DIR={tmp_path}",
        f"--output={log}",
    ]
    job = slurm.run("sbatch", "--parsable", *options, str(ROOT / "slurm/train.sbatch"), cwd=folder).strip()
    wait_for(lambda: log.exists() and "epoch 5/" in log.read_text())
    assert list(tmp_path.iterdir())
    # As --signal=B:USR1@120 does two minutes before the time limit.
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    slurm.start_soon(job)
    wait_for(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert slurm.state(job) == "COMPLETED", log.read_text()
    assert log.read_text().count("terminated; ") == 1
    assert log.read_text().count("resuming from") == 1
    assert written(folder) == whole(2)
