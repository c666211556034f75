"""The report: one HTML page with all pictures and the numbers behind them, in one file that needs nothing else."""

import base64
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from stages.figures.rendering import render_template
from stages.files import replacing

MOST_PAIRS = 50  # near-duplicates that are listed; metrics/details.json has all


class Caption(NamedTuple):
    """What is said of a picture: what it shows, for those who do not see it, and what is written below it."""

    alt: str
    caption: str


CAPTIONS = {
    "roc": Caption(
        "ROC curve of the test images: sensitivity against 1 − specificity.",
        "Sensitivity against the false positive rate, over all thresholds. The area under the curve is the AUROC.",
    ),
    "precision_recall": Caption(
        "Precision–recall curve of the test images: precision against sensitivity.",
        "Precision against sensitivity, over all thresholds. Precision depends on how common malignancy is here.",
    ),
    "thresholds": Caption(
        "Sensitivity and specificity of the test images against the decision threshold.",
        "What each threshold would give. The thresholds in use were chosen on the validation images.",
    ),
    "decision_curve": Caption(
        "Decision curve: net benefit against the threshold probability, beside treating all and treating none.",
        "Net benefit: true positives, less false positives at the rate of exchange that a threshold stands for.",
    ),
    "confusion_matrix": Caption(
        "Confusion matrices of the test images, by the most probable class and by the decision at the threshold.",
        "The true class against the most probable one, and the truth against the decision at the threshold in use.",
    ),
    "reliability": Caption(
        "Reliability diagram: fraction of malignant images against their predicted probability.",
        "On the diagonal, of the images with a probability of 30 % of malignancy 30 % are malignant.",
    ),
    "subgroups": Caption(
        "Sensitivity, specificity and AUROC with intervals in each group of images; the tables below have the numbers.",
        "The groups side by side.",
    ),
    "training_curves": Caption(
        "Loss, validation accuracy and learning rate against the epoch.",
        "The course of training; the epoch that was best on the validation images was kept.",
    ),
    "augmentation": Caption(
        "Training images beside what augmentation made of each.",
        "What the network is trained on: some training images, each beside what augmentation made of it.",
    ),
    "sample_predictions": Caption(
        "Test images with their predicted and true class, from the most to the least confident prediction.",
        "A sample of the test images, from the most to the least confident prediction.",
    ),
    "mistakes": Caption(
        "Test images whose most probable class is not the true one, the most confident first.",
        "The mistakes that the classifier was surest of.",
    ),
    "gradcam": Caption(
        "Test images, true positives and mistakes of both kinds, with heatmaps of what speaks for malignancy.",
        "Grad-CAM: what speaks for malignancy. It shows where the network looked, not whether it looked rightly.",
    ),
}


class Picture(NamedTuple):
    """A picture in the page: its bytes as an address, its size in pixels, and its words."""

    address: str
    width: int
    height: int
    words: Caption


def write_report(path: Path, details: dict, pictures: Path, title: str = "Evaluation on the test fold") -> None:
    """Write the report page: HTML without scripts, with its style and its pictures inside.

    The same content gives the same bytes: there is no date in it.

    Args:
        path: the file to write.
        details: the content of metrics/details.json; `baselines` and `leakage` may be None.
        pictures: folder of PNG files; those in `CAPTIONS` have their place on the page, others come last, and none has
            to be there.
        title: heading of the page.
    """
    embedded = {file.stem: _embed(file) for file in sorted(pictures.glob("*.png"))}
    html = render_template(
        "report.html.j2",
        details=details,
        test=details["test"],
        pictures=embedded,
        others=[name for name in embedded if name not in CAPTIONS],
        title=title,
        most_pairs=MOST_PAIRS,
    )
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def _embed(file: Path) -> Picture:
    name = file.stem.replace("_", " ")
    with Image.open(file) as image:
        width, height = image.size
    address = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
    return Picture(address, width, height, CAPTIONS.get(file.stem, Caption(f"Picture: {name}.", name)))
