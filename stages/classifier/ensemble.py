"""Several networks as one model: each trained from a seed of its own, their predictions averaged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stages.classifier.data import SkinLesionData
from stages.classifier.engine import prepare_hardware
from stages.classifier.module import SkinLesionClassifier
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.config import Config, ModelConfig
from stages.dataset.folds import read_split, validation_folds
from stages.dataset.loaders import SplitImages
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

    Its first weights, order, augmentation and dropout come from training.seed + number.

    Raises:
        InputError: a parameter does not fit this machine, or timm has no such network.
    """
    seed = (config.training.seed + number) % 2**32
    member = replace(config, training=replace(config.training, seed=seed))
    ready = prepare_hardware(member)
    data = SkinLesionData(train, val, ready)
    return SkinLesionClassifier(ready, train.store.image_size, data.class_counts), data


def metrics_of_member(metrics: Path, number: int) -> Path:
    """Where DVCLive writes of a network: of the first into `metrics` itself, as where it is the only one."""
    return metrics / f"network-{number + 1}" if number else metrics


def combine(networks: Sequence[NormalizedNetwork], config: Config, train: SplitImages) -> NormalizedNetwork | Ensemble:
    """One model of all networks, whose predictions are averaged."""
    return networks[0] if len(networks) == 1 else Ensemble(networks)
