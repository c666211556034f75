"""Augmentation of a whole batch at a time, on the device it is on, with parameters of its own for every image.

The randomness comes in as uniform numbers, so that one seed gives the same pictures on every device, in every loader
and after a resumed run.
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.config import DataConfig

UNIFORMS_PER_IMAGE = 11  # of `augment`
UNIFORMS_OF_CUTOUT = 2
DRAWS_OF_MIXING = 4

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


def draw(random: np.random.Generator, count: int, config: DataConfig) -> np.ndarray:
    """The random numbers that augment `count` images: float32, shape (count, k), k depending on what is switched on.

    For mixing: whether mixup or cutmix, the share of the image itself, and where the rectangle of the other lies.
    """
    columns = [random.random((count, UNIFORMS_PER_IMAGE), np.float32)]
    if config.cutout:
        columns.append(random.random((count, UNIFORMS_OF_CUTOUT), np.float32))
    if config.mixup or config.cutmix:
        mixup = random.random(count) < (0.5 if config.mixup and config.cutmix else float(config.mixup > 0))
        alpha = np.maximum(np.where(mixup, config.mixup, config.cutmix), 1e-6)
        share = random.beta(alpha, alpha)
        columns.append(np.column_stack([mixup, share, random.random((count, 2))]).astype(np.float32))
    return np.concatenate(columns, axis=1)


def augment_batch(images: Tensor, targets: Tensor, draws: Tensor, config: DataConfig) -> tuple[Tensor, Tensor]:
    """All augmentation of a batch of training images.

    Args:
        images: uint8, shape (n, size, size, 3), RGB.
        targets: probabilities of the classes, shape (n, classes).
        draws: what `draw` gave for these images, on the same device.
        config: what is switched on.

    Returns:
        float32 images, shape (n, 3, size, size), in [0, 1], and their targets.
    """
    pixels, rest = augment(images, draws[:, :UNIFORMS_PER_IMAGE]), draws[:, UNIFORMS_PER_IMAGE:]
    if config.mixup or config.cutmix:
        pixels, targets = _mix(pixels, targets, rest[:, -DRAWS_OF_MIXING:])
    if config.cutout:
        pixels = _cut_out(pixels, rest[:, :UNIFORMS_OF_CUTOUT], config.cutout)
    return pixels, targets


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


def _cut_out(pixels: Tensor, uniforms: Tensor, side: float) -> Tensor:
    """Grey out a square of the relative size `side`, wholly inside the image (DeVries & Taylor, 2017)."""
    start = uniforms * (1 - side)
    return pixels.masked_fill(_inside(pixels, start, start + side), 0.5)


def _mix(pixels: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image with the one before it, or paste a rectangle of that one into it.

    Mixup: Zhang et al., ICLR 2018. Cutmix: Yun et al., ICCV 2019; its rectangle has the shape of the image and lies
    wholly inside it, so that its area is exactly the other image's share.
    """
    mixup, share, place = draws[:, 0].bool(), draws[:, 1], draws[:, 2:]
    other, other_targets = pixels.roll(1, dims=0), targets.roll(1, dims=0)
    side = (1 - share).clamp_min(0).sqrt()[:, None]
    start = place * (1 - side)
    pasted = torch.where(_inside(pixels, start, start + side), other, pixels)
    weight = share.view(-1, 1, 1, 1)
    mixed = torch.where(mixup.view(-1, 1, 1, 1), weight * pixels + (1 - weight) * other, pasted)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * other_targets


def _inside(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where a pixel lies in its image's rectangle, given as relative places (n, 2): bool, (n, 1, size, size)."""
    size = pixels.shape[-1]
    centres = (torch.arange(size, device=pixels.device) + 0.5) / size
    inside = (centres >= start[:, :, None]) & (centres < end[:, :, None])
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
