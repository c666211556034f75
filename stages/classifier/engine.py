"""The training engine: Lightning's Trainer with checkpoints, early stopping and loggers."""

import dataclasses
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from stages.classifier.callbacks import EpochLog, TerminalProgress, Throughput
from stages.classifier.checkpoints import Checkpoints
from stages.classifier.data import SkinLesionData
from stages.classifier.distributed import AveragedGradients, check_launcher
from stages.classifier.hardware import set_up_device
from stages.classifier.loggers import create_loggers
from stages.classifier.module import SkinLesionClassifier
from stages.config import Config, TrainingConfig
from stages.errors import DiskFullError, InputError, TerminatedError, no_space
from stages.files import PROFILES

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def prepare_hardware(config: Config) -> Config:
    """Seed every generator, make the hardware deterministic if asked, and decide what `auto` leaves to it.

    Returns:
        The parameters with a precision.

    Raises:
        InputError: there are fewer devices than asked for, they cannot compute at `training.precision`, or torchrun
            started another number of processes.
    """
    for name in ("pytorch_lightning", "lightning.pytorch"):  # the second where both packages are installed
        logging.getLogger(name).setLevel(logging.WARNING)
    training = config.training
    check_launcher(training)
    seed_everything(training.seed, verbose=False)
    device = set_up_device(config.runtime.cpu_threads, training.deterministic)
    if device.type == "cuda" and training.devices > torch.cuda.device_count():
        raise InputError(f"training.devices is {training.devices}; this machine has {torch.cuda.device_count()} GPUs")
    precision = training.precision
    if precision == 16 and device.type == "cpu":
        raise InputError("training.precision is 16, which needs a GPU; on a CPU it must be 32, bf16 or auto")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else 32
    return dataclasses.replace(config, training=dataclasses.replace(training, precision=precision))


class Fit(NamedTuple):
    """What a training found.

    Attributes:
        epoch: the best epoch, from 0.
        val_loss: the validation loss of it that `training.monitor` names.
        batch_size: images of one device in one batch.
        parts: into how many parts batches had to be split because of memory.
        throughput: images per second of every epoch.
    """

    epoch: int
    val_loss: float
    batch_size: int
    parts: int
    throughput: Throughput


def fit(
    module: SkinLesionClassifier, data: SkinLesionData, config: Config, checkpoints: Path, metrics: Path
) -> Fit | None:
    """Train `module` and leave the weights of its best epoch in it.

    Args:
        config: as `prepare_hardware` gave it.
        checkpoints: folder for this training's checkpoint, from which it goes on if it was killed.
        metrics: folder for DVCLive.

    Returns:
        What was found; None in all but the first of the processes that trained together, where `module` has the
        weights of the last epoch.

    Raises:
        InputError: a loss stopped being finite, the GPU's memory is too small for one image, an epoch has too few
            batches for what the parameters say of them, or DVCLive's folder was deleted.
        TerminatedError: SIGTERM came.
        DiskFullError: there is no space for DVCLive's files.
    """
    _silence_what_is_meant()
    training = config.training
    saved = Checkpoints(checkpoints, metrics, training.checkpoint_minutes, training.resume, training.monitor)
    if saved.resumed is not None:
        epoch, batch = saved.resumed
        print(f"resuming from {saved.path}: epoch {epoch + 1}, batch {batch + 1}", flush=True)
    throughput = Throughput()
    progress = TerminalProgress() if sys.stdout.isatty() else EpochLog(throughput)
    loggers = create_loggers(config, metrics, resume=saved.restore_metrics())
    few = int(training.fast_dev_run)
    distributed = training.strategy == "ddp" or training.devices * training.num_nodes > 1
    trainer = Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy=AveragedGradients() if distributed else "auto",
        max_epochs=1 if few else training.max_epochs,
        limit_train_batches=few or training.overfit_batches or training.limit_train_batches,
        limit_val_batches=few or 1.0,
        val_check_interval=1.0 if few else training.val_check_interval,  # which may be more than these few
        log_every_n_steps=training.log_every_n_steps,
        deterministic=training.deterministic,
        benchmark=False,
        profiler=_profiler(training.profiler),
        callbacks=[
            throughput,
            saved,
            EarlyStopping(training.monitor, patience=training.early_stopping_patience),
            progress,
        ],
        logger=loggers,
        enable_progress_bar=isinstance(progress, TerminalProgress),
        enable_checkpointing=False,  # `Checkpoints` does it
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, data)
    except SIGTERMException:
        kept = f"{saved.path} holds everything: the same command goes on from there"
        if not saved.written:
            kept = "there was no space for a checkpoint: the same command goes on from the one before, if there is one"
        raise TerminatedError(f"terminated; {kept}") from None
    except Exception as error:
        if (full := no_space(error)) is not None:
            # DVCLive writes its files in place: they are cut short now, and the checkpoint has them.
            shutil.rmtree(metrics, ignore_errors=True)
            raise DiskFullError(metrics, full.strerror) from None
        saved.check_deleted(error)
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise InputError(
                f"training.batch_size is {training.batch_size}: batch normalisation needs more images, or a larger "
                "data.image_size"
            ) from None
        refused = isinstance(error, ValueError | MisconfigurationException) and not few
        if refused and trainer.train_dataloader is not None:
            _check_batches(training, len(trainer.train_dataloader))
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not trainer.is_global_zero:
        return None
    module.kept.load_state_dict(saved.best.weights)
    return Fit(saved.best.epoch, saved.best.val_loss, data.batch_size, module.take_step.parts, throughput)


def _check_batches(training: TrainingConfig, batches: int) -> None:
    """Raise an InputError if an epoch of so many batches has too few for the parameters, which Lightning refuses.

    Their number is known only when Lightning has asked for them: `training.auto_batch_size` tries them on the device.
    """
    name = "overfit_batches" if training.overfit_batches else "limit_train_batches"
    part = getattr(training, name)
    trained_on = min(part, batches) if isinstance(part, int) else int(part * batches)
    if not trained_on:
        raise InputError(
            f"training.{name} is {part}, which is less than one batch: an epoch has {batches}; set it to a fraction of "
            f"at least 1/{batches}, or to a number of batches"
        )
    if isinstance(training.val_check_interval, int) and training.val_check_interval > trained_on:
        raise InputError(
            f"training.val_check_interval is {training.val_check_interval}, but an epoch is trained on {trained_on} "
            f"batches; set it to a number of batches up to {trained_on}, or to a fraction such as 1.0"
        )


def _profiler(name: str | None) -> Profiler | None:
    return None if name is None else PROFILERS[name](dirpath=PROFILES, filename=name)


def _silence_what_is_meant() -> None:
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # a small dataset has few batches
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning of itself
    warnings.filterwarnings("ignore", ".*yielded None.*")  # batches that a resumed training passes over
