"""The report: one HTML page with all pictures and the numbers behind them, in one file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from stages.config import Config
from stages.evaluation.predictions import CHEAPEST_CLASS, MOST_PROBABLE_CLASS
from stages.figures.model_card import SYNTHETIC, source_of
from stages.figures.rendering import render_template
from stages.figures.verdict import judge, malignant_auroc
from stages.files import replacing
from stages.reporting import METRICS, counted, number

MOST_PAIRS = 50  # near-duplicates that are listed; metrics/details.json has all


class Picture(NamedTuple):
    """A picture in the page: its bytes as an address, and its size in pixels."""

    address: str
    width: int
    height: int


class Tile(NamedTuple):
    """A number in the page's head.

    Attributes:
        title: its name.
        meaning: what it is of, in words.
        estimate: its value and interval.
    """

    title: str
    meaning: str
    estimate: dict


def write_report(
    path: Path,
    details: dict,
    pictures: Path,
    images: pd.DataFrame,
    about: Mapping[str, str],
    title: str = "Evaluation on the test fold",
    notes: Sequence[str] = (),
    trained_on_synthetic: bool | None = None,
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
        trained_on_synthetic: whether what the model was trained on was drawn by a program; None: as these images were.
    """
    embedded = {file.stem: _embed(file) for file in sorted(pictures.glob("*.png"))}
    judged_on_synthetic = source_of(images) is SYNTHETIC
    trained_on_synthetic = judged_on_synthetic if trained_on_synthetic is None else trained_on_synthetic
    synthetic = {"trained": trained_on_synthetic, "judged": judged_on_synthetic}
    html = render_template(
        "report.html.j2",
        details=details,
        test=details["test"],
        pictures=embedded,
        findings=judge(details),
        tiles=choose_tiles(details),
        about=about,
        synthetic=[what for what, it_is in synthetic.items() if it_is],
        title=title,
        notes=notes,
        most_pairs=MOST_PAIRS,
    )
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def choose_tiles(details: dict) -> list[Tile]:
    """The numbers of the page's head: all of one decision, that at the threshold; and which diagnosis, if it tells."""
    test, calibration = details["test"], details["calibration"]
    metrics, area = test["metrics"], malignant_auroc(test["metrics"])
    rates = [f"{kind}_at_threshold" for kind in ("sensitivity", "specificity")]
    called = f"malignant is said from a probability of {number(calibration['threshold'])} on"
    tiles = [Tile(METRICS[area].title, METRICS[area].meaning, metrics[area])]
    tiles += [Tile(METRICS[name].title, f"{METRICS[name].meaning}; {called}", metrics[name]) for name in rates]
    if "classes" in test:
        decision = CHEAPEST_CLASS if "decided" in test else MOST_PROBABLE_CLASS
        decided = test.get("decided", metrics)["balanced_accuracy"]
        of = f"which of {len(details['classes'])} diagnoses, by {decision}"
        tiles.append(Tile(METRICS["balanced_accuracy"].title, of, decided))
    return tiles


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
