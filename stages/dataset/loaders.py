"""Batches of prepared images, on the device that trains, in an order that only the seed and the epoch decide."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.config import DataConfig
from stages.dataset.augmentation import sample_params
from stages.dataset.encoding import MetadataEncoding
from stages.dataset.folds import read_split, validated_on
from stages.dataset.pixels import PixelStore
from stages.dataset.streaming import stream
from stages.dataset.taxonomy import classes_of, numbers_of
from stages.errors import InputError, regenerate

# The rest is for the network: activations of a batch are larger than its images.
LARGEST_SHARE_OF_GPU_MEMORY = 0.5


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        images: uint8, shape (n, size, size, 3), RGB.
        labels: int64, shape (n,), numbers of classes.
        augment_params: float32, shape (n, k), the parameters of `augment_batch`; None where nothing is augmented.
        sources: int64, shape (n,), numbers of datasets.
        metadata: float32, shape (n, numbers), of `MetadataEncoding`; None where the network takes none.
    """

    images: Tensor
    labels: Tensor
    augment_params: Tensor | None
    sources: Tensor
    metadata: Tensor | None = None


class SplitImages:
    """The images of one split with their labels.

    Args:
        store: the prepared images.
        split: the split's name.
        split_file: the table that `split` wrote.
        num_classes: as `model.num_classes`: 2 for benign and malignant, or all diagnoses.
        val_fold: that validates instead of the one that the table says, which is left out then.
        encoding: of the metadata that the network takes; None: it takes none.

    Attributes:
        table: the rows of the manifest in the split.
        indices: their positions in the store, shape (n,).
        labels: int64, shape (n,).
        classes: what the labels are numbers of.
        sources: int64, shape (n,): each image's place among the store's several datasets; 0 where there is one.
        encoding: of the metadata.
        metadata: what it makes of them, float32, shape (n, numbers); None without it.

    Raises:
        InputError: the table is not of the same images as the store, or has none in the split; or the images have not
            so many diagnoses.
    """

    def __init__(
        self,
        store: PixelStore,
        split: str,
        split_file: Path,
        num_classes: int | str,
        val_fold: int | None = None,
        encoding: MetadataEncoding | None = None,
    ) -> None:
        assignment = read_split(split_file, store.manifest)
        if val_fold is not None:
            assignment = validated_on(assignment, val_fold)
        self.store = store
        self.classes = classes_of(store.taxonomy, num_classes)
        self.indices = np.flatnonzero(assignment["split"] == split)
        if not len(self.indices):
            raise regenerate(f"{split_file} has no image in the split {split}")
        self.table = store.manifest.iloc[self.indices].reset_index(drop=True)
        self.labels = torch.from_numpy(numbers_of(self.table["dx"], store.taxonomy, self.classes))
        names = list(store.sources)
        places = pd.Index(names).get_indexer_for(pd.Index(self.table["dataset"])) if names else np.zeros(len(self), int)
        self.sources = torch.from_numpy(places)
        self.encoding = encoding
        self.metadata = None if encoding is None else encoding.encode(self.table)

    def __len__(self) -> int:
        return len(self.indices)

    def class_counts(self, within_sources: bool) -> Tensor:
        """Images of each class by the numbers of the sources, int64, shape (sources, classes).

        Args:
            within_sources: those of the source; else of all sources together, the same in every row.

        Raises:
            InputError: within sources, nothing compares some of the classes with the others.
        """
        shape = max(1, len(self.store.sources)), len(self.classes.names)
        counts = torch.bincount(self.sources * shape[1] + self.labels, minlength=shape[0] * shape[1]).view(shape)
        if not within_sources:
            return counts.sum(dim=0).expand(shape)
        has = counts > 0
        compared = has[has.any(dim=1)][0]
        for _ in has:  # with what a source has beside these, and another beside those …
            compared = has[(has & compared).any(dim=1)].any(dim=0)
        alone = has.any(dim=0) & ~compared
        if alone.any():
            these, those = (
                ", ".join(name for name, is_one in zip(self.classes.names, of) if is_one) for of in (compared, alone)
            )
            raise InputError(
                f"training.class_balance_within is source, but no source of the training images has both of {these} "
                f"and of {those}, so that nothing teaches to tell these apart: set it to all, or add such a source"
            )
        return counts


def class_weights(counts: Tensor, strength: float) -> Tensor:
    """Weights that balance the classes within each source, whose images have the mean weight 1.

    Args:
        counts: as of `SplitImages.class_counts`.
        strength: power of a class's frequency: at 1 every class of a source weighs as much as any other.

    Returns:
        float64, shape (sources, classes).
    """
    weights = counts.clamp(min=1).double() ** -strength
    return weights * counts.sum(dim=1, keepdim=True) / (counts * weights).sum(dim=1, keepdim=True)


class SamplingConfig(NamedTuple):
    """How training goes through its images.

    Attributes:
        seed: of the order and of augmentation.
        augmentation: whose parameters are sampled; None where nothing is augmented.
        balance: draw images with replacement, those of a class in inverse proportion to this power of its size: 1 draws
            all classes equally often. 0: every image comes once.
        within_sources: balance the classes of each source by themselves, and draw from it as often as it has images.
        repeated: the order and the augmentation of the first epoch in every epoch.
    """

    seed: int
    augmentation: DataConfig | None = None
    balance: float = 0.0
    within_sources: bool = False
    repeated: bool = False


# Rows of a split, and of each augment_params and metadata.
Order = tuple[Tensor, Tensor | None, Tensor | None]


class Batches:
    """Batches of a split on `device`, for as many epochs as they are iterated.

    With `sampling` the order is random and comes with random numbers for augmentation, and metadata are lost at random;
    all of it depends on the seed and the epoch alone, not on the device nor on how the images get there, and the last
    images of the order that do not fill a batch are left out: a step over two images has a gradient of noise. Without
    it, every image comes once, in the order of the split.

    On a GPU all images of the split lie in its memory if half of what is free holds them; else they are read ahead.

    Args:
        images: of which split.
        batch_size: images of a batch on this device, fewer where the split has fewer.
        device: where batches are wanted.
        sampling: for training.
        rank: which of the processes that share the images this is, from 0.
        world_size: how many of them there are. Each gets its part of every step's images.
        threads: that read ahead; they change nothing in what is read.
    """

    def __init__(
        self,
        images: SplitImages,
        batch_size: int,
        device: torch.device,
        sampling: SamplingConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
    ) -> None:
        self.images = images
        self.batch_size = max(1, min(batch_size, len(images) // world_size))
        self.device = device
        self.sampling = sampling
        self.rank, self.world_size, self.threads = rank, world_size, threads
        self._labels, self._sources = images.labels.to(device), images.sources.to(device)
        self._resident = self._upload() if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="order")
        self._prefetched: dict[int, Future[Order]] = {}  # by epoch

    def _upload(self) -> Tensor | None:
        """All pixels of the split on the GPU, or None where they would leave too little memory for the network."""
        free, _ = torch.cuda.mem_get_info(self.device)
        if len(self.images) * self.images.store.image_size**2 * 3 > LARGEST_SHARE_OF_GPU_MEMORY * free:
            return None
        return torch.from_numpy(self.images.store.read(self.images.indices)).to(self.device)

    def __len__(self) -> int:
        of_all = self.batch_size * self.world_size
        if self.sampling is not None:
            return len(self.images) // of_all
        return -(-len(range(self.rank, len(self.images), self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.of_epoch(0)

    def of_epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0; from batch `start` on, where training is resumed."""
        prefetched = self._prefetched.pop(epoch, None)
        rows, *more = self._order(epoch) if prefetched is None else prefetched.result()
        on_device = rows.to(self.device, non_blocking=True)
        params, metadata = (None if each is None else each.to(self.device, non_blocking=True) for each in more)
        labels, sources = self._labels[on_device], self._sources[on_device]
        parts = [slice(first, first + self.batch_size) for first in range(0, len(rows), self.batch_size)][start:]
        pixels = self._pixels(rows.numpy(), on_device, parts)
        for number, (part, images) in enumerate(zip(parts, pixels)):
            if number == len(parts) // 2 and self.sampling is not None:
                # Not at the epoch's start: the thread would take Python's lock while the GPU has nothing to do yet.
                self._prefetched = {epoch + 1: self._thread.submit(self._order, epoch + 1)}
            params_of, metadata_of = (None if each is None else each[part] for each in (params, metadata))
            yield Batch(images, labels[part], params_of, sources[part], metadata_of)

    def _order(self, epoch: int) -> Order:
        """The rows of the split that this process sees in an epoch, parameters of their augmentation, and metadata.

        On the CPU, in pinned memory, from which a GPU copies them without blocking.
        """
        count, metadata, encoding = len(self.images), self.images.metadata, self.images.encoding

        def of_mine(rows: np.ndarray | None) -> Tensor | None:
            return None if rows is None else self._pinned(rows[mine])

        if self.sampling is None:
            mine = np.arange(self.rank, count, self.world_size)
            return self._pinned(mine), None, of_mine(metadata)
        random = np.random.default_rng([self.sampling.seed, 0 if self.sampling.repeated else epoch])
        if self.sampling.balance:
            counts = self.images.class_counts(self.sampling.within_sources)
            chance = class_weights(counts, self.sampling.balance)[self.images.sources, self.images.labels].numpy()
            order = random.choice(count, count, p=chance / chance.sum())
        else:
            order = random.permutation(count)
        augmentation = self.sampling.augmentation
        params = None if augmentation is None else sample_params(random, count, augmentation)
        if metadata is not None and encoding is not None:
            metadata = encoding.lose(random, metadata[order])
        # A step takes the next images of the order, and each process an equal part of them.
        steps = np.arange(len(self) * self.batch_size * self.world_size).reshape(len(self), self.world_size, -1)
        mine = steps[:, self.rank].ravel()
        return self._pinned(order[mine]), of_mine(params), of_mine(metadata)

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _pixels(self, rows: np.ndarray, on_device: Tensor, parts: list[slice]) -> Iterator[Tensor]:
        store, indices = self.images.store, self.images.indices[rows]
        if self._resident is not None:
            return (self._resident[on_device[part]] for part in parts)
        if self.device.type == "cuda":
            return stream(store, [indices[part] for part in parts], self.device, self.threads)
        return (torch.from_numpy(store.read(indices[part])) for part in parts)

    def image_ids(self, epoch: int, batch: int) -> list[str]:
        """The ids of the images in a batch of an epoch, both counted from 0."""
        rows, *_ = self._order(epoch)
        return list(self.images.table["image_id"].iloc[rows[batch * self.batch_size :][: self.batch_size].numpy()])
