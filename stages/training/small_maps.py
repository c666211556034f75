"""The gradient of depthwise convolutions over maps smaller than their kernel, on a CPU.

oneDNN has no kernel with AVX2 for that of their weights and multiplies matrices, channel by channel: over half of a
step of EfficientNet-Lite0 on images of 64 pixels. Here a weight's gradient is the sum of its products.
benchmarks/README.md has both times.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode


class SmallMapGradients(TorchFunctionMode):
    """While it is active, such convolutions have that gradient; their results are the same bits."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and _is_over_small_map(*args):
            return _DepthwiseConvolution.apply(*args[:2], *args[3:5])
        return func(*args, **(kwargs or {}))


def _is_over_small_map(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    is_depthwise = groups == images.shape[1] == len(weight) and bias is None and tuple(dilation) == (1, 1)
    return is_depthwise and any(side < kernel for side, kernel in zip(images.shape[2:], weight.shape[2:]))


class _DepthwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(images, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(images.shape, weight, gradient, ctx.stride, ctx.padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            down, across = (
                [
                    _meeting(images.shape[axis], gradient.shape[axis], place - padding, stride)
                    for place in range(weight.shape[axis])
                ]
                for axis, padding, stride in zip((2, 3), ctx.padding, ctx.stride)
            )
            for row, (rows, rows_out) in enumerate(down):
                for column, (columns, columns_out) in enumerate(across):
                    products = images[:, :, rows, columns] * gradient[:, :, rows_out, columns_out]
                    of_weight[:, 0, row, column] = products.sum(dim=(0, 2, 3))
        return of_images, of_weight, None, None


def _meeting(inputs: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Of a weight along a side, the inputs that it meets, at output · stride + offset, and these outputs."""
    met = [output for output in range(outputs) if 0 <= output * stride + offset < inputs]
    if not met:
        return slice(0), slice(0)
    return slice(met[0] * stride + offset, met[-1] * stride + offset + 1, stride), slice(met[0], met[-1] + 1)
