"""SkinLesionClassifier: what one step, one validation and the optimizer are."""

import math

import timm.optim
import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from stages.classifier.networks import create_network
from stages.config import ModelConfig, TrainingConfig
from stages.dataset.augmentation import as_float, augment
from stages.dataset.loaders import Batch
from stages.errors import InputError


class SkinLesionClassifier(LightningModule):
    """A network with the way it is trained.

    Logs once an epoch: train_loss and val_loss (mean cross-entropy, in nats) and val_acc (fraction of images).

    Args:
        model: which network.
        training: how to fit it.
        image_size: pixels of a side of its images.
        augmented: whether training images are augmented.

    Raises:
        InputError: timm has no such network or optimizer, or the weights cannot be had.
    """

    def __init__(self, model: ModelConfig, training: TrainingConfig, image_size: int, augmented: bool = True) -> None:
        super().__init__()
        if training.optimizer not in timm.optim.list_optimizers():
            raise InputError(
                f"training.optimizer is {training.optimizer!r}; timm has {', '.join(timm.optim.list_optimizers())}"
            )
        self.network = create_network(model, image_size)
        self.training_config = training
        self.augmented = augmented
        self.val_acc = MulticlassAccuracy(model.num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (n, 3, size, size) in [0, 1] to logits (n, num_classes)."""
        return self.network(images)

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = augment(batch.images, batch.uniforms) if self.augmented else as_float(batch.images)
        loss = cross_entropy(self(images), batch.labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(as_float(batch.images)).float()
        self.val_acc(logits, batch.labels)
        size = len(batch.labels)
        self.log("val_loss", cross_entropy(logits, batch.labels), prog_bar=True, batch_size=size)
        self.log("val_acc", self.val_acc, prog_bar=True, batch_size=size)

    def configure_optimizers(self) -> dict:
        """timm's optimizer of that name, weight decay on weights only, and the schedule of its learning rate."""
        training = self.training_config
        try:
            optimizer = timm.optim.create_optimizer_v2(
                self.network, opt=training.optimizer, lr=training.learning_rate, weight_decay=training.weight_decay
            )
        except Exception as error:  # timm lists optimizers of packages that are not installed, or that need a GPU
            raise InputError(
                f"training.optimizer is {training.optimizer!r}, which cannot be used here: {error}"
            ) from None
        if training.lr_scheduler == "reduce_on_plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=training.lr_gamma, patience=training.lr_plateau_patience
            )
            schedule = {"scheduler": scheduler, "interval": "epoch", "monitor": "val_loss"}
        else:
            factor = learning_rate_factor(training, self._steps_per_epoch())
            schedule = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        self._warm_up()

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        self._warm_up()

    def _warm_up(self) -> None:
        """Set the rate of the next step under reduce_on_plateau, which looks at val_loss and knows no steps."""
        training = self.training_config
        if training.lr_scheduler != "reduce_on_plateau":
            return
        steps = self._steps_per_epoch()
        if self.global_step <= math.ceil(training.lr_warmup_epochs * steps):
            for group in self.optimizers().param_groups:
                group["lr"] = training.learning_rate * learning_rate_factor(training, steps)(self.global_step)

    def _steps_per_epoch(self) -> float:
        return self.trainer.estimated_stepping_batches / self.training_config.max_epochs


def learning_rate_factor(training: TrainingConfig, steps_per_epoch: float):
    """The schedule as a function from the step, counted from 0, to the factor of `training.learning_rate`.

    For reduce_on_plateau, only its warm-up.

    Cosine: Loshchilov & Hutter, SGDR, ICLR 2017, one period without restart.
    """

    def factor(step: int) -> float:
        epoch, warmup = step / steps_per_epoch, training.lr_warmup_epochs
        if epoch < warmup:
            return (step + 1) / (warmup * steps_per_epoch + 1)
        if training.lr_scheduler == "reduce_on_plateau":
            return 1.0
        if training.lr_scheduler == "step":
            return training.lr_gamma ** (epoch // training.lr_step_epochs)
        progress = min(1.0, (epoch - warmup) / max(1e-9, training.max_epochs - warmup))
        if training.lr_scheduler == "exponential":
            return training.lr_gamma**progress
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor
