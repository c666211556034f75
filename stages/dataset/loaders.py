"""Batches of prepared images, on the device that trains, in an order that only the seed and the epoch decide."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.dataset.augmentation import UNIFORMS_PER_IMAGE
from stages.dataset.folds import SPLITS
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import class_names, class_of
from stages.errors import InputError
from stages.files import read_csv

# The rest is for the network: activations of a batch are larger than its images.
LARGEST_SHARE_OF_GPU_MEMORY = 0.5


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        images: uint8, shape (n, size, size, 3), RGB.
        labels: int64, shape (n,), numbers of classes.
        uniforms: float32, shape (n, UNIFORMS_PER_IMAGE), what augmentation draws from; None where nothing is augmented.
    """

    images: Tensor
    labels: Tensor
    uniforms: Tensor | None


class SplitImages:
    """The images of one split with their labels.

    Args:
        store: the prepared images.
        split: the split's name.
        split_file: the table that `split` wrote.
        num_classes: 2 for benign and malignant, 7 for the diagnoses.

    Attributes:
        table: the rows of the manifest in the split.
        indices: where they stand in the store, shape (n,).
        labels: int64, shape (n,).

    Raises:
        InputError: the table is not of the same images as the store, or has none in the split.
    """

    def __init__(self, store: PixelStore, split: str, split_file: Path, num_classes: int) -> None:
        assignment = read_csv(split_file, ["image_id", "lesion_id", "fold", "split"])
        if list(assignment["image_id"]) != list(store.manifest["image_id"]):
            raise InputError(f"{split_file} is not of the prepared images; `dvc repro` makes it again")
        unknown = sorted(set(assignment["split"]) - set(SPLITS))
        if unknown:
            raise InputError(f"{split_file}: unknown split {unknown[0]!r}; it must be one of {', '.join(SPLITS)}")
        self.store = store
        self.indices = np.flatnonzero(assignment["split"] == split)
        if not len(self.indices):
            raise InputError(f"{split_file} has no image in the split {split}; `dvc repro` makes it again")
        self.table = store.manifest.iloc[self.indices].reset_index(drop=True)
        classes = class_names(num_classes)
        self.labels = torch.tensor([classes.index(class_of(dx, num_classes)) for dx in self.table["dx"]])

    def __len__(self) -> int:
        return len(self.indices)


class Batches:
    """Batches of a split on `device`, for as many epochs as they are iterated.

    With a `seed` the order is shuffled and comes with random numbers for augmentation; both depend on the seed and the
    epoch alone, not on the device, and the last images of the shuffled order that do not fill a batch are left out: a
    step over two images has a gradient of noise. Without a seed, every image comes once, in the order of the split.
    """

    def __init__(self, images: SplitImages, batch_size: int, device: torch.device, seed: int | None = None) -> None:
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.device = device
        self.seed = seed
        self.epoch = 0
        self._labels = images.labels.to(device)
        self._resident = self._upload() if device.type == "cuda" else None

    def _upload(self) -> Tensor | None:
        """All pixels of the split on the GPU, or None where they would crowd the network out."""
        free, _ = torch.cuda.mem_get_info(self.device)
        if len(self.images) * self.images.store.image_size**2 * 3 > LARGEST_SHARE_OF_GPU_MEMORY * free:
            return None
        return torch.from_numpy(self.images.store.read(self.images.indices)).to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random numbers of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        count, size = len(self.images), self.batch_size
        return -(-count // size) if self.seed is None else count // size

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.images)
        if self.seed is None:
            order, uniforms = np.arange(count), None
        else:
            random = np.random.default_rng([self.seed, self.epoch])
            order = random.permutation(count)
            uniforms = torch.from_numpy(random.random((count, UNIFORMS_PER_IMAGE), np.float32)).to(self.device)
        on_device = torch.from_numpy(order).to(self.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield Batch(
                images=self._gather(order[batch], on_device[batch]),
                labels=self._labels[on_device[batch]],
                uniforms=None if uniforms is None else uniforms[batch],
            )

    def _gather(self, rows: np.ndarray, on_device: Tensor) -> Tensor:
        if self._resident is not None:
            return self._resident[on_device]
        return torch.from_numpy(self.images.store.read(self.images.indices[rows])).to(self.device)
