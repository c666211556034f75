"""Train: fit a classifier, or several, on the training images; keep the epoch that the validation images like best.

Reads `data/prepared/` and `data/split.csv`, writes `models/`, `metrics/training/`, `data/augmented.npy` and
`metrics/environment.json`.
"""

import gc
import math
import os
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.classifier.checkpoints import checkpoint_folder, fingerprint, prune
from stages.classifier.engine import Fit, fit
from stages.classifier.ensemble import choose_val_folds, combine, metrics_of_member, prepare_member
from stages.classifier.hardware import describe_environment
from stages.classifier.loggers import end_logging, log_results
from stages.classifier.networks import Ensemble, NormalizedNetwork, architecture, pixel_statistics
from stages.classifier.weights import ModelDescription, save_model
from stages.config import Config, load_config
from stages.dataset.augmentation import augment_batch, draw
from stages.dataset.loaders import SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import class_names
from stages.files import (
    AUGMENTED,
    CHECKPOINTS,
    ENVIRONMENT,
    MODELS,
    PREPARED,
    SPLIT,
    TRAINING_METRICS,
    write_array,
    write_json,
)
from stages.launch import is_first_process, run_stage

EXAMPLES, VERSIONS = 4, 5  # images whose augmentation is shown, and how often each


class Training(NamedTuple):
    """What a training gives.

    Attributes:
        description: what was written to `model.json`.
        seconds: of building and fitting all networks, with validation, checkpoints and loggers.
        images_per_second: of a network's median epoch, validation excluded, all devices together; the median network's.
    """

    description: ModelDescription
    seconds: float
    images_per_second: float


def train_model(
    config: Config,
    prepared: Path = PREPARED,
    split: Path = SPLIT,
    models: Path = MODELS,
    metrics: Path = TRAINING_METRICS,
    checkpoints: Path = CHECKPOINTS,
) -> Training | None:
    """Train the networks of `config.model` as `config.training` says, and write their best weights.

    Args:
        config: the parameters.
        prepared: folder of the pixel store.
        split: table of the splits.
        models: folder for `model.safetensors` and `model.json`.
        metrics: folder for DVCLive's curves.
        checkpoints: folder for the checkpoints of trainings that did not end; below DVC's root, where there is one.

    Returns:
        The best epochs and the speed; None in the processes that only help the first (`training.devices`).

    Raises:
        InputError: a parameter or a file does not fit.
    """
    parent = os.getppid()
    store = PixelStore(prepared)
    val_folds = choose_val_folds(config.model, split, store.manifest)
    start = time.perf_counter()
    root, folders, networks, fits = checkpoint_folder(checkpoints), [], [], []
    prune(root)
    if is_first_process():  # those that torchrun starts with it would delete the same
        for other in metrics.glob("network-*"):  # of an earlier, larger ensemble
            shutil.rmtree(other)
    for number in range(config.model.ensemble):
        train, val = (
            SplitImages(store, name, split, config.model.num_classes, val_folds[number]) for name in ("train", "val")
        )
        module, data = prepare_member(config, number, train, val)
        folders.append(root / fingerprint(module.config, (prepared, split)))
        fitted = fit(module, data, module.config, folders[-1], metrics_of_member(metrics, number))
        if fitted is not None:
            networks.append(module.kept)
            fits.append(fitted)
        if number + 1 < config.model.ensemble:
            end_logging(module)
            del module, data
            gc.collect()  # they, their trainer and the captured step hold each other, and the GPU's memory
    if not fits:
        return None
    network = combine(networks, config, train)
    description = _describe(network, fits, config, store.image_size, val_folds)
    save_model(network, description, models)
    training = Training(
        description, time.perf_counter() - start, statistics.median(one.throughput.images_per_second for one in fits)
    )
    best = {"best_epoch": fits[-1].epoch, f"best_{config.training.monitor}": fits[-1].val_loss}
    log_results(module, data, network, models, best | {"images_per_second": training.images_per_second})
    # Where `dvc` was killed, nobody takes the result: the next `dvc repro` comes to it from the last checkpoints.
    if os.getppid() == parent:
        for folder in folders:
            prune(root, finished=folder)
    return training


def _describe(
    network: NormalizedNetwork | Ensemble, fits: list[Fit], config: Config, size: int, val_folds: list[int | None]
) -> ModelDescription:
    name, last = architecture(config.model), fits[-1]
    mean, std = pixel_statistics(name)
    return ModelDescription(
        architecture=name,
        networks=len(network.members) if isinstance(network, Ensemble) else 1,
        classes=list(class_names(config.model.num_classes)),
        image_size=size,
        mean=list(mean),
        std=list(std),
        epochs=[one.epoch for one in fits],
        val_losses=[one.val_loss for one in fits],
        validation_folds=[] if None in val_folds else val_folds,
        batch_size=math.ceil(last.batch_size / last.parts),
        accumulate_grad_batches=config.training.accumulate_grad_batches * last.parts,
    )


def augmented_examples(images: SplitImages, config: Config) -> np.ndarray:
    """Some training images, and what augmentation makes of each: what the network sees.

    Returns:
        uint8, shape (examples, 1 + versions, size, size, 3): the image itself, and `VERSIONS` of it, none if
        augmentation is off.
    """
    rows = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).astype(int)
    originals = torch.from_numpy(images.store.read(images.indices[rows]))
    targets = torch.zeros(len(rows), images.num_classes)
    columns = [originals]
    for version in range(VERSIONS if config.data.augment else 0):
        random = np.random.default_rng([config.training.seed, version])
        draws = torch.from_numpy(draw(random, len(rows), config.data))
        columns.append(_as_pixels(augment_batch(originals, targets, draws, config.data)[0]))
    return torch.stack(columns, dim=1).numpy()


def _as_pixels(images: Tensor) -> Tensor:
    return (images * 255).round().byte().permute(0, 2, 3, 1)


def _listed(values: Iterable) -> str:
    return " and ".join(map(str, values))


def main() -> None:
    config = load_config()
    training = train_model(config)
    if training is None:
        return
    images = SplitImages(PixelStore(PREPARED), "train", SPLIT, config.model.num_classes)
    write_array(AUGMENTED, augmented_examples(images, config))
    write_json(
        ENVIRONMENT,
        describe_environment()
        | {"training_seconds": training.seconds, "training_images_per_second": training.images_per_second},
    )
    trained = training.description
    print(
        f"{trained.architecture}: best epoch {_listed(epoch + 1 for epoch in trained.epochs)}, "
        f"{config.training.monitor} {_listed(f'{loss:.4f}' for loss in trained.val_losses)}, "
        f"{training.images_per_second:.0f} images/s, {training.seconds:.1f} s"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
