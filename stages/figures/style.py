"""What all pictures share: colours, sizes, words and a way to save them that gives the same bytes again."""

import io
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.evaluation.predictions import Predictions
from stages.files import replacing
from stages.forks import forked_processes
from stages.progress import progress_bar

# Okabe & Ito's palette, which colour-blind readers tell apart, without its yellow, which is faint on white.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000",
)  # fmt: skip
GREY, DARK_GREY = "#767676", "#444444"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY)
BAND = {"alpha": 0.2, "linewidth": 0}  # of an interval around a line

# Pictures are this wide: on a phone of 390 pixels their smallest text, of 10.5 points, is 9.5 pixels high.
WIDTH = 6.0  # inches
SMALL = 10.5  # points
GAP = 0.1  # inches between images
_LEFT = 0.02  # of the width
_TITLE = 0.36  # inches
_CAPTION_LINE = 0.19  # inches
_CAPTION_LETTERS = 76

STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a branch may be called $x$
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.06,
}

# A user's own matplotlibrc must not change a byte of a picture.
matplotlib.rcdefaults()
matplotlib.rcParams.update(STYLE)


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure `height` inches high, without its title, and its axes, which `options` describe as `Figure.subplots`."""
    # Not through pyplot: no backend to choose, no window, no list of open figures that keeps them in memory.
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, **options)


def new_canvas(height: float) -> tuple[Figure, Axes]:
    """A figure `height` inches high whose axes are not seen: they count inches from its upper left corner.

    Images side by side in one pair of axes are drawn in a third of the time that a pair for each takes.
    """
    figure, axes = new_figure(height)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0, h_pad=0)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def side_of(columns: int) -> float:
    """The side in inches of this many images in a row of a canvas, with `GAP` around them."""
    return (WIDTH - GAP) / columns - GAP


def show(axes: Axes, image: np.ndarray, left: float, top: float, side: float) -> None:
    """Draw an image (height, width, 3) as a square with sides of `side` inches on a canvas."""
    axes.imshow(image, extent=(left, left + side, top + side, top), aspect="auto")


def describe(figure: Figure, title: str, *paragraphs: str | Predictions) -> None:
    """Put a title and paragraphs on top of a figure, which grows by their height; predictions tell their number."""
    lines = []
    for paragraph in paragraphs:
        text = paragraph if isinstance(paragraph, str) else _sample_size(paragraph)
        lines += textwrap.wrap(text, _CAPTION_LETTERS)
    used = _TITLE + _CAPTION_LINE * len(lines) + 0.1
    height = figure.get_figheight() + used
    figure.set_figheight(height)
    # The layout of the axes knows nothing of these texts, so it costs no time for them.
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, 0, 1, 1 - used / height))
    figure.text(_LEFT, 1 - 0.08 / height, title, size=14, weight="bold", va="top")
    for number, line in enumerate(lines):
        top = 1 - (_TITLE + _CAPTION_LINE * number) / height
        figure.text(_LEFT, top, line, size=SMALL, color=DARK_GREY, va="top")


def say(axes: Axes, text: str) -> None:
    """Write into axes why there is nothing else in them."""
    axes.text(0.5, 0.5, textwrap.fill(text, 32), transform=axes.transAxes, ha="center", va="center", color=DARK_GREY)


def _sample_size(predictions: Predictions) -> str:
    """A sentence that says how many images and lesions of which split there are, and how many of them are malignant."""
    lesions = predictions.table["lesion_id"]
    malignant = lesions[predictions.is_malignant]
    return (
        f"n = {len(lesions)} {predictions.table['split'][0]} images of {lesions.nunique()} lesions, "
        f"{len(malignant)} images of {malignant.nunique()} lesions malignant."
    )


def save_all(pictures: dict[str, Figure], folder: Path) -> None:
    """Write each picture as NAME.png into a folder, side by side in processes: it takes seconds."""
    paths = [folder / f"{name}.png" for name in pictures]
    # Matplotlib draws in one thread at a time.
    workers = min(len(paths), os.cpu_count() or 1) if sys.platform == "linux" else 1
    with forked_processes(workers, _know, list(pictures.values())) as pool:
        drawn = pool.map(_draw, range(len(paths)))
        with progress_bar() as progress:
            for path, content in zip(paths, progress.track(drawn, len(paths), description="drawing")):
                with replacing(path) as partial:
                    partial.write_bytes(content)


_pictures: list[Figure]  # of a process that draws


def _know(pictures: list[Figure]) -> None:
    global _pictures
    _pictures = pictures


def _draw(number: int) -> bytes:
    return as_png(_pictures[number])


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file. No version and no date in it: the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
