"""What is seen of a training while it runs."""

import statistics
import time

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar


class Throughput(Callback):
    """Images per second of training, validation and checkpoints left out.

    Attributes:
        epochs: of each epoch, all devices together. The first includes loading kernels and capturing the step.
    """

    def __init__(self) -> None:
        self.epochs: list[float] = []

    @property
    def images_per_second(self) -> float:
        """That of the median epoch."""
        return statistics.median(self.epochs[1:] or self.epochs)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seconds, self._start, self._images = 0.0, time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if batch is not None:  # a resumed training passes over those that it has seen
            self._images += len(batch.labels) * trainer.world_size
        if trainer.is_last_batch:
            self._pause(module)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_last_batch:
            self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause(module)
        self.epochs.append(self._images / self._seconds)

    def _pause(self, module: LightningModule) -> None:
        if self._start is not None:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self._seconds += time.perf_counter() - self._start
            self._start = None


class EpochLog(Callback):
    """One line an epoch, for logs that no terminal draws a progress bar in."""

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        seconds = time.perf_counter() - self._start
        metrics = " ".join(f"{name} {value:.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        speed = f"{self._throughput.epochs[-1]:.0f} images/s, {seconds:.1f} s"
        module.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {metrics} ({speed})", flush=True)


class TerminalProgress(RichProgressBar):
    """Lightning's progress bar without `v_num`: DVC numbers the versions here."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)  # batches: drawing takes longer than launching a step

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics
