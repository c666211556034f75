"""Which layer a training breaks in."""

import torch
from torch import Tensor, nn

from stages.errors import InputError


def name_the_first_layer_that_is_not_finite(network: nn.Module) -> None:
    """From now on, raise an InputError at the first layer whose output, or whose gradient, is not finite.

    Every layer waits for the GPU: only for `training.detect_anomaly`.
    """
    for name, layer in network.named_modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(_checked(name))


def _checked(name: str):
    def check(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        _check(output, f"the output of the layer {name} ({type(layer).__name__})", inputs)
        if output.requires_grad:
            output.register_hook(lambda gradient: _check(gradient, f"the gradient at the output of the layer {name}"))

    return check


def _check(tensor: Tensor, what: str, inputs: tuple = ()) -> None:
    if torch.isfinite(tensor).all():
        return
    after = ""
    if inputs and torch.isfinite(inputs[0]).all():
        after = f", though its input is finite, at most {inputs[0].abs().max().item():.3g}"
    raise InputError(f"{what} is not finite{after}; lower training.learning_rate, or use training.precision=32")
