"""Two processes on the CPU, as Lightning starts them and as torchrun does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch.nn.functional import cross_entropy

from stages import train
from stages.classifier.temperature import calibrated_loss
from stages.classifier.weights import load_model
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.evaluation.history import read_history
from stages.files import MODELS, PREPARED, SPLIT, TRAINING_METRICS
from stages.launch import run_stage

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests/without_wandb")])


QUICK = {
    "model.name": "baseline_cnn",
    "model.variant": "null",
    "model.pretrained": "false",
    "data.image_size": "16",
    "training.devices": "2",
    "training.batch_size": "4",
    "training.learning_rate": "0.003",
    "runtime.cpu_threads": "1",
}


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run_python(*arguments, timeout=None):
    """What an interpreter without a GPU prints, which must succeed."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_one_model_and_write_it_once(workspace, params):
    # So slowly that the calibrated loss is not 0 yet.
    slowly = {"training.max_epochs": "2", "training.learning_rate": "0.0001"}
    params(QUICK | slowly | {"training.monitor": "val_calibrated_loss"})
    said = run_python("-m", "stages.train")
    assert said.count("epoch 2/2") == said.count("best epoch") == 1

    # Every image of the validation split counts once, though 14 cannot be shared evenly in batches of 4.
    network, description = load_model(MODELS)
    images = SplitImages(PixelStore(PREPARED), "val", SPLIT, 2)
    with torch.inference_mode():
        logits = torch.cat([network(as_float(batch.images)) for batch in Batches(images, 5, torch.device("cpu"))])
    history = read_history(TRAINING_METRICS)
    best = history.iloc[description.epochs[0]]
    loss = cross_entropy(logits, images.labels).item()
    calibrated = calibrated_loss(logits.numpy(), images.labels.numpy())
    right = (logits.argmax(dim=1) == images.labels).float().mean().item()
    expected = pytest.approx((loss, calibrated, right), abs=2e-6)
    assert (best["val_loss"], best["val_calibrated_loss"], best["val_acc"]) == expected
    assert description.val_losses == [pytest.approx(calibrated, abs=2e-6)]
    assert f"val_calibrated_loss {description.val_losses[0]:.4f}, " in said
    assert len(history) == 2
    # 42 images in steps of 2 × 4.
    steps = (TRAINING_METRICS / "plots/metrics/train/loss.tsv").read_text().splitlines()[-1].split()[0]
    assert int(steps) == 2 * 5 - 1
    assert json.loads((MODELS / "model.json").read_text())["batch_size"] == 4


def test_processes_that_the_parameters_do_not_know_of_train_nothing(workspace, params, monkeypatch):
    params(QUICK | {"training.devices": "1"})
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    for name, value in (
        sizes | {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    expected = "torchrun started 2 processes on 1 machine, but training.devices × training.num_nodes is 1 × 1; set"
    with pytest.raises(SystemExit, match=f"^error: {expected}"):
        run_stage(lambda: pytest.fail("it trains"), "a stage", train.start_others)


@pytest.mark.parametrize("first_is_killed", [True, False])
def test_no_process_waits_for_one_that_has_ended_before_they_met(workspace, params, first_is_killed):
    params(QUICK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    first = psutil.Popen([sys.executable, "-m", "stages.train"], env=environment, stderr=subprocess.DEVNULL)
    while not (others := first.children()):
        assert first.is_running()
    killed, left = (first, others[0]) if first_is_killed else (others[0], first)
    killed.kill()
    _, alive = psutil.wait_procs([left, killed], timeout=60)
    assert not alive


@pytest.mark.slow
def test_two_processes_train_an_ensemble(workspace, params):
    params(QUICK | {"training.max_epochs": "1", "model.ensemble": "2"})
    said = run_python("-m", "stages.train")
    assert (said.count("epoch 1/1"), said.count("best epoch")) == (2, 1)
    network, description = load_model(MODELS)
    assert (description.networks, description.epochs) == (2, [0, 0])
    first, second = (member.backbone.classifier.weight for member in network.members)
    assert not torch.equal(first, second)


# As tests/training/test_resume.py, with two processes; SIGTERM comes to either.
STOPPED_ANYWHERE = """
import os, signal
from pathlib import Path
import torch.distributed
from stages.config import load_config
from stages.errors import TerminatedError
from stages.files import CHECKPOINTS, MODELS, TRAINING_METRICS
from stages.training.fit import train_model
from stages.training import loop
from tests.training.test_resume import Snapshots, at_every_call, one_call_of_each_batch, terminate

loop.AGREE_EVERY = 2
signal.signal(signal.SIGTERM, lambda *_: None)
config, rank = load_config(), int(os.environ["RANK"])

def train(name):
    outputs = [Path(name, place) for place in (MODELS, TRAINING_METRICS)]
    train_model(config, models=outputs[0], metrics=outputs[1], checkpoints=Path(name, CHECKPOINTS))
    torch.distributed.barrier()
    files = (path for folder in outputs for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(name)): path.read_bytes() for path in files}

Path("whole").mkdir(exist_ok=True)
snapshots = Snapshots(Path("whole"))
with at_every_call(snapshots if rank == 0 else lambda _: None) as calls:
    expected = train("whole")
killed = [list(snapshots.states.values())]
torch.distributed.broadcast_object_list(killed)
for name in killed[0]:
    assert train(name) == expected, name
stopped = 0
for index, chosen in enumerate(one_call_of_each_batch(calls)):
    with at_every_call(lambda number: index % 2 == rank and number == chosen and terminate()):
        try:
            train(f"terminated {index}")
        except (TerminatedError, SystemExit):  # the first process says why
            stopped += 1
    assert train(f"terminated {index}") == expected, f"{calls[chosen]}, call {chosen} of {len(calls)}"
if rank == 0:
    print(f"went on after {len(killed[0])} kills and {stopped} signals", flush=True)
"""


@pytest.mark.slow
def test_two_processes_that_are_stopped_anywhere_go_on_to_the_same_bytes(workspace, params, tmp_path):
    # Dropout draws from the random numbers of each process.
    params(QUICK | {"training.max_epochs": "2", "model.dropout_rate": "0.5", "training.checkpoint_minutes": "1e-9"})
    script = tmp_path / "stopped_anywhere.py"
    script.write_text(STOPPED_ANYWHERE, encoding="utf-8")
    said = run_python(*TORCHRUN, str(script), timeout=600)
    kills, signals = map(int, re.search(r"went on after (\d+) kills and (\d+) signals", said).groups())
    assert min(kills, signals) >= 4


# As if the second process came to its minutes between two checkpoints long before the first.
OTHER_CLOCK = """
import os, time
from types import SimpleNamespace
from stages import train
from stages.training import checkpoints, loop

loop.AGREE_EVERY = 2
if os.environ["RANK"] == "1":
    checkpoints.time = SimpleNamespace(monotonic=lambda: 1e6 * time.monotonic(), time=time.time)
agreed = loop.any_process
def tell(*flags, device):
    stop, due = agreed(*flags, device=device)
    print(f"process {os.environ['RANK']} saves: {due}", flush=True)
    return stop, due
loop.any_process = tell
train.main()
"""


@pytest.mark.slow
def test_processes_whose_clocks_differ_save_together(workspace, params, tmp_path):
    params(QUICK | {"training.max_epochs": "1", "training.checkpoint_minutes": "5"})
    script = tmp_path / "other_clock.py"
    script.write_text(OTHER_CLOCK, encoding="utf-8")
    said = run_python(*TORCHRUN, str(script), timeout=240)
    # After batches 2 and 4, and at the end of the epoch.
    assert [said.count(f"process {process} saves: True") for process in (0, 1)] == [3, 3]
