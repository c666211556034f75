"""The trained model on disk: weights as safetensors, and what is needed to use them as JSON. No pickle."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from stages.classifier.networks import NormalizedNetwork, build_network, is_network
from stages.dataset.taxonomy import class_names
from stages.errors import InputError
from stages.files import MODELS, read_json, replacing, write_json

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


@dataclass(frozen=True)
class ModelDescription:
    """What `model.json` holds.

    Attributes:
        architecture: timm's name of the network, or baseline_cnn.
        classes: in the order of the outputs.
        image_size: pixels of a side of the square input.
        mean: of each colour, in [0, 1], subtracted from the input.
        std: of each colour, in [0, 1], that the input is divided by.
        epoch: the epoch, from 0, whose weights these are.
        val_loss: its cross-entropy on the validation fold, in nats.
        batch_size: images of one device that went through the network at a time, in the end: fewer than
            `training.batch_size` where the GPU's memory was too small.
        accumulate_grad_batches: how many of such batches made one step of the optimizer.
    """

    architecture: str
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    epoch: int
    val_loss: float
    batch_size: int
    accumulate_grad_batches: int


def save_model(network: NormalizedNetwork, description: ModelDescription, folder: Path = MODELS) -> None:
    """Write the weights and the description to `folder`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.backbone.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        # Not `save_file`: a full disk would be an error of its own kind, whatever the cause.
        partial.write_bytes(save(state, metadata={"format": "pt"}))
    write_json(folder / DESCRIPTION, asdict(description))


def load_model(folder: Path = MODELS) -> tuple[NormalizedNetwork, ModelDescription]:
    """Read the model that `save_model` wrote, ready to predict.

    Raises:
        InputError: a file is missing, damaged, or not of the other.
    """
    description = _read_description(folder / DESCRIPTION)
    network = build_network(description.architecture, len(description.classes), description.image_size)
    path = folder / WEIGHTS
    try:
        network.backbone.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `dvc repro` makes it") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file ({error}); `dvc repro` makes it again") from None
    except RuntimeError:  # tensors of other names or shapes
        raise InputError(f"{path} does not hold a {description.architecture}; `dvc repro` makes both again") from None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (description.mean, description.std))
    network.mean.copy_(mean)
    network.std.copy_(std)
    return network.eval(), description


def _read_description(path: Path) -> ModelDescription:
    content = read_json(path)
    kinds = {field.name: field.type for field in fields(ModelDescription)}
    if not isinstance(content, dict) or set(content) != set(kinds):
        raise InputError(f"{path} must hold {', '.join(kinds)}; `dvc repro` makes it again")

    def check(key: str, valid: bool, expected: str) -> None:
        if not valid:
            raise InputError(f"{path}: {key} is {content[key]!r}; it must be {expected}")

    def colours(values: object, lowest: float) -> bool:
        return (
            isinstance(values, list)
            and len(values) == 3
            and all(type(value) in (float, int) and lowest <= value <= 1 for value in values)
        )

    name, size = content["architecture"], content["image_size"]
    known = [list(class_names(2)), list(class_names(7))]
    check("architecture", isinstance(name, str) and is_network(name), "a network of timm")
    check("classes", content["classes"] in known, " or ".join(map(str, known)))
    check("image_size", type(size) is int and 16 <= size <= 2048, "pixels, from 16 to 2048")
    check("mean", colours(content["mean"], 0.0), "three numbers from 0 to 1")
    check("std", colours(content["std"], 1e-3), "three numbers from 0.001 to 1")
    for key, least in (("epoch", 0), ("batch_size", 1), ("accumulate_grad_batches", 1)):
        check(key, type(content[key]) is int and content[key] >= least, f"a whole number, at least {least}")
    loss = content["val_loss"]
    check("val_loss", type(loss) in (float, int) and 0 <= loss < math.inf, "a number, at least 0")
    return ModelDescription(**content)
