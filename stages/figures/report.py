"""The report: one HTML page with all pictures and the numbers behind them, in one file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from stages.config import Config
from stages.figures.model_card import SYNTHETIC, source_of
from stages.figures.rendering import render_template
from stages.figures.verdict import judge, malignant_auroc
from stages.files import replacing
from stages.reporting import counted

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
    images: pd.DataFrame,
    about: Mapping[str, str],
    title: str = "Evaluation on the test fold",
    notes: Sequence[str] = (),
) -> None:
    """Write the report page: HTML without scripts, with its style and its pictures inside, a verdict at its head.

    The same content gives the same bytes: there is no date in it.

    Args:
        path: the file to write.
        details: the content of metrics/details.json; `baselines` and `leakage` may be None.
        pictures: folder of PNG files, of which none has to be there; the template has the place and the words of each.
        images: of the dataset: columns image_id and lesion_id.
        about: what was judged, in words, each by a name such as "Model".
        title: heading of the page.
        notes: what is to be known of the images, one paragraph each.
    """
    embedded = {file.stem: _embed(file) for file in sorted(pictures.glob("*.png"))}
    html = render_template(
        "report.html.j2",
        details=details,
        test=details["test"],
        pictures=embedded,
        findings=judge(details),
        tiles=(
            malignant_auroc(details["test"]["metrics"]),
            "sensitivity_at_threshold",
            "specificity_at_threshold",
            "balanced_accuracy",
        ),
        about=about,
        synthetic=source_of(images) is SYNTHETIC,
        title=title,
        notes=notes,
        most_pairs=MOST_PAIRS,
    )
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def describe_model(description: dict) -> str:
    """The model in a sentence, from what model.json holds."""
    size, count = description["image_size"], description["networks"]
    networks = f"mean of {count} networks, each " if count > 1 else ""
    epochs = ", ".join(str(epoch + 1) for epoch in description["epochs"])
    return f"{networks}{description['architecture']} at {size} × {size} pixels; weights of epoch {epochs}"


def describe_images(folder: str, images: pd.DataFrame) -> str:
    """The dataset in a sentence. Columns of `images`: image_id and lesion_id."""
    counts = f"{counted(len(images), 'image')} of {counted(images['lesion_id'].nunique(), 'lesion')}"
    return f"{folder} ({source_of(images).name}): {counts}"


def describe_run(description: dict, config: Config, images: pd.DataFrame) -> dict[str, str]:
    """What a run of the pipeline has judged.

    There is no commit in it: a file cannot name the one that it becomes part of.

    Args:
        description: the content of model.json.
        config: the parameters of the run.
        images: of the whole dataset: columns image_id and lesion_id.
    """
    split, training = config.split, config.training
    start = "from pretrained weights" if config.model.pretrained or config.model.weights else "from scratch"
    beside = (
        ""
        if config.model.metadata == "none"
        else f", age, sex and localization beside the image ({config.model.metadata})"
    )
    tests = f"all images of {split.test_source} test" if split.by == "source" else f"fold {split.test_fold} tests"
    return {
        "Model": describe_model(description) + beside,
        "Training": (
            f"{start}, {counted(training.max_epochs, 'epoch')} at most, batches of {training.batch_size}, "
            f"learning rate {training.learning_rate:g}, seed {training.seed}"
        ),
        "Data": describe_images(config.data.data_dir, images),
        "Split": (
            f"{tests}, fold {split.validation_fold} of {split.folds} chose epoch, temperature and thresholds, the "
            "others train; a lesion is in one fold only"
        ),
        "Parameters": "all of them are in the model card, models/README.md",
    }


def _embed(file: Path) -> Picture:
    with Image.open(file) as image:
        width, height = image.size
    return Picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii"), width, height)
