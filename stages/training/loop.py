"""The training loop: epochs of steps, with validations, early stopping and checkpoints between them."""

import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stages.classifier.temperature import calibrated_loss
from stages.config import Config, TrainingConfig
from stages.dataset.loaders import Batch, Batches
from stages.errors import InputError, TerminatedError
from stages.files import PROFILES
from stages.training.anomaly import add_nonfinite_hooks
from stages.training.capture import CapturedStep, why_not_captured
from stages.training.checkpoints import Checkpoints
from stages.training.loggers import DVCLiveLogger, MetricLogger
from stages.training.module import TrainingModule
from stages.training.monitoring import AsyncLossQueue, Display, StepLoss, Throughput
from stages.training.optimization import FUSED, LearningRate, is_capturable
from stages.training.processes import Processes, any_process, gather_rows, say
from stages.training.step import TrainingStep

# Every so many batches several processes ask each other whether to save or to stop, and wait for the answer.
AGREE_EVERY = 50


class Fit(NamedTuple):
    """The outcome of training.

    Attributes:
        epoch: the best epoch, from 0.
        val_loss: its validation loss, the one that `training.monitor` names.
        images_per_second: of the median epoch, validation excluded, all devices together.
    """

    epoch: int
    val_loss: float
    images_per_second: float


@dataclass
class Progress:
    """Where training is: beside its tensors, all that its next step depends on.

    Attributes:
        epoch: that is trained on next, from 0.
        batch: of the epoch, that is trained on next, from 0.
        step: of the optimizer, that is taken next, from 0.
        loss_sum: of the steps of the epoch so far.
        first_rate: the learning rate of the epoch's first step.
        best_epoch: the epoch with the lowest validation loss so far, from 0; None before the first validation.
        best_loss: that loss.
        validations_since_best: how many there were.
        images_per_second: of the finished epochs, validation excluded, all devices together.
        history: all that was logged: steps and metrics.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    first_rate: float = 0.0
    best_epoch: int | None = None
    best_loss: float = math.inf
    validations_since_best: int = 0
    images_per_second: list[float] = field(default_factory=list)
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class TrainingLoop:
    """Trains a classifier, and leaves the weights of its best epoch in it.

    Random numbers depend on the seed, the step and the process alone, and a checkpoint is taken between two batches
    only: training that resumes from one comes to the same bits as training that was never stopped.

    Args:
        module: on the device of `fabric`.
        train: training batches, each of a whole step of the optimizer.
        val: validation batches.
        config: how to fit; its precision is none of `auto`.
        fabric: the processes that train together.
        checkpoints: where to resume from, and to save to.
        loggers: that get what is logged.

    Raises:
        InputError: an epoch has too few batches for what the parameters say of them.
    """

    def __init__(
        self,
        module: TrainingModule,
        train: Batches,
        val: Batches,
        config: Config,
        fabric: Processes,
        checkpoints: Checkpoints,
        loggers: list[MetricLogger],
    ) -> None:
        training = config.training
        self.module, self.train, self.val, self.fabric = module, train, val, fabric
        self.training, self.checkpoints, self.loggers = training, checkpoints, loggers
        self.epochs = 1 if training.fast_dev_run else training.max_epochs
        self.batches, self.val_every = plan_epoch(training, len(train))
        self.optimizer = module.configure_optimizers()
        self.schedule = LearningRate(self.optimizer, training, self.batches)
        self.step = TrainingStep(module.network, module.losses, self.optimizer, module.average, training, fabric.device)
        self.take_step: Callable[[Batch], Tensor] = self.step
        reason = why_not_captured(self.step)
        if reason is None:
            self.take_step = CapturedStep(self.step)
            if not is_capturable(self.optimizer):
                captured = ", ".join(FUSED)
                say(fabric, f"updates of {training.optimizer} are not captured: only those of {captured} can be")
        elif training.compile == "graph" or (training.compile != "none" and fabric.device.type == "cuda"):
            say(fabric, f"steps are not captured as a CUDA graph: {reason}")
        if training.detect_anomaly:
            add_nonfinite_hooks(module.network, gradients=training.precision != 16)
        self.progress, self.best_weights = Progress(), {}
        self._losses, self._throughput = AsyncLossQueue(), Throughput(fabric.device)
        self._display = Display(self.epochs, self.batches, fabric.is_global_zero)
        self._profiler = None if training.profiler is None else _create_profiler(training.profiler)
        self._signal: int | None = None

    def run(self) -> Fit:
        """Train to the end.

        Raises:
            InputError: a loss is not finite, or the checkpoint is damaged.
            TerminatedError: SIGTERM or SIGUSR1 came; a checkpoint has everything.
            KeyboardInterrupt: SIGINT came; likewise.
            torch.OutOfMemoryError: a batch does not fit into the GPU's memory.
        """
        if self.training.resume:
            # The other machines need not see the disk that it lies on.
            state = self.checkpoints.load() if self.fabric.is_global_zero else None
            if (state := self.fabric.broadcast(state)) is not None:
                self._restore(state)
        if self._profiler:
            self._profiler.setup(stage="fit", local_rank=self.fabric.local_rank)
        try:
            with self._noting_signals():
                while not self._is_finished():
                    self._train_epoch()
        finally:
            self._display.close()
            self.checkpoints.wait()
        if self._profiler:
            self._profiler.describe()
        self.module.eval_network.load_state_dict(self.best_weights)
        assert self.progress.best_epoch is not None  # noqa: S101  # there was a validation
        self._summarize()
        speeds = self.progress.images_per_second  # the first includes loading kernels and the capture
        return Fit(self.progress.best_epoch, self.progress.best_loss, statistics.median(speeds[1:] or speeds))

    def _summarize(self) -> None:
        """Have DVCLive show the validation whose weights are kept."""
        monitor, history = self.training.monitor, self.progress.history
        step, kept = min(
            ((step, metrics) for step, metrics in history if monitor in metrics), key=lambda it: it[1][monitor]
        )
        for logger in self.loggers:
            if isinstance(logger, DVCLiveLogger):
                logger.summarize(kept | {"epoch": (self.progress.best_epoch or 0) + 1}, step)

    def _is_finished(self) -> bool:
        stalls = self.progress.validations_since_best >= self.training.early_stopping_patience
        return self.progress.epoch >= self.epochs or (stalls and self.progress.batch == 0)

    def _train_epoch(self) -> None:
        progress, start = self.progress, time.perf_counter()
        self._set_train_mode()
        if isinstance(self.take_step, CapturedStep) and progress.epoch in (0, self.training.frozen_epochs):
            self.take_step.reset()
        batches = self.train.of_epoch(progress.epoch, progress.batch)
        for batch in islice(batches, self.batches - progress.batch):
            with self._profiler.profile("training_step") if self._profiler else nullcontext():
                self._train_batch(batch)
            metrics = self._validate() if progress.batch % self.val_every == 0 else {}
            ended = progress.batch == self.batches
            if ended:
                metrics |= self._end_epoch()
            if metrics:
                self._log(progress.step - 1, metrics)
            if ended:
                seconds = time.perf_counter() - start
                self._display.end_epoch(metrics, progress.images_per_second[-1], self._images, seconds)
            self._checkpoint()

    def _set_train_mode(self) -> None:
        self.module.set_train_mode(frozen=self.progress.epoch < self.training.frozen_epochs)

    def _train_batch(self, batch: Batch) -> None:
        progress = self.progress
        # Dropout's random numbers: of this step and process, whether or not training was resumed.
        seed = np.random.SeedSequence([self.training.seed, progress.step, self.fabric.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        self.schedule.before_step(progress.step)
        if progress.batch == 0:
            progress.first_rate = self.schedule.rate
        self._throughput.count(len(batch.labels) * self.fabric.world_size)
        loss = self.take_step(batch)
        taken = StepLoss(progress.epoch, progress.batch, progress.step, self.schedule.rate)
        progress.batch += 1
        progress.step += 1
        self._note(self._losses.put(taken, loss))
        self._display.advance(progress.epoch, progress.step)

    def _note(self, steps: list[StepLoss]) -> None:
        """Add up and log the losses of steps; stop at one that is not finite."""
        for step in steps:
            if not math.isfinite(step.loss):
                ids = ", ".join(self.train.image_ids(step.epoch, step.batch))
                raise InputError(
                    f"the training loss is {step.loss} in epoch {step.epoch + 1}, step {step.batch + 1} (learning rate "
                    f"{step.rate:.3g}), of the images {ids}; lower training.learning_rate, or find the layer with "
                    "training.detect_anomaly=true"
                )
            self.progress.loss_sum += step.loss
            if (step.step + 1) % self.training.log_every_n_steps == 0:
                self._log(step.step, {"step_loss": step.loss, "step_learning_rate": step.rate})

    def _end_epoch(self) -> dict[str, float]:
        """Move on to the next epoch; the metrics of this one."""
        self._note(self._losses.drain())
        progress = self.progress
        speed, self._images = self._throughput.of_epoch()
        progress.images_per_second.append(speed)
        metrics = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / self.batches,
            "learning_rate": progress.first_rate,
        }
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        return metrics

    def _validate(self) -> dict[str, float]:
        """Validate, and keep the weights if they are the best so far; the metrics."""
        self._note(self._losses.drain())  # no validation of weights that are not finite
        self._throughput.pause()
        logits, labels = self._predict_validation_images()
        metrics = {
            "val_loss": cross_entropy(logits, labels).item(),
            "val_calibrated_loss": calibrated_loss(logits.numpy(), labels.numpy()),
            "val_acc": (logits.argmax(dim=1) == labels).float().mean().item(),
        }
        progress, monitored = self.progress, metrics[self.training.monitor]
        if not math.isfinite(metrics["val_loss"]):
            raise InputError(
                f"the validation loss is {metrics['val_loss']} in epoch {progress.epoch + 1}; "
                "lower training.learning_rate"
            )
        progress.validations_since_best += 1
        if monitored < progress.best_loss:
            progress.best_epoch, progress.best_loss, progress.validations_since_best = progress.epoch, monitored, 0
            state = self.module.eval_network.state_dict()
            self.best_weights = {name: tensor.clone() for name, tensor in state.items()}
        self.schedule.after_validation(monitored)
        return metrics

    @torch.no_grad()
    def _predict_validation_images(self) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and labels (n,) of the validation images of all processes, on the CPU."""
        self.module.eval_network.eval()
        batches = islice(self.val, int(self.training.fast_dev_run) or None)
        pairs = [(self.module.validation_step(batch, 0, self.val.batch_size), batch.labels) for batch in batches]
        self._set_train_mode()
        logits, labels = zip(*pairs)
        return gather_rows(torch.cat(logits)), gather_rows(torch.cat(labels))

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        self.progress.history.append((step, metrics))
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def _checkpoint(self) -> None:
        """Save, if it is time, and stop, if a signal came: between two batches, where no work is unfinished."""
        finished, batch = self._is_finished(), self.progress.batch
        if self.fabric.world_size > 1 and batch % AGREE_EVERY and not finished:
            return
        stop, due = any_process(self._signal is not None, self.checkpoints.is_due(), device=self.fabric.device)
        # A finished network of an ensemble is not trained again if a later one is killed.
        if stop or due or finished:
            self._note(self._losses.drain())
            self._throughput.pause()
            if self.fabric.is_global_zero:
                self.checkpoints.save(self._state())
        if stop and not finished:
            self.checkpoints.wait()
            self.fabric.barrier()
            self._stop()

    def _state(self) -> dict[str, Any]:
        return {
            "module": dict(self.module.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "best": self.best_weights,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate  # the tensor that a captured step reads
        self.step.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        self.best_weights = {name: tensor.to(self.fabric.device) for name, tensor in state["best"].items()}
        for step, metrics in self.progress.history:
            for logger in self.loggers:
                logger.log_metrics(metrics, step)
        position = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}"
        say(self.fabric, f"resuming from {self.checkpoints.path}: {position}")

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Note SIGTERM, SIGUSR1 and SIGINT, for `_checkpoint` to stop at; a second SIGINT stops at once.

        SIGUSR1 is what SLURM's users have it send before the time limit.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal == number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        if threading.current_thread() is not threading.main_thread():  # which Python does not send signals to
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        kept = f"{self.checkpoints.path} holds everything: the same command resumes from there"
        if not self.checkpoints.last_save_ok:
            kept = "there was no space for a checkpoint: the same command resumes from the previous one, if any"
        if self._signal == signal.SIGINT:
            say(self.fabric, f"interrupted; {kept}")
            raise KeyboardInterrupt
        if not self.fabric.is_global_zero:
            sys.exit(1)  # the first process says why
        raise TerminatedError(f"terminated; {kept}")


def _create_profiler(name: str) -> Any:
    from pytorch_lightning import profilers  # which takes seconds

    kinds = {
        "simple": profilers.SimpleProfiler,
        "advanced": profilers.AdvancedProfiler,
        "pytorch": profilers.PyTorchProfiler,
    }
    return kinds[name](dirpath=PROFILES, filename=name)


def plan_epoch(training: TrainingConfig, batches: int) -> tuple[int, int]:
    """How many batches of an epoch of `batches` are trained on, and after how many of them to validate.

    Raises:
        InputError: these are too few for what the parameters say.
    """
    if few := int(training.fast_dev_run):
        trained_on = min(few, batches)
        return trained_on, trained_on
    name = "overfit_batches" if training.overfit_batches else "limit_train_batches"
    part = getattr(training, name)
    trained_on = min(part, batches) if isinstance(part, int) else int(part * batches)
    if not trained_on:
        raise InputError(
            f"training.{name} is {part}, which is less than one batch: an epoch has {batches}; set it to a fraction of "
            f"at least 1/{batches}, or to a number of batches"
        )
    interval = training.val_check_interval
    if isinstance(interval, int) and interval > trained_on:
        raise InputError(
            f"training.val_check_interval is {interval}, but an epoch is trained on {trained_on} "
            f"batches; set it to a number of batches up to {trained_on}, or to a fraction such as 1.0"
        )
    return trained_on, interval if isinstance(interval, int) else max(1, int(interval * trained_on))
