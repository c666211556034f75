"""The trained model on disk: weights as safetensors, and what is needed to use them as JSON. No pickle."""

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stages.classifier.description import DESCRIPTION, ModelDescription, read_description
from stages.classifier.networks import Ensemble, NormalizedNetwork, build_network, combined, is_network
from stages.errors import InputError, printable, regenerate
from stages.files import MODELS, replacing, write_json

WEIGHTS = "model.safetensors"


def save_model(network: NormalizedNetwork | Ensemble, description: ModelDescription, folder: Path = MODELS) -> None:
    """Write the weights and the description to `folder`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _stored(network).state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        # Not `save_file`: its error does not say that the disk is full.
        partial.write_bytes(save(state, metadata={"format": "pt"}))
    content = {key: value for key, value in asdict(description).items() if value is not None}
    write_json(folder / DESCRIPTION, content)


def _stored(network: NormalizedNetwork | Ensemble) -> nn.Module:
    """What the state is stored of: a backbone, whose names are timm's, or those of an ensemble, numbered."""
    backbones = [member.backbone for member in network.members]
    return nn.ModuleList(backbones) if isinstance(network, Ensemble) else backbones[0]


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
    kind = description.architecture, len(description.classes), description.image_size
    members = [build_network(*kind, encoding=description.metadata) for _ in range(description.networks)]
    network = combined(members)
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise regenerate(f"{path} does not exist") from None
    except (OSError, SafetensorError, KeyError) as error:  # the last of numbers that PyTorch does not know
        raise regenerate(f"{path} is not a safetensors file ({printable(error)})") from None
    stored = _stored(network)
    # Names, shapes and types: loading would turn whole numbers into fractions without a word.
    if _outline(state) != _outline(stored.state_dict()):
        what = description.architecture if len(members) == 1 else f"{len(members)} {description.architecture}"
        raise regenerate(f"{path} does not hold a {what}")
    stored.load_state_dict(state)
    for member in members:
        member.mean[:], member.std[:] = (torch.tensor(of).view(3, 1, 1) for of in (description.mean, description.std))
    return network.eval(), description


def _outline(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
