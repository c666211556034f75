"""Which layer produces the first number that is not finite."""

import torch
from torch import Tensor, nn

from stages.errors import InputError


def add_nonfinite_hooks(network: nn.Module, gradients: bool = True) -> None:
    """From now on, raise an InputError at the first layer whose output, or a gradient of it, is not finite.

    PyTorch's own anomaly mode would raise first, with an error that names no layer. Every layer waits for the GPU: only
    for `training.detect_anomaly`.

    Args:
        network: whose layers are looked at.
        gradients: whether theirs are looked at, too; those of a scaled loss overflow now and then, which costs a step
            and no more.
    """
    for name, layer in network.named_modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(_checked(name, gradients))
    for name, parameter in network.named_parameters():
        if gradients and parameter.requires_grad:
            parameter.register_hook(_checked_gradient(f"the gradient of the parameter {name}"))


def _checked(name: str, gradients: bool):
    def check(layer: nn.Module, inputs: tuple, output: object) -> None:
        for tensor in _tensors(output):
            _check(tensor, f"the output of the layer {name} ({type(layer).__name__})", inputs)
            if gradients and tensor.requires_grad:
                tensor.register_hook(_checked_gradient(f"the gradient at the output of the layer {name}"))

    return check


def _checked_gradient(what: str):
    return lambda gradient: _check(gradient, what)


def _tensors(value: object) -> list[Tensor]:
    """The tensors in what a layer takes or gives; nn.LSTM gives tuples of them."""
    if isinstance(value, tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return [value] if isinstance(value, Tensor) else []


def _check(tensor: Tensor, what: str, inputs: tuple = ()) -> None:
    if torch.isfinite(tensor).all():
        return
    after, given = "", _tensors(inputs)
    if given and torch.isfinite(given[0]).all():
        after = f", though its input is finite, at most {given[0].abs().max().item():.3g}"
    raise InputError(f"{what} is not finite{after}; lower training.learning_rate, or use training.precision=32")
