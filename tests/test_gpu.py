"""What only a GPU can show: `pytest -m gpu -n 0`."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.plain import PLAIN
from stages.classifier.weights import load_model
from stages.dataset import loaders
from stages.dataset.augmentation import augment_batch, sample_params
from stages.dataset.loaders import Batches, SamplingConfig, SplitImages
from stages.dataset.pixels import PixelStore, shard_path
from stages.evaluation.history import read_history
from stages.files import ENVIRONMENT, MODELS, PICTURES, TRAINING_METRICS
from stages.training.capture import CapturedStep
from stages.training.fit import train_model
from stages.training.module import TrainingModule
from stages.training.monitoring import AsyncLossQueue, StepLoss
from stages.training.step import TrainingStep
from tests.clone import ENVIRONMENT as CLONE_ENVIRONMENT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.xdist_group("gpu"),
]
ROOT = Path(__file__).parents[1]
LITE0 = {"model.name": "efficientnet", "model.variant": "lite0", "training.max_epochs": 2}
EVERYTHING = {
    "data.acquisition_strength": 1.0,
    "data.mixup": 0.4,
    "data.cutmix": 1.0,
    "data.cutout": 0.3,
    "training.ema_decay": 0.9,
    "training.label_smoothing": 0.1,
    "training.class_balance": "weights",
    "training.layer_decay": 0.9,
    "training.frozen_epochs": 1,
    "training.accumulate_grad_batches": 2,
    "model.dropout_rate": 0.5,
}
# As params.yaml has it.
SHORT = {
    "data.image_size": "16",
    "training.max_epochs": "12",
    "training.batch_size": "8",
    "model.dropout_rate": "0.5",
    "evaluation.bootstrap_replicates": "100",
}


@pytest.fixture
def train(tiny, quick, tmp_path):
    """A function that trains Lite0 into a folder of a name; the bytes of its weights."""

    def run(name, images=tiny, **changes):
        folder = tmp_path / name
        train_model(quick(**LITE0 | changes), *images, folder / "models", folder / "metrics", folder / "checkpoints")
        return (folder / "models" / "model.safetensors").read_bytes()

    return run


@pytest.mark.parametrize("precision", ["bf16", 16, 32])
def test_two_trainings_on_a_gpu_write_the_same_bytes(train, tmp_path, bytes_below, precision):
    for name in ("one", "again"):
        train(name, **{"training.precision": precision})
    for name in ("models", "metrics"):
        assert bytes_below(tmp_path / "one" / name) == bytes_below(tmp_path / "again" / name)
    network, description = load_model(tmp_path / "one" / "models")
    assert description.architecture == "tf_efficientnet_lite0"
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    "changes",
    [{}, EVERYTHING, EVERYTHING | {"model.metadata": "fused"}, {"model.metadata": "late"}],
    ids=["plain", "everything", "everything with metadata", "metadata"],
)
def test_captured_steps_are_the_steps_that_were_captured(train, capsys, changes):
    captured = train("captured", **{"training.compile": "graph", "training.max_epochs": 3} | changes)
    assert "not captured" not in capsys.readouterr().out
    assert captured == train("eager", **{"training.compile": "none", "training.max_epochs": 3} | changes)


def test_captured_steps_with_a_teacher_are_the_steps_that_were_captured(train, tmp_path):
    train("teacher")
    taught = EVERYTHING | {"training.teacher": str(tmp_path / "teacher"), "training.max_epochs": 3}
    captured, eager = (train(how, **taught, **{"training.compile": how}) for how in ("graph", "none"))
    assert captured == eager


def test_images_that_do_not_fit_are_streamed_to_the_same_result(train, monkeypatch):
    resident = train("resident")
    monkeypatch.setattr(loaders, "LARGEST_SHARE_OF_GPU_MEMORY", 0.0)
    assert train("streamed") == resident


def test_streamed_batches_are_the_resident_ones(tiny, monkeypatch):
    images = SplitImages(PixelStore(tiny.folder), "train", tiny.split, 2)
    gpu = torch.device("cuda", 0)
    resident = list(Batches(images, 4, gpu, SamplingConfig(0)))
    monkeypatch.setattr(loaders, "LARGEST_SHARE_OF_GPU_MEMORY", 0.0)
    for threads in (1, 3):
        streamed = list(Batches(images, 4, gpu, SamplingConfig(0), threads=threads))
        assert len(streamed) == len(resident) == 10
        assert all(torch.equal(one.images, other.images) for one, other in zip(streamed, resident))


def test_an_optimizer_that_cannot_be_captured_says_so_and_trains(train, capsys, tmp_path):
    train("lamb", **{"training.optimizer": "lamb"})
    assert "updates of lamb are not captured" in capsys.readouterr().out
    assert np.isfinite(read_history(tmp_path / "lamb" / "metrics")["val_loss"]).all()


def test_compiled_training_learns_as_much(train, tmp_path):
    for name, changes in (("compiled", {"training.compile": "inductor"}), ("eager", {"training.compile": "none"})):
        train(name, **{"model.name": "baseline_cnn", "model.variant": None} | changes)
    one, other = (read_history(tmp_path / name / "metrics") for name in ("compiled", "eager"))
    assert one["val_loss"].to_numpy() == pytest.approx(other["val_loss"].to_numpy(), abs=0.1)


@pytest.fixture
def large_images(tiny, tmp_path):
    """The tiny dataset with images of 256 px."""
    folder = tmp_path / "large"
    shutil.copytree(tiny.folder, folder)
    pixels = np.load(shard_path(folder, 0))
    np.save(shard_path(folder, 0), pixels.repeat(16, axis=1).repeat(16, axis=2))
    return folder, tiny.split


def give_back_memory():
    """Drop what earlier trainings hold, whose objects refer to each other; the bytes that are left."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@pytest.fixture
def little_memory():
    """A function that leaves this process so many bytes of the GPU's memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    yield lambda size: torch.cuda.set_per_process_memory_fraction(size / total)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_divided_as_the_parameters_would_divide_it(
    train, large_images, capsys, little_memory
):
    taken, weights = {}, {}
    # Six steps each of the 42 images: the last ones are captured.
    for name, size, accumulate in (("divided", 16, 2), ("roomy", 32, 1), ("cramped", 32, 1)):
        left = give_back_memory()
        torch.cuda.reset_peak_memory_stats()
        if name == "cramped":
            little_memory(left + (taken["divided"] + taken["roomy"]) / 2)
        changes = {"training.batch_size": size, "training.accumulate_grad_batches": accumulate}
        changes |= {"model.name": "resnet", "model.variant": "18", "training.max_epochs": 6}
        weights[name] = train(name, large_images, **changes)
        taken[name] = torch.cuda.max_memory_reserved() - left
    assert "as training.batch_size=16 and training.accumulate_grad_batches=2 do" in capsys.readouterr().out
    assert weights["cramped"] == weights["divided"] != weights["roomy"]


def test_two_whole_runs_write_the_same_bytes(workspace, params, bytes_below, tmp_path):
    params(SHORT)
    again = tmp_path.with_name(f"{tmp_path.name}-again")
    shutil.copytree(tmp_path, again)
    for folder in (tmp_path, again):
        for stage in ("train", "evaluate", "plot"):
            command = [sys.executable, "-m", f"stages.{stage}"]
            subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                check=True,
            )
        (folder / ENVIRONMENT).unlink()  # which holds its speed
    assert len(bytes_below(tmp_path / PICTURES)) > 10
    assert bytes_below(again) == bytes_below(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {"training.compile": "none"}, {"training.precision": "16"}], ids=["captured", "eager", "16 bits"]
)
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(workspace, params, bytes_below, changes):
    # So many epochs that it cannot end before it is killed.
    long = {"training.max_epochs": "30", "training.early_stopping_patience": "30"}
    params(SHORT | long | {"training.checkpoint_minutes": "0.005"} | changes)
    pythonpath = os.pathsep.join([str(ROOT), CLONE_ENVIRONMENT["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": pythonpath, "CUDA_VISIBLE_DEVICES": "0", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "stages.train"]

    def run() -> tuple[str, list[dict[str, bytes]]]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, [bytes_below(place) for place in (MODELS, TRAINING_METRICS)]

    _, whole = run()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stage:
        next(seen for seen in stage.stdout if seen.startswith("epoch 5/30"))
        time.sleep(0.05)
        stage.kill()
    assert stage.returncode == -signal.SIGKILL
    output, resumed = run()
    assert "resuming from" in output
    assert resumed == whole


def test_no_step_waits_for_the_gpu(tiny, quick):
    config = quick(**LITE0, **EVERYTHING, **{"training.precision": "bf16"})
    device = torch.device("cuda", 0)
    images = SplitImages(PixelStore(tiny.folder), "train", tiny.split, 2)
    module = TrainingModule(config, 16, torch.tensor([[30, 12]])).to(device).train()
    optimizer = module.configure_optimizers()
    step = CapturedStep(TrainingStep(module.network, module.losses, optimizer, module.average, config.training, device))
    queue, batches = AsyncLossQueue(), Batches(images, 8, device, SamplingConfig(0, config.data))
    for batch in batches:  # warm-up and capture
        step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in enumerate(batches.of_epoch(1)):
            torch.manual_seed(number)
            queue.put(StepLoss(1, number, number, 1e-3), step(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(taken.loss) for taken in queue.drain())


def test_weights_are_written_as_they_were_trained(train, tmp_path):
    train("once")
    state = load_file(tmp_path / "once" / "models" / "model.safetensors")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())


def test_augmentation_in_16_bits_makes_the_same_pictures():
    config = replace(PLAIN.data, acquisition_strength=1.0, mixup=0.4, cutmix=1.0, cutout=0.3)
    smooth = torch.linspace(0, 40, 224).sin()
    pixels = ((smooth[:, None] + smooth[None]) * 60 + 128).byte()
    images = torch.stack([pixels, pixels.T, 255 - pixels], dim=-1).expand(16, -1, -1, -1)
    augment_params = torch.from_numpy(sample_params(np.random.default_rng(0), 16, config))
    exact, _ = augment_batch(images, torch.eye(16), augment_params, config)
    arguments = (tensor.cuda() for tensor in (images, torch.eye(16), augment_params))
    halved, _ = augment_batch(*arguments, config, torch.float16)
    assert halved.dtype == torch.float16
    difference = (halved.float().cpu() - exact).abs()
    assert difference.mean() < 0.002
    assert difference.flatten()[::11].quantile(0.999) < 0.03  # an edge of a rectangle may fall to its other side
