"""All of a training: its images, networks and processes, from the parameters to the files of the model."""

import os
import shutil
import statistics
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages import files
from stages.classifier.description import ModelDescription
from stages.classifier.fusion import METADATA
from stages.classifier.hardware import describe_environment, set_up_device
from stages.classifier.networks import architecture, combined, pixel_statistics
from stages.classifier.weights import save_model
from stages.config import Config
from stages.dataset.augmentation import augment_batch, sample_params
from stages.dataset.encoding import learn_encoding
from stages.dataset.loaders import SplitImages
from stages.dataset.pixels import PixelStore, are_synthetic
from stages.dataset.taxonomy import classes_of
from stages.errors import InputError
from stages.training.checkpoints import checkpoint_folder, prune, require_writable
from stages.training.ensemble import Member, choose_val_folds, train_member
from stages.training.loggers import end_logging, log_results
from stages.training.processes import start_processes
from stages.training.teacher import load_teacher

EXAMPLES, VERSIONS = 4, 5  # images whose augmentation is shown, and how often each


class Training(NamedTuple):
    """The result of training.

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
    prepared: Path = files.PREPARED,
    split: Path = files.SPLIT,
    models: Path = files.MODELS,
    metrics: Path = files.TRAINING_METRICS,
    checkpoints: Path = files.CHECKPOINTS,
) -> Training | None:
    """Train the networks of `config.model` as `config.training` says, and write their best weights.

    Args:
        config: the parameters.
        prepared: folder of the pixel store.
        split: table of the splits.
        models: folder for `model.safetensors` and `model.json`.
        metrics: folder for DVCLive's curves.
        checkpoints: folder for the checkpoints of unfinished training; below DVC's root, where there is one.

    Returns:
        The best epochs and the speed; None in the processes that only help the first (`training.devices`).

    Raises:
        InputError: a parameter or a file does not fit.
    """
    start, parent = time.perf_counter(), os.getppid()
    fabric = start_processes(config.training)
    set_up_device(config.runtime.cpu_threads, config.training.deterministic)
    store = PixelStore(prepared)
    classes = classes_of(store.taxonomy, config.model.num_classes)
    config = replace(config, model=replace(config.model, num_classes=len(classes.names)))
    val_folds = choose_val_folds(config.model, split, store.manifest)
    # All networks of an ensemble have one encoding, also those whose training images are fewer.
    encoding = learn_encoding(config.model.metadata, SplitImages(store, "train", split, len(classes.names)).table)
    teacher, teacher_files = load_teacher(config, split, store, classes, encoding, fabric.device)
    root = checkpoint_folder(checkpoints)
    if fabric.is_global_zero:
        require_writable(root)
        prune(root)
        for other in metrics.glob("network-*"):  # of an earlier, larger ensemble
            shutil.rmtree(other)
    members: list[Member] = []
    for number, val_fold in enumerate(val_folds):
        if members:
            end_logging(members[-1].loggers)
        kind = config.model.num_classes, val_fold, encoding
        train, val = (SplitImages(store, name, split, *kind) for name in ("train", "val"))
        curves = metrics / f"network-{number + 1}" if number else metrics
        inputs = prepared, split, *teacher_files
        members.append(train_member(config, number, train, val, fabric, root, curves, inputs, teacher))
        # What its own training images did not have, it does not know: those weights are as they were drawn.
        if encoding is not None and (own := learn_encoding(encoding.fusion, train.table)) not in (None, encoding):
            layers = getattr(members[-1].module.eval_network.backbone, METADATA)
            layers.adopt(encoding, own)
            layers.adopt(own, encoding)
    if not fabric.is_global_zero:
        return None
    last, network = members[-1], combined([member.module.eval_network for member in members])
    taught_by = files.sha256_of(teacher_files[0]) if teacher_files else None
    description = _describe(members, val_folds, files.sha256_of(split), taught_by)
    save_model(network, description, models)
    speed = statistics.median(member.fit.images_per_second for member in members)
    training = Training(description, time.perf_counter() - start, speed)
    best = {"best_epoch": last.fit.epoch, f"best_{config.training.monitor}": last.fit.val_loss}
    log_results(last.loggers, last.module, last.val, network, models, best | {"images_per_second": speed})
    # If `dvc` was killed, nobody takes the result: the next `dvc repro` gets it from the last checkpoints.
    if os.getppid() == parent:
        prune(root, finished=[member.folder for member in members])
    return training


def _describe(
    members: list[Member], val_folds: list[int | None], split_sha256: str, teacher_sha256: str | None
) -> ModelDescription:
    config, images = members[-1].config, members[-1].val
    name = architecture(config.model)
    mean, std = pixel_statistics(name)
    return ModelDescription(
        architecture=name,
        networks=len(members),
        classes=list(images.classes.names),
        taxonomy=images.store.taxonomy,
        image_size=images.store.image_size,
        detail=config.data.detail,
        mean=list(mean),
        std=list(std),
        epochs=[member.fit.epoch for member in members],
        val_losses=[member.fit.val_loss for member in members],
        validation_folds=[fold for fold in val_folds if fold is not None],
        batch_size=config.training.batch_size,
        accumulate_grad_batches=config.training.accumulate_grad_batches,
        synthetic=are_synthetic(images.store.manifest["image_id"]) or None,
        metadata=images.encoding,
        split_sha256=split_sha256,
        teacher_sha256=teacher_sha256,
    )


def augmented_examples(images: SplitImages, config: Config) -> np.ndarray:
    """Some training images, and what augmentation makes of each: what the network sees.

    Returns:
        uint8, shape (examples, 1 + versions, size, size, 3): the image itself, and `VERSIONS` of it, none if
        augmentation is off.
    """
    rows = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).astype(int)
    originals = torch.from_numpy(images.store.read(images.indices[rows]))
    targets = torch.zeros(len(rows), len(images.classes.names))
    columns = [originals]
    for version in range(VERSIONS if config.data.augment else 0):
        random = np.random.default_rng([config.training.seed, version])
        augment_params = torch.from_numpy(sample_params(random, len(rows), config.data))
        columns.append(_as_pixels(augment_batch(originals, targets, augment_params, config.data)[0]))
    return torch.stack(columns, dim=1).numpy()


def _as_pixels(images: Tensor) -> Tensor:
    return (images * 255).round().byte().permute(0, 2, 3, 1)


def write_environment(training: Training) -> None:
    """Write what these weights were made on, unless the file tells it of the same weights: they came from elsewhere."""
    weights = files.md5_of(files.MODEL_WEIGHTS.read_bytes())
    with suppress(InputError):
        if files.read_json(files.ENVIRONMENT).get("weights_md5") == weights:
            return
    speed = {"training_seconds": training.seconds, "training_images_per_second": training.images_per_second}
    files.write_json(files.ENVIRONMENT, describe_environment() | speed | {"weights_md5": weights})
