"""Heatmaps over images: where a network looked."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

# Even steps of heat look even, to colour-blind readers too, and no colour of it is one of skin.
COLOURS = (colormaps["viridis"](np.arange(256))[:, :3] * 255).round()
LARGEST_ALPHA = 0.6  # the lesion still shows where it is hottest


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Lay a heatmap over an image: the hotter a pixel, the stronger its colour; where it is cold, the image stays.

    Args:
        image: uint8, shape (height, width, 3), RGB.
        heatmap: uint8, shape (cells, cells), 255 where it is hottest; enlarged to the image's size.

    Returns:
        uint8, shape (height, width, 3), RGB.
    """
    height, width = image.shape[:2]
    heatmap = np.asarray(Image.fromarray(heatmap).resize((width, height), Image.Resampling.BILINEAR))
    alpha = heatmap[..., None] * (LARGEST_ALPHA / 255)
    return (image * (1 - alpha) + COLOURS[heatmap] * alpha).round().astype(np.uint8)
