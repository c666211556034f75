"""SkinLesionClassifier: what one step, one validation and the loss are."""

import math

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from stages.classifier.anomaly import name_the_first_layer_that_is_not_finite
from stages.classifier.checkpoints import Checkpoints
from stages.classifier.networks import create_network, fill_up, last_layers
from stages.classifier.optimization import LearningRate, WeightAverage, check_optimizer, create_optimizer
from stages.classifier.step import LossReader, StepLoss, TrainingStep, average_over_processes, more_parts
from stages.classifier.temperature import calibrated_loss
from stages.config import Config
from stages.dataset.augmentation import as_float, augment_batch
from stages.dataset.loaders import Batch
from stages.errors import InputError

PRECISIONS = {"bf16": torch.bfloat16, 16: torch.float16, 32: None}


class SkinLesionClassifier(LightningModule):
    """A network with the way it is trained.

    Steps are taken by a `TrainingStep` (Lightning's manual optimization), so that they can be captured as CUDA graphs.
    Logs once an epoch: train_loss and val_loss (mean loss and mean cross-entropy, in nats), val_calibrated_loss (the
    latter as `CalibratedLoss` has it), val_acc (fraction of the images) and learning_rate (that of the epoch's first
    step).

    Args:
        config: which network, and how to fit it.
        image_size: pixels of a side of its images.
        class_counts: training images of each class, shape (classes,); for `training.class_balance`.

    Attributes:
        network: what is trained.
        kept: what is validated and kept: the network, or the average of its weights.

    Raises:
        InputError: timm has no such network or optimizer, or the weights cannot be had.
    """

    def __init__(self, config: Config, image_size: int, class_counts: Tensor | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_optimizer(config.training.optimizer)
        self.config, self.image_size = config, image_size
        self.network = create_network(config.model, image_size)
        decay = config.training.ema_decay
        self.average = WeightAverage(self.network, decay) if decay else None
        self.val_acc = MulticlassAccuracy(config.model.num_classes, average="micro", validate_args=False)
        self.val_calibrated_loss = CalibratedLoss()
        training, weights, adjustment = config.training, None, None
        if class_counts is not None:
            class_counts = class_counts.clamp(min=1)
        if training.class_balance == "weights":
            # At full strength every class counts as much as any other; the mean weight of the training images is 1.
            weights = class_counts.float() ** -training.class_balance_strength
            weights *= class_counts.sum() / (class_counts * weights).sum()
        if training.class_balance == "logits":
            adjustment = training.class_balance_strength * (class_counts / class_counts.sum()).log()
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("logit_adjustment", adjustment, persistent=False)
        self.take_step: TrainingStep | None = None
        self._learning_rate: LearningRate | None = None
        self._reader = LossReader()
        self._loss_sum, self._steps, self._first_rate = 0.0, 0, 0.0
        self._restored = False
        self._val_parts = 1

    @property
    def kept(self) -> nn.Module:
        return self.network if self.average is None else self.average.network

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (n, 3, size, size) in [0, 1] to logits (n, num_classes)."""
        return self.kept(images)

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The training loss of each image of a batch, shape (n,): cross-entropy in nats, after augmentation."""
        training, classes = self.config.training, self.config.model.num_classes
        targets = (batch.labels[:, None] == torch.arange(classes, device=batch.labels.device)).float()
        if batch.augment_params is None:
            pixels = as_float(batch.images)
        else:
            # Where the network computes in 16 bits, its images need no more; and fewer bytes are moved.
            exact = batch.images.device.type == "cpu" or training.precision == 32
            dtype = torch.float32 if exact else torch.float16
            pixels, targets = augment_batch(batch.images, targets, batch.augment_params, self.config.data, dtype)
        logits = self._logits(network, pixels)
        if self.logit_adjustment is not None:
            # Menon et al., Long-tail learning via logit adjustment, ICLR 2021: frequencies are no task of the network.
            logits = logits + self.logit_adjustment
        return cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=training.label_smoothing,
            reduction="none",
        )

    def _logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        precision = PRECISIONS[self.config.training.precision]
        with torch.autocast(pixels.device.type, precision, enabled=precision is not None):
            return network(pixels).float()

    def configure_optimizers(self) -> Optimizer:
        """timm's optimizer of that name; `LearningRate` sets its rate."""
        return create_optimizer(self.network.backbone, self.config.training, self.device)

    def on_train_start(self) -> None:
        """Take the optimizer, which Lightning has moved to the device, and with several processes make them differ."""
        training, optimizer = self.config.training, self.optimizers(use_pl_optimizer=False)
        # Weights were drawn from one seed; dropout is drawn from one of each process's own.
        torch.manual_seed(training.seed + self.global_rank)
        self.take_step = TrainingStep(
            self.network, self.losses, optimizer, self.average, training, self.device, self.print
        )
        if training.detect_anomaly:
            name_the_first_layer_that_is_not_finite(self.network, gradients=training.precision != 16)
        self._learning_rate = LearningRate(optimizer, training, self.trainer.num_training_batches)

    def progress(self) -> dict:
        """What `restore` needs besides the weights and the optimizer, as numbers; waits for the GPU."""
        self._note(self._reader.drain())
        return {
            "loss_sum": self._loss_sum,
            "steps": self._steps,
            "first_rate": self._first_rate,
            "learning_rate": self._learning_rate.state_dict(),
            "parts": self.take_step.parts,
            "val_parts": self._val_parts,
        }

    def restore(self, progress: dict, in_epoch: bool) -> None:
        """Go on from what `progress` gave, in the middle of an epoch or at its start."""
        self._loss_sum, self._steps, self._first_rate = (progress[name] for name in ("loss_sum", "steps", "first_rate"))
        self._learning_rate.load_state_dict(progress["learning_rate"])
        self.take_step.parts, self._val_parts = progress["parts"], progress["val_parts"]
        self._restored = in_epoch

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.set_epoch(self.current_epoch)
        if not self._restored:
            self._loss_sum, self._steps = 0.0, 0
        self._restored = False
        self._freeze(self.current_epoch < self.config.training.frozen_epochs)

    def _freeze(self, frozen: bool) -> None:
        """Let only the last layer learn, or all."""
        backbone = self.network.backbone
        if self.config.training.frozen_epochs == 0:
            return
        head = tuple(f"{name}." for name in last_layers(backbone))
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith(head))
        for name, layer in backbone.named_modules():
            # Frozen features do not drift with the statistics of the batches either.
            layer.train(not frozen or f"{name}.".startswith(head))
        if self.current_epoch in (0, self.config.training.frozen_epochs):
            self.take_step.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step = self.global_step
        self._learning_rate.before_step(step)
        if batch_idx == 0:
            self._first_rate = self._learning_rate.rate
        loss = self.take_step(batch)
        # Lightning counts calls of optimizer.step, and a replayed graph makes none.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        taken = StepLoss(self.current_epoch, batch_idx, step, self._learning_rate.rate, float("nan"))
        self._note(self._reader.put(taken, loss))
        if self.trainer.is_last_batch:
            self._note(self._reader.drain())
            self._log_epoch("train_loss", self._loss_sum / self._steps)
            self._log_epoch("learning_rate", self._first_rate)
            if self.take_step.parts > 1:
                self._log_epoch("parts_of_a_batch", float(self.take_step.parts))

    def _log_epoch(self, name: str, value: float) -> None:
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _note(self, steps: list[StepLoss]) -> None:
        """Add up and log the losses of steps; stop at one that is not finite."""
        for step in steps:
            if not math.isfinite(step.loss):
                raise self._diverged(step)
            self._loss_sum += step.loss
            self._steps += 1
            if (step.step + 1) % self.trainer.log_every_n_steps == 0:
                for logger in self.loggers:
                    logger.log_metrics({"step_loss": step.loss, "step_learning_rate": step.rate}, step=step.step)

    def _diverged(self, step: StepLoss) -> InputError:
        ids = self.trainer.train_dataloader.image_ids(step.batch)
        return InputError(
            f"the training loss is {step.loss} in epoch {step.epoch + 1}, step {step.batch + 1} (learning rate "
            f"{step.rate:.3g}), of the images {', '.join(ids)}; {self._last_good()} lower training.learning_rate, or "
            "find the layer with training.detect_anomaly=true"
        )

    def _last_good(self) -> str:
        saved = next(callback for callback in self.trainer.callbacks if isinstance(callback, Checkpoints))
        if saved.holds is None:
            return "there is no checkpoint from before it;"
        epoch, batch = saved.holds
        return f"{saved.path} holds the training before batch {batch + 1} of epoch {epoch + 1};"

    def on_validation_start(self) -> None:
        # Before anything is validated or saved: weights that are not finite are not worth it.
        self._note(self._reader.drain())
        # Each process has normalised with statistics of its own images.
        average_over_processes([buffer for buffer in self.buffers() if buffer.is_floating_point()])

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients, which Lightning would drop: they lie where the captured step writes them."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size, full = len(batch.labels), self.trainer.val_dataloaders.batch_size
        logits = self._validated(fill_up(batch.images, full))[:size]
        self.val_acc(logits, batch.labels)
        self.val_calibrated_loss.update(logits, batch.labels)
        loss = cross_entropy(logits, batch.labels)
        self.log("val_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val_calibrated_loss", self.val_calibrated_loss, batch_size=size)
        self.log("val_acc", self.val_acc, prog_bar=True, batch_size=size)

    def _validated(self, images: Tensor) -> Tensor:
        """Logits of uint8 images, in as many parts as memory needs.

        Raises:
            InputError: not even one image fits into the GPU's memory.
        """
        while True:
            try:
                parts = images.tensor_split(self._val_parts)
                return torch.cat([self._logits(self.kept, as_float(part)) for part in parts])
            except torch.OutOfMemoryError:
                pass  # handled outside: the exception holds on to the tensors of the network
            self.take_step.reset()  # what a captured step works in is kept from everything else
            self._val_parts = more_parts(self._val_parts, len(images))
            self.print(f"out of memory in validation: going on with {math.ceil(len(images) / self._val_parts)} images")

    def on_validation_epoch_end(self) -> None:
        val_loss = self.trainer.callback_metrics["val_loss"].item()
        if not math.isfinite(val_loss):
            raise InputError(
                f"the validation loss is {val_loss} in epoch {self.current_epoch + 1}; {self._last_good()} "
                "lower training.learning_rate"
            )
        self._learning_rate.after_validation(self.trainer.callback_metrics[self.config.training.monitor].item())


class CalibratedLoss(Metric):
    """`calibrated_loss` of the images of a whole validation, in nats.

    A network that trains on grows too sure of itself, and its cross-entropy rises, while it still learns to tell the
    classes apart. `evaluate` divides the logits by a temperature: what the loss rose by is not lost.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits of shape (n, classes), labels of shape (n,)."""
        self.logits.append(logits)
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The loss of all batches, of all processes."""
        logits, labels = (dim_zero_cat(values).cpu().numpy() for values in (self.logits, self.labels))
        return torch.tensor(calibrated_loss(logits, labels), device=self.device)
