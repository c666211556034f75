"""Train: fit a classifier on the training images; keep the epoch that the validation images like best.

Reads `data/prepared/` and `data/split.csv`, writes `models/`, `metrics/training/`, `data/augmented.npy` and
`metrics/environment.json`.
"""

import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.classifier.checkpoints import checkpoint_folder, fingerprint, prune
from stages.classifier.data import SkinLesionData
from stages.classifier.engine import fit, prepare_hardware
from stages.classifier.hardware import describe_environment
from stages.classifier.loggers import log_results
from stages.classifier.module import SkinLesionClassifier
from stages.classifier.networks import architecture, pixel_statistics
from stages.classifier.weights import ModelDescription, save_model
from stages.config import Config, load_config
from stages.dataset.augmentation import augment_batch, draw
from stages.dataset.loaders import SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import class_names
from stages.errors import run_stage
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

EXAMPLES, VERSIONS = 4, 5  # images whose augmentation is shown, and how often each


class Training(NamedTuple):
    """What a training gives.

    Attributes:
        description: what was written to `model.json`.
        seconds: of fitting, with validation, checkpoints and loggers.
        images_per_second: of the median epoch, validation excluded, all devices together.
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
    """Train the network of `config.model` as `config.training` says, and write its best weights.

    Args:
        config: the parameters.
        prepared: folder of the pixel store.
        split: table of the splits.
        models: folder for `model.safetensors` and `model.json`.
        metrics: folder for DVCLive's curves.
        checkpoints: folder for the checkpoints of trainings that did not end; below DVC's root, where there is one.

    Returns:
        The best epoch and the speed; None in the processes that only help the first (`training.devices`).

    Raises:
        InputError: a parameter or a file does not fit.
    """
    parent = os.getppid()
    config = prepare_hardware(config)
    store, classes = PixelStore(prepared), config.model.num_classes
    train, val = (SplitImages(store, name, split, classes) for name in ("train", "val"))
    data = SkinLesionData(train, val, config)
    module = SkinLesionClassifier(config, store.image_size, data.class_counts)
    start = time.perf_counter()
    folder = checkpoint_folder(checkpoints) / fingerprint(config, (prepared, split))
    prune(folder.parent)
    fitted = fit(module, data, config, folder, metrics)
    if fitted is None:
        return None
    name = architecture(config.model)
    mean, std = pixel_statistics(name)
    description = ModelDescription(
        architecture=name,
        classes=list(class_names(classes)),
        image_size=store.image_size,
        mean=list(mean),
        std=list(std),
        epoch=fitted.epoch,
        val_loss=fitted.val_loss,
        batch_size=math.ceil(fitted.batch_size / fitted.parts),
        accumulate_grad_batches=config.training.accumulate_grad_batches * fitted.parts,
    )
    save_model(module.kept, description, models)
    training = Training(description, time.perf_counter() - start, fitted.throughput.images_per_second)
    log_results(
        module,
        data,
        models,
        {"best_epoch": fitted.epoch, "best_val_loss": fitted.val_loss, "images_per_second": training.images_per_second},
    )
    # Where `dvc` was killed, nobody takes the result: the next `dvc repro` comes to it from the last checkpoint.
    prune(folder.parent, finished=folder if os.getppid() == parent else None)
    return training


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
        f"{trained.architecture}: best epoch {trained.epoch + 1}, val_loss {trained.val_loss:.4f}, "
        f"{training.images_per_second:.0f} images/s, {training.seconds:.1f} s"
    )


if __name__ == "__main__":
    run_stage(main)
