"""The networks of an ensemble: each trained from its own seed, or validated on its own fold; predictions averaged."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from stages.config import Config, ModelConfig, TrainingConfig
from stages.dataset.folds import read_split, validation_folds
from stages.dataset.loaders import Batches, SamplingConfig, SplitImages
from stages.errors import InputError
from stages.training.checkpoints import Checkpoints, fingerprint
from stages.training.loggers import MetricLogger, create_loggers
from stages.training.loop import Fit, TrainingLoop
from stages.training.module import TrainingModule
from stages.training.processes import Processes, say

# Smaller validation batches would be launched more slowly than they are computed. Where training takes as many images
# at a time, validation finds its convolutions planned: cuDNN takes 2 to 3 seconds for those of EfficientNet-B0.
VALIDATION_BATCH = 128


class Member(NamedTuple):
    """A network of an ensemble, trained; or the only one.

    Attributes:
        module: with the weights of its best epoch.
        fit: the outcome.
        config: with which it was trained: its seed, its precision, and how many images at a time.
        val: its validation images.
        loggers: of its training.
        folder: of its checkpoint.
    """

    module: TrainingModule
    fit: Fit
    config: Config
    val: SplitImages
    loggers: list[MetricLogger]
    folder: Path


def choose_val_folds(config: ModelConfig, split: Path, images: pd.DataFrame) -> list[int | None]:
    """For each network of an ensemble the fold that it is validated on; None: the split's.

    Over folds, none of them sees the split's: their average is calibrated on images that are new to all of them.

    Args:
        config: how many networks.
        split: table of the splits.
        images: the manifest of the prepared images.

    Raises:
        InputError: there are fewer folds than networks.
    """
    if not config.is_over_folds:
        return [None] * config.ensemble
    folds = validation_folds(read_split(split, images))[1:]
    if config.ensemble > len(folds):
        raise InputError(
            f"model.ensemble is {config.ensemble} and model.ensemble_over 'folds', but {split} has only {len(folds)} "
            "folds besides those for calibration and test; lower it, or raise split.folds"
        )
    return [*folds[: config.ensemble]]


def train_member(
    config: Config, number: int, train: SplitImages, val: SplitImages, fabric: Processes, checkpoints: Path,
    metrics: Path, inputs: tuple[Path, ...], teacher: nn.Module | None = None,
) -> Member:  # fmt: skip
    """Train a network of `model.ensemble`.

    Its weights, order, augmentation and dropout come from training.seed + number. A batch that does not fit into the
    GPU's memory is divided: training starts anew with a smaller batch_size and more accumulate_grad_batches, just as if
    the parameters had said so.

    Args:
        config: the parameters.
        number: of the network, from 0.
        train: the training images.
        val: the validation images.
        fabric: the processes that train together.
        checkpoints: folder of the checkpoints of all training runs.
        metrics: folder for DVCLive.
        inputs: the files that the images and the teacher come from.
        teacher: as of `TrainingModule`.

    Raises:
        InputError: a parameter does not fit this machine, or timm has no such network.
    """
    seed = (config.training.seed + number) % 2**32
    training = replace(config.training, seed=seed, precision=choose_precision(config, fabric.device))
    config = replace(config, training=training)
    while True:
        try:
            return _train(config, train, val, fabric, checkpoints / fingerprint(config, inputs), metrics, teacher)
        except torch.OutOfMemoryError:
            pass  # handled outside: the exception holds on to the tensors of the training
        finally:
            if fabric.device.type == "cuda":
                gc.collect()  # the loop and the captured step hold each other, and the GPU's memory
        torch.cuda.empty_cache()
        config = replace(config, training=divided(config, fabric.world_size))
        say(
            fabric,
            "out of memory: training starts anew with fewer images at a time, as "
            f"training.batch_size={config.training.batch_size} and "
            f"training.accumulate_grad_batches={config.training.accumulate_grad_batches} do on any GPU",
        )


def _train(
    config: Config, train: SplitImages, val: SplitImages, fabric: Processes, folder: Path, metrics: Path,
    teacher: nn.Module | None,
) -> Member:  # fmt: skip
    training = config.training
    within_sources = training.class_balance_within == "source"
    class_counts = train.class_counts(within_sources)
    torch.manual_seed(training.seed)
    loggers = create_loggers(config, metrics) if fabric.is_global_zero else []
    sampling = SamplingConfig(
        seed=training.seed,
        augmentation=config.data if config.data.augment else None,
        balance=training.class_balance_strength if training.class_balance == "sampling" else 0.0,
        within_sources=within_sources,
        repeated=training.overfit_batches > 0,
    )
    step_images = training.batch_size * training.accumulate_grad_batches
    val_images_at_a_time = max(training.batch_size, min(VALIDATION_BATCH, 4 * training.batch_size))
    process = fabric.global_rank, fabric.world_size, config.runtime.num_workers
    train_batches = Batches(train, step_images, fabric.device, sampling, *process)
    val_batches = Batches(val, val_images_at_a_time, fabric.device, None, *process)
    module = TrainingModule(config, train.store.image_size, class_counts, train.encoding, teacher).to(fabric.device)
    checkpoint = Checkpoints(folder, training.checkpoint_minutes)
    try:
        fit = TrainingLoop(module, train_batches, val_batches, config, fabric, checkpoint, loggers).run()
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise InputError(
                f"training.batch_size is {training.batch_size}: batch normalisation needs more images, or a larger "
                "data.image_size"
            ) from None
        raise
    return Member(module, fit, config, val, loggers, folder)


def choose_precision(config: Config, device: torch.device) -> int | str:
    """The precision that `training.precision` means on a device: 32, 16 or bf16.

    Raises:
        InputError: the device cannot compute so.
    """
    precision = config.training.precision
    if precision == 16 and device.type == "cpu":
        raise InputError("training.precision is 16, which needs a GPU; on a CPU it must be 32, bf16 or auto")
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else 32
    return precision


def divided(config: Config, world_size: int) -> TrainingConfig:
    """The same steps of the optimizer, of fewer images at a time.

    Raises:
        InputError: a batch is one image already, or several processes would have to agree.
    """
    training = config.training
    batch_size, batches = training.batch_size, training.accumulate_grad_batches
    if batch_size == 1:
        raise InputError(
            "the GPU's memory is too small for a single image: lower data.image_size, or choose a smaller model.variant"
        )
    divisor = next(number for number in range(2, batch_size + 1) if batch_size % number == 0)
    smaller = replace(training, batch_size=batch_size // divisor, accumulate_grad_batches=batches * divisor)
    if world_size > 1:
        raise InputError(
            f"a GPU's memory is too small for training.batch_size={batch_size}: set it to {smaller.batch_size} and "
            f"training.accumulate_grad_batches to {smaller.accumulate_grad_batches}"
        )
    return smaller
