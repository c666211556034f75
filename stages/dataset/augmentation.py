"""Augmentation of a whole batch at a time, on the device it is on, with parameters of its own for every image.

The parameters of a whole epoch are sampled at once, on the CPU: one seed gives the same pictures on every device, in
every loader and after a resumed run, and a step on the GPU is a few passes over its pixels. They are what counts: in a
step of ResNet-18 of 12 ms at batch 128 on an H100, `affine_grid` alone took 0.45 ms.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.config import DataConfig

UNIFORMS_PER_IMAGE = 11  # of `params_from_uniforms`
_WITH_STRENGTH = [2, 3, 4, 5, 7, 8, 9, 10]  # of them; those of flip, turn and the direction of the stretch have none

# A dermatoscope has no upright: every rotation and flip of a lesion is as likely as the picture taken.
# The others stay inside what differs between two users of a dermatoscope (zoom, centring) and two devices (light and
# white balance). Colour is a diagnostic sign: a hue rotated by 20 degrees can change the diagnosis of a lesion.
LOG_SCALE = math.log(1.2)
LOG_ASPECT = math.log(1.1)
TRANSLATION = 0.08  # of the side, to each of four directions
BRIGHTNESS = 0.08  # of the full range
LOG_CONTRAST = math.log(1.2)
LOG_SATURATION = math.log(1.2)
HUE = math.radians(5)

# What differs between collections: their devices and what was done to their files.
LOG_SQUEEZE = math.log(
    4 / 3
)  # of the width: of two collections one had cropped to a square what the other had squeezed
LOG_WHITE = math.log(1.12)  # each colour's gain
COARSEST = 2.0  # factor of JPEG's table of quantisation: quality 25

# Luma weights (ITU-R BT.601) and the YIQ colour space, in which a rotation about the grey axis changes the hue.
_RGB_TO_YIQ = np.array(((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)

# Columns of the parameters of an image.
_AFFINE, _COLOUR, _BRIGHTNESS, _CONTRAST = slice(0, 6), slice(6, 15), 15, 16
PARAMETERS_PER_IMAGE = 17  # of `augment`
UNIFORMS_OF_ACQUISITION = 6
PARAMETERS_OF_ACQUISITION = 3
PARAMETERS_OF_CUTOUT = 2
PARAMETERS_OF_MIXING = 4


def sample_params(random: np.random.Generator, count: int, config: DataConfig) -> np.ndarray:
    """Sample what `augment_batch` does to `count` images.

    Returns:
        float32, shape (count, k), with k depending on what is switched on: what `params_from_uniforms` gives;
        of acquisition, the gains of fine and of coarse detail and the factor of the quantisation; of cutout, where the
        square lies; of mixing, whether it is mixup or cutmix, the share of the image itself, and where the rectangle of
        the other lies.
    """
    params = params_from_uniforms(random.random((count, UNIFORMS_PER_IMAGE), np.float32), config.augment_strength)
    columns = [params]
    if config.acquisition_strength:
        uniforms = random.random((count, UNIFORMS_OF_ACQUISITION), np.float32)
        columns.append(_sample_acquisition(uniforms, config.acquisition_strength, params))
    if config.cutout:
        columns.append(random.random((count, PARAMETERS_OF_CUTOUT), np.float32))
    if config.mixup or config.cutmix:
        mixup = random.random(count) < (0.5 if config.mixup and config.cutmix else float(config.mixup > 0))
        alpha = np.maximum(np.where(mixup, config.mixup, config.cutmix), 1e-6)
        share = random.beta(alpha, alpha)
        columns.append(np.column_stack([mixup, share, random.random((count, 2))]).astype(np.float32))
    return np.concatenate(columns, axis=1)


def params_from_uniforms(uniforms: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Geometry and colour of the augmentation of images.

    Args:
        uniforms: in [0, 1), shape (n, `UNIFORMS_PER_IMAGE`).
        strength: a factor of all limits but those of flips and turns, of which there is no more or less.

    Returns:
        float32, shape (n, `PARAMETERS_PER_IMAGE`): the matrix (2, 3) that takes a place in the result to its place in
        the source, both in [-1, 1]; the matrix (3, 3) that takes a colour in [0, 255] to one in [0, 1], without its
        contrast's fixed point; the brightness that is added; and the factor of the contrast.
    """
    uniforms = uniforms.astype(np.float64)
    uniforms[:, _WITH_STRENGTH] = 0.5 + strength * (uniforms[:, _WITH_STRENGTH] - 0.5)
    geometry, colour = uniforms[:, :7].T, uniforms[:, 7:].T
    brightness, gain, matrix = _colour_matrix(*colour)
    columns = [_affine(*geometry), matrix.reshape(-1, 9) / 255, np.column_stack([brightness, gain])]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _sample_acquisition(uniforms: np.ndarray, strength: float, params: np.ndarray) -> np.ndarray:
    """What `_acquire` does to images, shape (n, 3); squeezes them and balances their white in `params`, in place."""
    params[:, :2] *= np.exp(_between(uniforms[:, :1], strength * LOG_SQUEEZE))
    params[:, _COLOUR] *= np.exp(_between(uniforms[:, 1:4], strength * LOG_WHITE)).repeat(3, axis=1)
    sharpness, coarseness = _between(uniforms[:, 4], strength), strength * COARSEST * uniforms[:, 5] ** 2
    # Blurring takes the fine detail first, as resampling at half the resolution does, then of the coarse; sharpening
    # exaggerates the fine.
    fine = np.maximum(1 + np.minimum(2 * sharpness, sharpness), 0)
    coarse = np.clip(1.5 + sharpness, 0, 1)
    return np.column_stack([fine, coarse, coarseness]).astype(np.float32)


def _affine(flip, turn, scale, aspect, shift_x, shift_y, direction) -> np.ndarray:
    """Rows of the matrices, shape (n, 6), from uniforms of shape (n,) each."""
    angle = turn * (2 * math.pi)
    zoom = np.exp(_between(scale, LOG_SCALE))
    stretch = np.exp(_between(aspect, LOG_ASPECT) / 2)
    mirror = np.where(flip < 0.5, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    # The stretch lies along a direction of its own: an axis of the sensor has no meaning after a rotation.
    along, across = np.cos(direction * math.pi), np.sin(direction * math.pi)
    wide, high = zoom * stretch, zoom / stretch
    xx = wide * along * along + high * across * across
    yy = wide * across * across + high * along * along
    xy = (wide - high) * along * across
    rows = (
        mirror * (cos * xx - sin * xy), mirror * (cos * xy - sin * yy), _between(shift_x, 2 * TRANSLATION),
        sin * xx + cos * xy, sin * xy + cos * yy, _between(shift_y, 2 * TRANSLATION),
    )  # fmt: skip
    return np.column_stack(rows)


def _colour_matrix(brightness, contrast, saturation, hue) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brightness and contrast, shape (n,), and the matrices, shape (n, 3, 3), from uniforms of shape (n,) each."""
    gain = np.exp(_between(contrast, LOG_CONTRAST))
    chroma = np.exp(_between(saturation, LOG_SATURATION))
    angle = _between(hue, HUE)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = chroma * np.cos(angle)
    turn[:, 2, 1] = chroma * np.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    return _between(brightness, BRIGHTNESS), gain, gain[:, None, None] * (_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ)


def _between(uniform: np.ndarray, limit: float) -> np.ndarray:
    """Map [0, 1) to [-limit, limit)."""
    return (2 * uniform - 1) * limit


def augment_batch(
    images: Tensor, targets: Tensor, params: Tensor, config: DataConfig, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """All augmentation of a batch of training images.

    Args:
        images: uint8, shape (n, size, size, 3), RGB.
        targets: probabilities of the classes, shape (n, classes).
        params: what `sample_params` gave for these images, on the same device.
        config: what is switched on.
        dtype: of the images that come out; as for `augment`.

    Returns:
        Images, shape (n, 3, size, size), in [0, 1], and their targets, float32.
    """
    pixels, rest = augment(images, params[:, :PARAMETERS_PER_IMAGE], dtype), params[:, PARAMETERS_PER_IMAGE:]
    if config.acquisition_strength:
        pixels, rest = _acquire(pixels, rest[:, :PARAMETERS_OF_ACQUISITION]), rest[:, PARAMETERS_OF_ACQUISITION:]
    if config.mixup or config.cutmix:
        pixels, targets = _mix(pixels, targets, rest[:, -PARAMETERS_OF_MIXING:])
    if config.cutout:
        pixels = _cut_out(pixels, rest[:, :PARAMETERS_OF_CUTOUT], config.cutout)
    return pixels, targets


def as_float(images: Tensor) -> Tensor:
    """uint8 (n, height, width, 3) as float32 (n, 3, height, width) in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2) * (1 / 255)


def augment(images: Tensor, parameters: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Flip, rotate, zoom, shift and recolour images, each its own way, with a single resampling.

    Args:
        images: uint8, shape (n, size, size, 3), RGB.
        parameters: what `params_from_uniforms` gave for these images, on the same device.
        dtype: what to compute in. float16 takes half the time: a place is then known to 1/2048 of the side, and a
            colour to an eighth of its 256 steps.

    Returns:
        Shape (n, 3, size, size), in [0, 1], channels last in memory.
    """
    pixels = images.permute(0, 3, 1, 2).to(dtype)
    grid = _sampling_grid(parameters[:, _AFFINE].view(-1, 2, 3), images.shape[1], dtype)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # Contrast leaves the mean of the picture as it is.
    gain, mean = parameters[:, _CONTRAST], pixels.mean(dim=(1, 2, 3), dtype=torch.float32) / 255
    offset = ((1 - gain) * mean + parameters[:, _BRIGHTNESS]).view(-1, 1, 1, 1).to(dtype)
    red, green, blue = parameters[:, _COLOUR].view(-1, 3, 3, 1, 1).to(dtype).unbind(2)
    # Channels last, as networks take them. `grid_sample` puts channels first: the first convolution would copy them to
    # the other order, forward and backward, and the passes below would read every pixel three times.
    result = torch.empty_like(pixels, memory_format=torch.channels_last)
    # Three fused passes: a matrix product with matrices of 3×3 takes twice as long.
    torch.addcmul(offset, pixels[:, 0:1], red, out=result)
    result.addcmul_(pixels[:, 1:2], green).addcmul_(pixels[:, 2:3], blue)
    return result.clamp_(0, 1)


def _sampling_grid(matrices: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """What `torch.nn.functional.affine_grid` gives for (n, 2, 3), in one pass: shape (n, size, size, 2)."""
    centres = (2 * torch.arange(size, device=matrices.device) + 1) / size - 1
    across, down, shift = matrices.unbind(2)
    columns = across[:, None] * centres[:, None] + shift[:, None]
    rows = down[:, None] * centres[:, None]
    grid = torch.empty((len(matrices), size, size, 2), dtype=dtype, device=matrices.device)
    return torch.add(columns[:, None], rows[:, :, None], out=grid)


def _acquire(pixels: Tensor, params: Tensor) -> Tensor:
    """Blur or sharpen each image, and compress it, in place.

    The detail is in two bands, differences of Gaussians (Burt & Adelson, IEEE Transactions on Communications, 1983):
    what is lost at half the resolution, and what more is lost at a quarter of it.

    Args:
        pixels: shape (n, 3, size, size), in [0, 1].
        params: gains of the fine and of the coarse band, and the factor of the quantisation, shape (n, 3).
    """
    fine, coarse, coarseness = params.to(pixels.dtype)[..., None, None, None].unbind(1)
    half, quarter = (_blur(pixels, deviation) for deviation in (1, 2))
    pixels.mul_(fine).addcmul_(half, coarse - fine).addcmul_(quarter, 1 - coarse)
    return _compress(pixels, coarseness).clamp_(0, 1)


def _blur(pixels: Tensor, deviation: float) -> Tensor:
    """Images through a Gaussian filter, in pixels; at the border it has the part that lies inside."""
    # As products with a matrix, which are deterministic on a GPU and take no longer than other filters.
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    filters = (((place[:, None] - place) / deviation) ** 2 / -2).softmax(dim=1).to(pixels.dtype)
    return filters @ pixels @ filters.T


def _compress(pixels: Tensor, coarseness: Tensor) -> Tensor:
    """Quantise the cosine transform of blocks of 8×8 as JPEG does (ITU-T T.81), each colour by itself, in place.

    The steps, 10 + 6.5 (u + v) of 256 for the frequencies u and v, are about those of the standard's table for
    brightness, at a coarseness of 1. Rows and columns that fill no block stay as they are.
    """
    size = pixels.shape[-1] // 8 * 8
    blocks, place = pixels[..., :size, :size], torch.arange(size, device=pixels.device)
    frequency, block = place % 8, place // 8
    # Of a whole row of blocks at once: a product of two matrices, which a GPU does in no time.
    cosines = torch.cos(frequency[:, None] * (frequency + 0.5) * (math.pi / 8)) / 2
    cosines[::8] *= math.sqrt(0.5)
    basis = (cosines * (block[:, None] == block)).to(pixels.dtype)
    steps = (coarseness * ((10 + 6.5 * (frequency[:, None] + frequency)) / 255).to(pixels.dtype)).clamp_min(1e-3)
    coefficients = basis @ (blocks - 0.5) @ basis.T
    blocks.copy_(basis.T @ (coefficients / steps).round_().mul_(steps) @ basis).add_(0.5)
    return pixels


def _cut_out(pixels: Tensor, place: Tensor, side: float) -> Tensor:
    """Grey out a square of the relative size `side`, wholly inside the image (DeVries & Taylor, 2017), in place."""
    start = place * (1 - side)
    return pixels.masked_fill_(_inside(pixels, start, start + side), 0.5)


def _mix(pixels: Tensor, targets: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image with the one before it, or paste a rectangle of that one into it.

    Mixup: Zhang et al., ICLR 2018. Cutmix: Yun et al., ICCV 2019; its rectangle has the shape of the image and lies
    wholly inside it, so that its area is the other image's share.
    """
    mixup, share, place = params[:, 0].bool(), params[:, 1], params[:, 2:]
    # As `roll` does, which would put the channels first.
    other, other_targets = torch.cat([pixels[-1:], pixels[:-1]]), targets.roll(1, dims=0)
    side = (1 - share).clamp_min(0).sqrt()[:, None]
    start = place * (1 - side)
    pasted = torch.where(_inside(pixels, start, start + side), other, pixels)
    weight = share.view(-1, 1, 1, 1).to(pixels.dtype)
    mixed = torch.where(mixup.view(-1, 1, 1, 1), weight * pixels + (1 - weight) * other, pasted)
    return mixed, share[:, None] * targets + (1 - share[:, None]) * other_targets


def _inside(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where a pixel lies in its image's rectangle, given as relative places (n, 2): bool, (n, 1, size, size)."""
    size = pixels.shape[-1]
    centres = (torch.arange(size, device=pixels.device) + 0.5) / size
    inside = (centres >= start[:, :, None]) & (centres < end[:, :, None])
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
