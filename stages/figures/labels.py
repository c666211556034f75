"""The page of lesions whose label is doubtful, in one file that needs nothing else."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.dataset.encoding import UNKNOWN
from stages.dataset.pixels import PixelStore, are_synthetic
from stages.evaluation.predictions import PREFIX
from stages.figures.model_card import REFERENCE_STANDARDS
from stages.figures.rendering import render_template
from stages.files import replacing
from stages.reporting import rounded_percent

MOST_IMAGES = 4  # of a lesion that are shown
COLUMNS = ["dx_type", "localization", "sex", "dataset"]
QUALITY = 90


def write_label_page(path: Path, found: pd.DataFrame, most: int, store: PixelStore, lesions: int) -> None:
    """Write the page: HTML without scripts, its pictures inside; the same content gives the same bytes.

    Args:
        path: the file to write.
        found: what `doubtful_labels` gives.
        most: lesions that are shown.
        store: the prepared images.
        lesions: how many were looked at.
    """
    rows = store.manifest.set_index("image_id")
    shown = []
    for row in found.head(most).to_dict("records"):
        lesion: Any = row
        ids = lesion["image_ids"].split(" ")
        pixels = store.read(store.indices_of(pd.Series(ids[:MOST_IMAGES])))
        first = rows.loc[ids[0]]
        likely = sorted(((value, name) for name, value in lesion.items() if name.startswith(PREFIX)), reverse=True)[:3]
        shown.append(
            lesion
            | {
                "pictures": [(image_id, _embed(image)) for image_id, image in zip(ids, pixels)],
                "more": len(ids[MOST_IMAGES:]),
                "known": [text for text in map(str, first[COLUMNS].replace(REFERENCE_STANDARDS)) if text != UNKNOWN],
                "likely": [f"{name.removeprefix(PREFIX)} {rounded_percent(value)}" for value, name in likely],
                "of_label": rounded_percent(lesion[PREFIX + lesion["label"]]),
            }
        )
    synthetic = are_synthetic(store.manifest["image_id"])
    names = {code: diagnosis.name for code, diagnosis in store.taxonomy.items() if PREFIX + code in found}
    html = render_template(
        "labels.html.j2",
        shown=shown, size=store.image_size, found=len(found), lesions=lesions, synthetic=synthetic, names=names,
    )  # fmt: skip
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def _embed(pixels: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
