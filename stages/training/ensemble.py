"""Several networks as one model: each trained from a seed of its own, their predictions or their weights averaged."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.optim.swa_utils import update_bn

from stages.classifier.data import SkinLesionData
from stages.classifier.engine import prepare_hardware
from stages.classifier.module import SkinLesionClassifier
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.config import Config, ModelConfig
from stages.dataset.augmentation import as_float
from stages.dataset.folds import read_split, validation_folds
from stages.dataset.loaders import Batches, SplitImages
from stages.errors import InputError


def choose_val_folds(config: ModelConfig, split: Path, images: pd.DataFrame) -> list[int | None]:
    """For each network of an ensemble the fold that it is validated on; None: the split's.

    Args:
        config: how many networks.
        split: table of the splits.
        images: the manifest of the prepared images.

    Raises:
        InputError: there are fewer folds than networks.
    """
    if not config.is_over_folds:
        return [None] * config.ensemble
    folds = validation_folds(read_split(split, images))
    if config.ensemble > len(folds):
        raise InputError(
            f"model.ensemble is {config.ensemble} and model.ensemble_over 'folds', but {split} has only {len(folds)} "
            "folds that are not tested; lower it, or raise split.folds"
        )
    return folds[: config.ensemble]


def prepare_member(
    config: Config, number: int, train: SplitImages, val: SplitImages
) -> tuple[SkinLesionClassifier, SkinLesionData]:
    """A network of `model.ensemble`, counted from 0, and its images, ready to be trained.

    Its order, augmentation and dropout come from training.seed + number, and so do its first weights, unless weights
    are to be averaged: only from a common start do trainings end where the mean of two is as good as they are
    (Wortsman et al., Model soups, ICML 2022).

    Raises:
        InputError: a parameter does not fit this machine, or timm has no such network.
    """
    seed = (config.training.seed + number) % 2**32
    member = replace(config, training=replace(config.training, seed=seed))
    ready = prepare_hardware(config if config.model.ensemble_average == "weights" else member)
    ready = replace(ready, training=replace(ready.training, seed=seed))
    data = SkinLesionData(train, val, ready)
    return SkinLesionClassifier(ready, train.store.image_size, data.class_counts), data


def metrics_of_member(metrics: Path, number: int) -> Path:
    """Where DVCLive writes of a network: of the first into `metrics` itself, as where it is the only one."""
    return metrics / f"network-{number + 1}" if number else metrics


def combine(networks: Sequence[NormalizedNetwork], config: Config, train: SplitImages) -> NormalizedNetwork | Ensemble:
    """One model of all networks, as `model.ensemble_average` says."""
    if len(networks) == 1:
        return networks[0]
    if config.model.ensemble_average == "predictions":
        return Ensemble(networks)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    mean = average_weights(networks).to(device)
    # The statistics of batch normalisation do not average: they are those of the images under the new weights.
    update_bn((as_float(batch.images) for batch in Batches(train, config.training.batch_size, device)), mean)
    return mean.cpu()


def average_weights(networks: Sequence[NormalizedNetwork]) -> NormalizedNetwork:
    """A network whose weights are the means of those of others; counts are those of the first."""
    mean = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    for name, tensor in mean.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name].double() for state in states]).mean(dim=0))
    return mean
