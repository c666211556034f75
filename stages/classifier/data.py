"""The batches of a training, for as many processes as train together."""

import torch
from pytorch_lightning import LightningDataModule

from stages.config import Config
from stages.dataset.loaders import Batches, Shuffle, SplitImages

# Smaller batches would be launched more slowly than they are computed. Where training takes as many images at a time,
# validation finds its convolutions planned: cuDNN takes 2 to 3 seconds for those of EfficientNet-B0.
SMALLEST_VALIDATION_BATCH = 128


class SkinLesionData(LightningDataModule):
    """Training and validation images as batches on the device of this process.

    A training batch holds the images of a whole step of the optimizer, `batch_size` × `accumulate_grad_batches`, which
    go through the network one `batch_size` at a time.

    Args:
        train: the training images.
        val: the validation images.
        config: how they are gone through.

    Attributes:
        batch_size: images of one device that go through the network at a time: `training.batch_size`.
    """

    def __init__(self, train: SplitImages, val: SplitImages, config: Config) -> None:
        super().__init__()
        self.train_images, self.val_images, self.config = train, val, config
        self.batch_size = config.training.batch_size

    @property
    def class_counts(self) -> torch.Tensor:
        """Training images of each class, shape (classes,)."""
        return torch.bincount(self.train_images.labels, minlength=self.train_images.num_classes)

    def train_dataloader(self) -> Batches:
        training = self.config.training
        return self._batches(
            self.train_images,
            self.batch_size * training.accumulate_grad_batches,
            Shuffle(
                seed=training.seed,
                augmentation=self.config.data if self.config.data.augment else None,
                balance=training.class_balance_strength if training.class_balance == "sampling" else 0.0,
                repeated=training.overfit_batches > 0,
            ),
        )

    def val_dataloader(self) -> Batches:
        return self._batches(self.val_images, max(self.batch_size, SMALLEST_VALIDATION_BATCH))

    def _batches(self, images: SplitImages, batch_size: int, shuffle: Shuffle | None = None) -> Batches:
        trainer = self.trainer
        return Batches(
            images,
            batch_size,
            trainer.strategy.root_device,
            shuffle,
            trainer.global_rank,
            trainer.world_size,
            self.config.runtime.num_workers,
        )
