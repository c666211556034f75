"""Pictures of images with what was predicted for them."""

import numpy as np
from matplotlib.figure import Figure

from stages.dataset.pixels import PixelStore
from stages.evaluation.predictions import Predictions
from stages.figures.style import BLUE, VERMILION, new_figure

ROWS, COLUMNS = 3, 4


def draw_samples(predictions: Predictions, store: PixelStore) -> Figure:
    """Images of the test split, spread evenly over the order of confidence, with prediction and truth."""
    predicted = predictions.predicted
    confidence = predictions.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(ROWS * COLUMNS, len(order))).astype(int)]
    place = dict(zip(store.manifest["image_id"], range(len(store.manifest))))

    figure, grid = new_figure(8, 8.2, rows=ROWS, columns=COLUMNS)
    for axes in grid.flat:
        axes.axis("off")
    for axes, row in zip(grid.flat, chosen):
        truth = predictions.table["label"][row]
        guess = predictions.classes[predicted[row]]
        axes.imshow(store.read(np.array([place[predictions.table["image_id"][row]]]))[0])
        right = guess == truth
        # Not by colour alone: the words differ too.
        verdict = "right" if right else f"true: {truth}"
        axes.set_title(f"{guess} {confidence[row]:.0%}\n{verdict}", fontsize=12, color=BLUE if right else VERMILION)
    figure.suptitle("Test images, from the most to the least confident prediction")
    return figure
