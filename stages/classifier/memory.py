"""The largest batch that a GPU's memory holds."""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from pytorch_lightning import Trainer

from stages.classifier.module import SkinLesionClassifier
from stages.classifier.optimization import WeightAverage, create_optimizer
from stages.classifier.step import WARM_UP_STEPS, TrainingStep
from stages.dataset.augmentation import sample_params
from stages.dataset.loaders import LARGEST_SHARE_OF_GPU_MEMORY, Batch
from stages.errors import InputError

# Of the memory that is free: other programs, and fragments, come and go.
USABLE_SHARE = 0.9


def find_batch_size(trainer: Trainer, images: int) -> int:
    """The largest batch, `training.batch_size` times a power of two, that fits into the memory of every GPU.

    Tries steps on a copy of the network, whose weights stay as they are; on a CPU, `training.batch_size` stays.

    Args:
        trainer: that is about to fit a `SkinLesionClassifier`.
        images: of the training split; a batch larger than all of them has no use.
    """
    module = trainer.lightning_module
    training = module.config.training
    device = trainer.strategy.root_device
    if device.type != "cuda":
        module.print(f"training.auto_batch_size needs a GPU: batches stay at {training.batch_size} images")
        return training.batch_size
    size = largest_power(training.batch_size, images // trainer.world_size, lambda size: _fits(module, size, images))
    smallest = int(trainer.strategy.reduce(torch.tensor(size, device=device), reduce_op="min"))
    module.print(f"training.auto_batch_size: {smallest} images a batch")
    return smallest


def largest_power(start: int, limit: int, fits: Callable[[int], bool]) -> int:
    """`start` doubled as long as the result `fits` and is at most `limit`; `start` halved, as long as it does not fit.

    At least 1.
    """
    size = max(1, min(start, limit))
    if not fits(size):
        while size > 1 and not fits(size):
            size = (size + 1) // 2
        return size
    while 2 * size <= limit and fits(2 * size):
        size *= 2
    return size


def _fits(module: SkinLesionClassifier, size: int, images: int) -> bool:
    """Whether a step of `size` images leaves the margin, and the room that the training images take on the GPU."""
    device = module.device
    resident = images * module.image_size**2 * 3
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    usable = USABLE_SHARE * (free - (resident if resident <= LARGEST_SHARE_OF_GPU_MEMORY * free else 0))
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    random = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    whole = _take_steps(module, size)
    torch.set_rng_state(random[0])
    torch.cuda.set_rng_state(random[1], device)
    return whole and torch.cuda.max_memory_reserved(device) - before <= usable


def _take_steps(module: SkinLesionClassifier, size: int) -> bool:
    """Train a copy of the network on `size` black images at a time; whether its batches could stay whole."""
    device = module.device
    # Compiling takes a minute for each size, and needs less memory than what is compiled.
    training = dataclasses.replace(module.config.training, batch_size=size, compile="graph")
    network = copy.deepcopy(module.network)
    average = WeightAverage(network, training.ema_decay) if training.ema_decay else None
    optimizer = create_optimizer(network.backbone, training, device)
    step = TrainingStep(network, module.losses, optimizer, average, training, device, say=lambda _: None)
    count, side = size * training.accumulate_grad_batches, module.image_size
    data = module.config.data
    augment_params = sample_params(np.random.default_rng(0), count, data) if data.augment else None
    batch = Batch(
        torch.zeros((count, side, side, 3), dtype=torch.uint8, device=device),
        torch.zeros(count, dtype=torch.int64, device=device),
        None if augment_params is None else torch.from_numpy(augment_params).to(device),
    )
    try:
        for _ in range(WARM_UP_STEPS + 1):
            step(batch)
    except InputError:  # not even one image fits
        return False
    return step.parts == 1
