"""TrainingModule: the network, its loss and its optimizer."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from stages.classifier.networks import NormalizedNetwork, create_network, last_layers, pad_batch
from stages.config import Config
from stages.dataset.augmentation import as_float, augment_batch
from stages.dataset.encoding import MetadataEncoding
from stages.dataset.loaders import Batch, class_weights
from stages.training.optimization import WeightAverage, check_optimizer, create_optimizer
from stages.training.small_maps import SmallMapGradients

NEVER = -1e4  # added to a logit: a probability of 0, whose product with a target of 0 is 0 and not NaN
PRECISIONS = {"bf16": torch.bfloat16, 16: torch.float16, 32: None}


class TrainingModule(nn.Module):
    """A network with what it is trained for.

    `TrainingLoop` trains it. `SkinLesionClassifier` is the same as a LightningModule, which takes seconds to import.

    Args:
        config: which network, and how to fit it; its precision is none of `auto`.
        image_size: side of its images, in pixels.
        class_counts: training images of each class, shape (sources, classes), as of `SplitImages.class_counts`; a
            source is only taught to tell apart the classes that it has.
        encoding: of the metadata that the network takes; None: it takes none.
        teacher: whose probabilities the network learns, too; on the device, and in evaluation mode. None: none.

    Attributes:
        network: what is trained.
        average: of its weights over the steps; None without `training.ema_decay`.

    Raises:
        InputError: timm has no such network or optimizer, or the weights are not available.
    """

    def __init__(
        self, config: Config, image_size: int, class_counts: Tensor, encoding: MetadataEncoding | None = None,
        teacher: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        training = config.training
        check_optimizer(training.optimizer)
        self.config = config
        self.network = create_network(config.model, image_size, encoding)
        # The function alone: as a module it would be trained, saved in every checkpoint and switched to training mode.
        self.teacher = None if teacher is None else teacher.forward
        self.average = WeightAverage(self.network, training.ema_decay) if training.ema_decay else None
        balance, strength = training.class_balance, training.class_balance_strength
        weights = class_weights(class_counts, strength).float() if balance == "weights" else None
        # What no source has is compared with what they have: else nothing would keep it from being predicted.
        counts = class_counts.where(class_counts.any(dim=0), 1)
        self.prior_strength = strength if balance == "logits" else 0.0
        self.class_weights: Tensor | None
        self.class_shares: Tensor
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("class_shares", counts / counts.sum(dim=1, keepdim=True), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.mean.device

    @property
    def eval_network(self) -> NormalizedNetwork:
        """What is validated and kept: the network, or the average of its weights."""
        return self.network if self.average is None else self.average.network

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Map float images (n, 3, size, size) in [0, 1], and their metadata, to logits (n, num_classes)."""
        return self.eval_network(images, metadata)

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The training loss of each image of a batch, shape (n,): cross-entropy in nats, after augmentation.

        A teacher sees the same augmented and mixed images, with the same metadata (Beyer et al., Knowledge
        distillation: a good teacher is patient and consistent, CVPR 2022), and `training.teacher_weight` of the loss is
        the cross-entropy with its probabilities. What balances the classes is of the labels alone: the logits
        themselves learn to be the teacher's.
        """
        training, classes = self.config.training, int(self.config.model.num_classes)
        targets = (batch.labels[:, None] == torch.arange(classes, device=batch.labels.device)).float()
        if self.class_weights is not None:
            targets = targets * self.class_weights[batch.sources]
        shares, metadata = self.class_shares[batch.sources], batch.metadata
        if batch.augment_params is None:
            pixels = as_float(batch.images)
        else:
            # Where the network computes in 16 bits, its images need no more; and fewer bytes are moved.
            exact = batch.images.device.type == "cpu" or training.precision == 32
            dtype = torch.float32 if exact else torch.float16
            # What is mixed of two images has their mixed targets, metadata and shares of their sources.
            rows = [targets, shares, *([] if metadata is None else [metadata])]
            pixels, mixed = augment_batch(
                batch.images, torch.cat(rows, dim=1), batch.augment_params, self.config.data, dtype
            )
            targets, shares, *more = mixed.split([row.shape[1] for row in rows], dim=1)
            metadata = more[0] if more else None
        is_compared = shares > 0
        if training.label_smoothing:
            spread = targets.sum(dim=1, keepdim=True) * is_compared / is_compared.sum(dim=1, keepdim=True)
            targets = targets.lerp(spread, training.label_smoothing)
        # Menon et al., Long-tail learning via logit adjustment, ICLR 2021: the network need not learn frequencies. With
        # those of each source at strength 1 nothing is left to gain from telling the source.
        prior = (self.prior_strength * shares.log()).masked_fill(~is_compared, NEVER)
        logits = self._logits(network, pixels, metadata)
        losses = cross_entropy(logits + prior, targets, reduction="none")
        if self.teacher is not None:
            with torch.no_grad():
                taught = self._logits(self.teacher, pixels, metadata).softmax(dim=1)
            losses = losses.lerp(cross_entropy(logits, taught, reduction="none"), training.teacher_weight)
        return losses

    def _logits(self, network: Callable[..., Tensor], pixels: Tensor, metadata: Tensor | None) -> Tensor:
        device, precision = pixels.device.type, PRECISIONS[self.config.training.precision]
        eager = device == "cpu" and precision is None and self.config.training.compile != "inductor"
        gradients = SmallMapGradients() if eager else nullcontext()
        with torch.autocast(device, precision, enabled=precision is not None), gradients:
            return network(pixels, metadata).float()

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """The mean training loss of a batch, in nats."""
        return self.losses(self.network, batch).mean()

    def validation_step(self, batch: Batch, batch_idx: int = 0, batch_size: int = 0) -> Tensor:
        """Logits of a batch, shape (n, num_classes).

        Args:
            batch: of images that are not augmented.
            batch_idx: of no effect.
            batch_size: images to pad the batch to, so that a GPU meets one shape only.
        """
        images = pad_batch(batch.images, batch_size)
        metadata = None if batch.metadata is None else pad_batch(batch.metadata, batch_size)
        return self._logits(self.eval_network, as_float(images), metadata)[: len(batch.labels)]

    def configure_optimizers(self) -> Optimizer:
        """timm's optimizer of the name `training.optimizer`."""
        return create_optimizer(self.network.backbone, self.config.training, self.device)

    def set_train_mode(self, frozen: bool) -> None:
        """Make the network ready for training: all of it, or its last layer only."""
        backbone = self.network.backbone
        head = tuple(f"{name}." for name in last_layers(backbone))
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith(head))
        for name, layer in backbone.named_modules():
            # Nor do frozen features drift with the statistics of the batches.
            layer.training = not frozen or f"{name}.".startswith(head)
