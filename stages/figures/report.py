"""The report: one HTML page with all pictures and the numbers behind them, in one file that needs nothing else."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from stages.figures.rendering import render_template
from stages.files import replacing

MOST_PAIRS = 50  # near-duplicates that are listed; metrics/details.json has all


class Picture(NamedTuple):
    """A picture in the page: its bytes as an address, and its size in pixels."""

    address: str
    width: int
    height: int


def write_report(
    path: Path,
    details: dict,
    pictures: Path,
    title: str = "Evaluation on the test fold",
    notes: Sequence[str] = (),
) -> None:
    """Write the report page: HTML without scripts, with its style and its pictures inside.

    The same content gives the same bytes: there is no date in it.

    Args:
        path: the file to write.
        details: the content of metrics/details.json; `baselines` and `leakage` may be None.
        pictures: folder of PNG files, of which none has to be there; the template has the place and the words of each.
        title: heading of the page.
        notes: what is to be known of the images, one paragraph each.
    """
    embedded = {file.stem: _embed(file) for file in sorted(pictures.glob("*.png"))}
    html = render_template(
        "report.html.j2",
        details=details,
        test=details["test"],
        pictures=embedded,
        title=title,
        notes=notes,
        most_pairs=MOST_PAIRS,
    )
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def _embed(file: Path) -> Picture:
    with Image.open(file) as image:
        width, height = image.size
    return Picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii"), width, height)
