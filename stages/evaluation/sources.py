"""How well the source of an image can be told: a network that tells it may have learned the source, not the lesion."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import laplace

from stages.evaluation.baselines import logistic_regression
from stages.evaluation.subgroups import MIN_LESIONS

FOLDS = 5
MOST_COMPONENTS = 32  # principal ones of the features: of hundreds a regression would fit the noise, and take minutes
PROPERTIES = ("sharpness", "contrast", "red", "green", "blue", "dark corners")


def tell_sources(evidence: Mapping[str, np.ndarray], sources: np.ndarray, lesions: np.ndarray) -> dict | None:
    """How well a regression tells the sources of images on which the network was not trained.

    Args:
        evidence: what it is to tell them by, each shape (n, numbers); many numbers by their principal components.
        sources: their names, shape (n,).
        lesions: the lesion of each image, shape (n,).

    Returns:
        `sources` that were told apart, those with `MIN_LESIONS` lesions; `chance`; and the balanced accuracy from each
        kind of evidence, by its name. None where there are fewer than two.
    """
    names = [name for name in np.unique(sources) if len(np.unique(lesions[sources == name])) >= MIN_LESIONS]
    if len(names) < 2:
        return None
    used = np.isin(sources, names)
    labels, groups = np.searchsorted(names, sources[used]), lesions[used]
    return {
        "sources": [str(name) for name in names],
        "chance": 1 / len(names),
        **{name: _balanced_accuracy(_principal(values[used]), labels, groups) for name, values in evidence.items()},
    }


def file_properties(manifest: pd.DataFrame) -> np.ndarray:
    """What the images' files show before they are decoded: how large, how wide and how strongly compressed they are.

    Args:
        manifest: columns width and height in pixels, and bytes.

    Returns:
        float64, shape (n, 3): logarithms of the pixels, of the ratio of the sides, and of the bytes per pixel.
    """
    width, height, size = (np.log(manifest[name].to_numpy(float)) for name in ("width", "height", "bytes"))
    return np.column_stack([width + height, width - height, size - width - height])


def trivial_properties(pixels: np.ndarray) -> np.ndarray:
    """What of an image has nothing to do with its lesion, by `PROPERTIES`.

    Of the pixels that the network sees, in which the size and the compression of the file show as sharpness only.

    Args:
        pixels: uint8, shape (n, size, size, 3), RGB.

    Returns:
        float64, shape (n, properties).
    """
    grey, corner = pixels.mean(axis=3), max(1, pixels.shape[1] // 10)
    corners = np.stack([grey[:, rows, columns] for rows in _ends(corner) for columns in _ends(corner)])
    sharpness = np.log1p(np.stack([laplace(image).var() for image in grey]))
    mean = grey.mean(axis=(1, 2))
    return np.column_stack(
        [sharpness, grey.std(axis=(1, 2)), pixels.mean(axis=(1, 2)), corners.mean(axis=(0, 2, 3)) / (mean + 1)]
    )


def _ends(length: int) -> tuple[slice, slice]:
    return slice(length), slice(-length, None)


def _principal(features: np.ndarray) -> np.ndarray:
    """Features on the axes along which they vary most; a few as they are."""
    if features.shape[1] <= MOST_COMPONENTS:
        return features
    centred = features.astype(float) - features.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :MOST_COMPONENTS]


def _balanced_accuracy(values: np.ndarray, labels: np.ndarray, lesions: np.ndarray) -> float:
    """Mean over the sources of the share of images that are told, each by a regression on other lesions."""
    spread = values.std(axis=0)
    known = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    design, one_hot = np.hstack([known, np.ones((len(known), 1))]), np.eye(labels.max() + 1)[labels]
    # Lesions in random order, those of a source one after another, so that each fold has as many.
    names, first, number = np.unique(lesions, return_index=True, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(names))
    fold = np.empty(len(names), int)
    fold[order[np.argsort(labels[first][order], kind="stable")]] = np.arange(len(names)) % FOLDS
    is_right = np.zeros(len(labels), bool)
    for held_out in range(FOLDS):
        tested = fold[number] == held_out
        train = ~tested
        weights = (len(labels) / np.bincount(labels[train], minlength=one_hot.shape[1]))[labels[train]]
        coefficients = logistic_regression(design[train], one_hot[train], weights / weights.mean())
        is_right[tested] = (design[tested] @ coefficients).argmax(axis=1) == labels[tested]
    return float(np.mean([is_right[labels == label].mean() for label in range(one_hot.shape[1])]))
