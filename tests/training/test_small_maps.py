import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from stages.training.small_maps import SmallMapGradients


@pytest.mark.parametrize("height", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (5, 2, 2), (5, 1, 4)])
def test_the_gradients_are_those_of_autograd(height, kernel, stride, padding):
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False).double()
    images = torch.rand(3, 6, height, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    expected = layer(images)
    with SmallMapGradients():
        result = layer(images)
    weights = torch.rand_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((result * weights).sum(), [images, layer.weight]),
        torch.autograd.grad((expected * weights).sum(), [images, layer.weight]),
    ):
        torch.testing.assert_close(ours, theirs)
    assert result.equal(expected)
    assert ("_DepthwiseConvolution" in str(result.grad_fn)) == (height < kernel or kernel == 5)


def test_frozen_weights_have_no_gradient():
    images, weight = torch.rand(1, 2, 1, 1, requires_grad=True), torch.rand(2, 1, 3, 3)
    with SmallMapGradients():
        conv2d(images, weight, None, (1, 1), (1, 1), (1, 1), 2).sum().backward()
    torch.testing.assert_close(images.grad, weight[:, :, 1, 1].reshape(1, 2, 1, 1))
    assert weight.grad is None


def test_other_convolutions_are_left_alone():
    images, weight = torch.rand(1, 4, 2, 2), torch.rand(4, 2, 3, 3, requires_grad=True)
    with SmallMapGradients():
        results = nn.Conv2d(4, 4, 3, padding=1)(images), conv2d(images, weight, padding=1, groups=2)
    assert all("ConvolutionBackward" in str(result.grad_fn) for result in results)
