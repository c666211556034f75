"""What all pictures share: colours, sizes and a way to save them that gives the same bytes again."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from stages.files import replacing

# Okabe & Ito's palette, which colour-blind readers tell apart, without its yellow, which is faint on white.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK)
GREY = "#767676"

# Text of 13 points on 6 inches is still read on a phone's screen.
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
}

# A user's own matplotlibrc must not change a byte of a picture.
matplotlib.rcdefaults()
matplotlib.rcParams.update(STYLE)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A figure of `width` × `height` inches with its axes, which `options` describe as in `Figure.subplots`."""
    # Not through pyplot: no backend to choose, no window, no list of open figures that keeps them in memory.
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG. No version and no date in it: the same figure gives the same bytes."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
