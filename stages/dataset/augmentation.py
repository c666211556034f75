"""Augmentation of a whole batch at a time, on the device it is on, with parameters of its own for every image.

The randomness comes in as uniform numbers, so that one seed gives the same pictures on every device, in every loader
and after a resumed run.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

UNIFORMS_PER_IMAGE = 11

# A dermatoscope has no upright: every rotation and flip of a lesion is as likely as the picture taken.
# The others stay inside what differs between two users of a dermatoscope (zoom, centring) and two devices (light and
# white balance). Colour is a diagnostic sign: a hue turned by 20 degrees makes another diagnosis of a lesion.
LOG_SCALE = math.log(1.2)
LOG_ASPECT = math.log(1.1)
TRANSLATION = 0.08  # of the side, to each of four directions
BRIGHTNESS = 0.08  # of the full range
LOG_CONTRAST = math.log(1.2)
LOG_SATURATION = math.log(1.2)
HUE = math.radians(5)

# Luma weights (ITU-R BT.601) and the YIQ colour space, in which a rotation about the grey axis changes the hue.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def as_float(images: Tensor) -> Tensor:
    """uint8 (n, height, width, 3) as float32 (n, 3, height, width) in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def augment(images: Tensor, uniforms: Tensor) -> Tensor:
    """Flip, rotate, zoom, shift and recolour images, each its own way, with a single resampling.

    Args:
        images: uint8, shape (n, size, size, 3), RGB.
        uniforms: in [0, 1), shape (n, `UNIFORMS_PER_IMAGE`), on the same device.

    Returns:
        float32, shape (n, 3, size, size), in [0, 1].
    """
    uniforms = uniforms.float()
    pixels = as_float(images)
    grid = F.affine_grid(_affine(uniforms[:, :7]), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recolour(pixels, uniforms[:, 7:]).clamp_(0, 1)


def _affine(uniforms: Tensor) -> Tensor:
    """Matrices (n, 2, 3) that take a place in the result to its place in the source, both in [-1, 1]."""
    flip, turn, scale, aspect, shift_x, shift_y, shear = uniforms.unbind(1)
    angle = turn * (2 * math.pi)
    zoom = torch.exp(_between(scale, LOG_SCALE))
    stretch = torch.exp(_between(aspect, LOG_ASPECT) / 2)
    mirror = torch.where(flip < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    # The stretch lies along a direction of its own: an axis of the sensor has no meaning after a rotation.
    along, across = (shear * math.pi).cos(), (shear * math.pi).sin()
    wide, high = zoom * stretch, zoom / stretch
    xx = wide * along * along + high * across * across
    yy = wide * across * across + high * along * along
    xy = (wide - high) * along * across
    rows = (
        mirror * (cos * xx - sin * xy), mirror * (cos * xy - sin * yy), _between(shift_x, 2 * TRANSLATION),
        sin * xx + cos * xy, sin * xy + cos * yy, _between(shift_y, 2 * TRANSLATION),
    )  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _recolour(pixels: Tensor, uniforms: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue as one matrix and one offset for each image."""
    brightness, contrast, saturation, hue = uniforms.unbind(1)
    gain = torch.exp(_between(contrast, LOG_CONTRAST))
    chroma = torch.exp(_between(saturation, LOG_SATURATION))
    angle = _between(hue, HUE)
    to_yiq, to_rgb = _colour_spaces(pixels.device)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = chroma * angle.cos(), chroma * angle.sin()
    turn = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), dim=1).view(-1, 3, 3)
    matrix = gain.view(-1, 1, 1) * (to_rgb @ turn @ to_yiq)
    mean = pixels.mean(dim=(1, 2, 3))
    offset = mean * (1 - gain) + _between(brightness, BRIGHTNESS)
    # One fused multiply-add over the batch; as a 1×1 convolution per image it would be a thousand small kernels.
    return torch.einsum("nij,njhw->nihw", matrix, pixels) + offset.view(-1, 1, 1, 1)


@cache
def _colour_spaces(device: torch.device) -> tuple[Tensor, Tensor]:
    """RGB to YIQ and back, (3, 3) each; on the device once, for a copy in every step makes the GPU wait."""
    to_yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
    return to_yiq.float().to(device), torch.linalg.inv(to_yiq).float().to(device)


def _between(uniform: Tensor, limit: float) -> Tensor:
    """Map [0, 1) to [-limit, limit)."""
    return (2 * uniform - 1) * limit
