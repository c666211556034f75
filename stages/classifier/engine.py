"""The training engine: Lightning's Trainer with checkpoints, early stopping and DVCLive."""

import logging
import shutil
import sys
import time
import warnings
from pathlib import Path

import torch
from dvclive.lightning import DVCLiveLogger
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar

from stages.classifier.hardware import set_up_device
from stages.config import TrainingConfig
from stages.dataset.loaders import Batches
from stages.errors import InputError


class EpochLog(Callback):
    """One line an epoch, for logs that no terminal draws a progress bar in."""

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        seconds = time.perf_counter() - self._start
        metrics = " ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {metrics} ({seconds:.1f} s)", flush=True)


class TerminalProgress(RichProgressBar):
    """Lightning's progress bar without `v_num`: DVC numbers the versions here."""

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics


def prepare_hardware(config: TrainingConfig) -> torch.device:
    """Seed every generator and choose the device, deterministic if asked.

    Raises:
        InputError: the device cannot compute at `training.precision`.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    seed_everything(config.seed, verbose=False)
    device = set_up_device(config.cpu_threads, config.deterministic)
    if config.precision == 16 and device.type == "cpu":
        raise InputError("training.precision is 16, which needs a GPU; on a CPU it must be 32, bf16 or auto")
    return device


def fit(
    module: LightningModule,
    train: Batches,
    val: Batches,
    config: TrainingConfig,
    checkpoints: Path,
    metrics: Path,
) -> tuple[int, float]:
    """Train `module` and leave the weights of its best epoch in it.

    Args:
        checkpoints: folder for the three best checkpoints and the last one; emptied first.
        metrics: folder for DVCLive.

    Returns:
        The best epoch, from 0, and its validation loss.

    Raises:
        InputError: no epoch had a finite validation loss.
    """
    # Known and meant: a small dataset has few batches, and metrics are logged once an epoch.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning of itself
    shutil.rmtree(checkpoints, ignore_errors=True)
    best = ModelCheckpoint(
        dirpath=checkpoints, filename="{epoch:03d}-{val_loss:.3f}", monitor="val_loss", save_top_k=3, save_last=True
    )
    progress = TerminalProgress() if sys.stdout.isatty() else EpochLog()
    trainer = Trainer(
        accelerator="gpu" if train.device.type == "cuda" else "cpu",
        devices=1,
        precision=_lightning_precision(config.precision, train.device),
        max_epochs=config.max_epochs,
        gradient_clip_val=config.gradient_clip_val or None,
        accumulate_grad_batches=config.accumulate_grad_batches,
        deterministic=config.deterministic,
        callbacks=[
            best,
            EarlyStopping("val_loss", patience=config.early_stopping_patience),
            LearningRateMonitor(logging_interval="epoch"),
            progress,
        ],
        # dvc.yaml is written by hand and experiments are saved by `dvc exp run`: DVCLive does neither.
        logger=DVCLiveLogger(dir=str(metrics), dvcyaml=None, save_dvc_exp=False, report=None),
        enable_progress_bar=isinstance(progress, RichProgressBar),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, train, val)
    if trainer.interrupted:
        raise KeyboardInterrupt
    # Where val_loss is NaN in every epoch, Lightning keeps a checkpoint with the score inf.
    if not best.best_model_path or not best.best_model_score.isfinite():
        raise InputError("training has no epoch with a finite val_loss; lower training.learning_rate")
    checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    return checkpoint["epoch"], best.best_model_score.item()


def _lightning_precision(precision: str | int, device: torch.device) -> str:
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else 32
    return {32: "32-true", 16: "16-mixed", "bf16": "bf16-mixed"}[precision]
