"""The trained model on disk: weights as safetensors, and what is needed to use them as JSON. No pickle."""

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stages.classifier.description import DESCRIPTION, ModelDescription, read_description
from stages.classifier.networks import Ensemble, NormalizedNetwork, build_network, is_network
from stages.errors import InputError, printable, regenerate
from stages.files import MODELS, replacing, write_json

WEIGHTS = "model.safetensors"


def save_model(network: NormalizedNetwork | Ensemble, description: ModelDescription, folder: Path = MODELS) -> None:
    """Write the weights and the description to `folder`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(network).items()}
    with replacing(folder / WEIGHTS) as partial:
        # Not `save_file`: its error does not say that the disk is full.
        partial.write_bytes(save(state, metadata={"format": "pt"}))
    content = {key: value for key, value in asdict(description).items() if value is not None}
    write_json(folder / DESCRIPTION, content)


def _tensors(network: NormalizedNetwork | Ensemble) -> dict[str, Tensor]:
    """The state of a backbone under timm's names; of an ensemble's, each with its number before them."""
    if isinstance(network, NormalizedNetwork):
        return network.backbone.state_dict()
    states = [_tensors(member) for member in network.members]
    return {f"{number}.{name}": tensor for number, state in enumerate(states) for name, tensor in state.items()}


def load_model(folder: Path = MODELS) -> tuple[NormalizedNetwork | Ensemble, ModelDescription]:
    """Read the model that `save_model` wrote, ready to predict.

    Raises:
        InputError: a file is missing or damaged, or the two do not belong together.
    """
    description = read_description(folder / DESCRIPTION)
    if not is_network(description.architecture):
        raise InputError(
            f"{folder / DESCRIPTION}: architecture is {description.architecture!r}; it must be a network of timm"
        )
    members = [
        build_network(
            description.architecture,
            len(description.classes),
            description.image_size,
            encoding=description.metadata,
        )
        for _ in range(description.networks)
    ]
    network = Ensemble(members) if len(members) > 1 else members[0]
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise regenerate(f"{path} does not exist") from None
    except (OSError, SafetensorError, KeyError) as error:  # the last of numbers that PyTorch does not know
        raise regenerate(f"{path} is not a safetensors file ({printable(error)})") from None
    # Names, shapes and types: loading would turn whole numbers into fractions without a word.
    places = _tensors(network)
    if _outline(state) != _outline(places):
        what = description.architecture if len(members) == 1 else f"{len(members)} {description.architecture}"
        raise regenerate(f"{path} does not hold a {what}")
    for name, tensor in places.items():
        tensor.copy_(state[name])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (description.mean, description.std))
    for member in members:
        member.mean.copy_(mean)
        member.std.copy_(std)
    return network.eval(), description


def _outline(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
