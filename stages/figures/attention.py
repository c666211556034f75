"""The picture of where the network looked."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.dataset.pixels import PixelStore
from stages.evaluation.cases import KINDS
from stages.evaluation.predictions import Predictions
from stages.figures.overlay import overlay
from stages.figures.style import DARK_GREY, GAP, SMALL, describe, new_canvas, say, show, side_of
from stages.reporting import number, rounded_percent

COLUMNS = 4
_SIDE = side_of(COLUMNS)
_HEADING = 0.32  # inches
_TEXT = 0.4
_LINE = _TEXT + 2 * _SIDE + 0.4
_MEANINGS = {
    "true positive": "True positives: malignant, and called malignant",
    "false negative": "False negatives: malignant, and called benign",
    "false positive": "False positives: benign, and called malignant",
}


def draw_gradcam(
    predictions: Predictions, details: dict, cases: pd.DataFrame, heatmaps: np.ndarray, store: PixelStore
) -> Figure:
    """Each case as it is, and below with its heatmap over it.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        cases: columns case and image_id, as `choose_cases` gives them.
        heatmaps: uint8, shape (cases, cells, cells).
        store: that holds the images.
    """
    if cases.empty:
        figure, axes = new_canvas(3)
        say(axes, "no heatmaps: none were asked for, or the network has no feature maps that are fine enough")
        scale = ""
    else:
        figure = _draw_kinds(predictions, cases, heatmaps, store)
        cells = heatmaps.shape[1]
        scale = (
            f"Below each image its heatmap of {cells} × {cells} cells: yellow speaks most for malignancy, on a scale "
            "of each image; where there is no colour, nothing does."
        )
    describe(
        figure, "Where the network sees malignancy (Grad-CAM)", predictions,
        "Above each image what the lesion is, and the probability of malignancy that the network gave it; called "
        f"malignant from {number(details['calibration']['threshold'])} on. {scale}",
    )  # fmt: skip
    return figure


def _draw_kinds(predictions: Predictions, cases: pd.DataFrame, heatmaps: np.ndarray, store: PixelStore) -> Figure:
    """A section of each kind: a heading and lines of `COLUMNS` images with their overlays."""
    images = store.read(store.indices_of(cases["image_id"]))
    table = predictions.table.assign(score=predictions.malignant_probability).set_index("image_id")
    rows = {kind: np.flatnonzero(cases["case"] == kind) for kind in KINDS}
    lines = {kind: max(1, -(-len(mine) // COLUMNS)) for kind, mine in rows.items()}
    figure, axes = new_canvas(len(KINDS) * _HEADING + _LINE * sum(lines.values()))
    top = 0.0
    for kind, mine in rows.items():
        axes.text(GAP, top + 0.1, _MEANINGS[kind] + ("" if len(mine) else ": none"), weight="bold", va="top")
        top += _HEADING
        for position, row in enumerate(mine):
            line, column = divmod(position, COLUMNS)
            left, above = GAP + column * (_SIDE + GAP), top + line * _LINE
            image_id = cases["image_id"][row]
            text = f"is {table['label'][image_id]}\nP(malignant) {rounded_percent(table['score'][image_id])}"
            axes.text(left, above + _TEXT, text, size=SMALL, va="bottom")
            show(axes, images[row], left, above + _TEXT + 0.04, _SIDE)
            show(axes, overlay(images[row], heatmaps[row]), left, above + _TEXT + 0.08 + _SIDE, _SIDE)
            axes.text(left, above + _TEXT + 0.12 + 2 * _SIDE, image_id, size=SMALL, color=DARK_GREY, va="top")
        top += _LINE * lines[kind]
    return figure
