"""What is needed to use a model's weights, as JSON beside them; checked before anything is built from it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from stages.config import MOST_NETWORKS
from stages.dataset.taxonomy import class_names
from stages.errors import InputError
from stages.files import read_json

DESCRIPTION = "model.json"
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # no path, and no address of a hub


@dataclass(frozen=True)
class ModelDescription:
    """What `model.json` holds.

    Attributes:
        architecture: timm's name of the network, or baseline_cnn.
        networks: of this architecture, whose probabilities are averaged.
        classes: in the order of the outputs.
        image_size: pixels of a side of the square input.
        mean: of each colour, in [0, 1], subtracted from the input.
        std: of each colour, in [0, 1], that the input is divided by.
        epochs: of each network that was trained the epoch, from 0, whose weights were kept.
        val_losses: the loss of each in that epoch on its validation images, in nats: that of `training.monitor`.
        validation_folds: of an ensemble over folds, the fold that each network was not trained but validated on; empty
            where all have the split's validation images.
        batch_size: images of one device that went through the network at a time, in the end: fewer than
            `training.batch_size` where the GPU's memory was too small.
        accumulate_grad_batches: how many of such batches made one step of the optimizer.
    """

    architecture: str
    networks: int
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    epochs: list[int]
    val_losses: list[float]
    validation_folds: list[int]
    batch_size: int
    accumulate_grad_batches: int


def read_description(path: Path) -> ModelDescription:
    """Read and check `model.json`.

    Raises:
        InputError: it is missing, damaged, or describes no model.
    """
    content = read_json(path)
    kinds = {field.name: field.type for field in fields(ModelDescription)}
    if not isinstance(content, dict) or set(content) != set(kinds):
        raise InputError(f"{path} must hold {', '.join(kinds)}; `dvc repro` makes it again")

    def check(key: str, valid: object, expected: str) -> None:
        if not valid:
            raise InputError(f"{path}: {key} is {content[key]!r}; it must be {expected}")

    def colours(values: object, lowest: float) -> bool:
        return (
            isinstance(values, list)
            and len(values) == 3
            and all(type(value) in (float, int) and lowest <= value <= 1 for value in values)
        )

    def all_of(values: object, right: Callable[[object], bool]) -> bool:
        return isinstance(values, list) and 0 < len(values) <= MOST_NETWORKS and all(map(right, values))

    name, size = content["architecture"], content["image_size"]
    known = [list(class_names(2)), list(class_names(7))]
    check("architecture", isinstance(name, str) and _NAME.fullmatch(name), "a network of timm")
    check("classes", content["classes"] in known, " or ".join(map(str, known)))
    check("image_size", type(size) is int and 16 <= size <= 2048, "pixels, from 16 to 2048")
    check("mean", colours(content["mean"], 0.0), "three numbers from 0 to 1")
    check("std", colours(content["std"], 1e-3), "three numbers from 0.001 to 1")
    for key in ("networks", "batch_size", "accumulate_grad_batches"):
        check(key, type(content[key]) is int and content[key] >= 1, "a whole number, at least 1")
    epochs, losses = content["epochs"], content["val_losses"]
    check("epochs", all_of(epochs, lambda it: type(it) is int and it >= 0), "whole numbers, at least 0")
    check(
        "val_losses",
        all_of(losses, lambda it: type(it) in (float, int) and 0 <= it < math.inf) and len(losses) == len(epochs),
        "numbers, at least 0, as many as epochs",
    )
    folds = content["validation_folds"]
    check(
        "validation_folds",
        folds == [] or (all_of(folds, lambda it: type(it) is int and it >= 0) and len(folds) == content["networks"]),
        "empty, or a whole number for each network",
    )
    check("networks", content["networks"] in (1, len(epochs)), f"1 or {len(epochs)}, the number of epochs")
    return ModelDescription(**content)
