"""Pictures of images: what was predicted for them, and what augmentation made of them."""

import numpy as np
from matplotlib.figure import Figure

from stages.dataset.pixels import PixelStore
from stages.evaluation.cases import most_confident_mistakes
from stages.evaluation.predictions import Predictions
from stages.figures.style import BLUE, DARK_GREY, GAP, SMALL, VERMILION, describe, new_canvas, say, show, side_of
from stages.reporting import counted, number, rounded_percent

ROWS, COLUMNS = 4, 3
_SIDE = side_of(COLUMNS)
_TEXT = 0.42  # inches above an image
_LINE = _TEXT + _SIDE + 0.42
_LONG, _MORE = 10, 0.2  # letters of a name that takes a line of its own, and the height of that


def draw_samples(predictions: Predictions, details: dict, store: PixelStore) -> Figure:
    """Images spread evenly over the order of confidence, with prediction and truth.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        store: that holds their pixels.
    """
    threshold = details["calibration"]["threshold"]
    decided = predictions.decided(threshold)
    order = np.argsort(-predictions.probabilities[np.arange(len(decided)), decided], kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(ROWS * COLUMNS, len(order))).astype(int)]
    figure = _draw_images(predictions, decided, chosen, store)
    describe(
        figure, "Predictions, from the most to the least confident", predictions,
        f"{_decision(predictions, threshold)}; below, whether it is right.",
    )  # fmt: skip
    return figure


def draw_mistakes(predictions: Predictions, details: dict, store: PixelStore) -> Figure:
    """The most confident mistakes, one of a lesion. Arguments as for `draw_samples`."""
    threshold = details["calibration"]["threshold"]
    chosen, decided = most_confident_mistakes(predictions, threshold, ROWS * COLUMNS), predictions.decided(threshold)
    wrong = int((decided != predictions.labels).sum())
    if len(chosen):
        figure = _draw_images(predictions, decided, chosen, store)
    else:
        figure, axes = new_canvas(3)
        say(axes, "no image was mistaken")
    describe(
        figure, "The most confident mistakes", predictions,
        f"{_decision(predictions, threshold)}. {counted(wrong, 'mistake')} in all, of which at most one of a lesion is "
        "shown.",
    )  # fmt: skip
    return figure


def draw_augmentation(examples: np.ndarray) -> Figure:
    """Training images beside what augmentation made of each: what the network saw.

    Args:
        examples: uint8, shape (images, 1 + versions, size, size, 3), the image itself first.
    """
    images, columns = examples.shape[:2]
    side, heading = side_of(columns), 0.3  # inches
    figure, axes = new_canvas(heading + images * (side + GAP))
    axes.text(GAP, heading - 0.06, "image", va="bottom")
    if columns > 1:
        axes.text(2 * GAP + side, heading - 0.06, "augmented", va="bottom")
    for line, row in enumerate(examples):
        for column, pixels in enumerate(row):
            show(axes, pixels, GAP + column * (side + GAP), heading + line * (side + GAP), side)
    versions = f"each {columns - 1} times, drawn anew in every epoch" if columns > 1 else "data.augment is false"
    describe(figure, "What the network is trained on", f"n = {images} of the training images, {versions}.")
    return figure


def _decision(predictions: Predictions, threshold: float) -> str:
    if predictions.classes.are_diagnoses:
        return f"{predictions.decision.capitalize()} with its probability"
    return f"Called malignant from a probability of {number(threshold)} on; P is that of malignancy"


def _draw_images(predictions: Predictions, decided: np.ndarray, rows: np.ndarray, store: PixelStore) -> Figure:
    """Images in lines of `COLUMNS`, each below the class decided for and above its id."""
    table, names = predictions.table, predictions.classes.names
    pixels = store.read(store.indices_of(table["image_id"][rows]))
    is_long = max(map(len, names)) > _LONG
    text_height, height = (part + is_long * _MORE for part in (_TEXT, _LINE))
    figure, axes = new_canvas(height * -(-len(rows) // COLUMNS))
    for position, (row, image) in enumerate(zip(rows, pixels)):
        line, column = divmod(position, COLUMNS)
        left, top = GAP + column * (_SIDE + GAP), line * height
        truth, guess = table["label"][row], names[decided[row]]
        right = guess == truth
        # Not by colour alone: the words differ too.
        verdict = "right" if right else f"true: {truth}"
        if predictions.classes.are_diagnoses:
            probability = rounded_percent(float(predictions.probabilities[row, decided[row]]))
        else:
            probability = f"P {rounded_percent(float(predictions.malignant_probability[row]))}"
        text = f"{guess}, {probability}\n{verdict}"
        if is_long:
            text = "\n".join([guess, f"{probability}, {verdict}"]).replace("true: ", "true:\n")
        axes.text(left, top + text_height, text, color=BLUE if right else VERMILION, va="bottom")
        show(axes, image, left, top + text_height + 0.04, _SIDE)
        below = top + text_height + _SIDE + 0.08
        axes.text(left, below, table["image_id"][row], size=SMALL, color=DARK_GREY, va="top")
    return figure
