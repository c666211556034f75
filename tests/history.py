"""A small repository whose commits hold a run each, as after `dvc repro`: for tests of what compares commits."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from dvc.repo import Repo

from benchmarks.plain import HAM10000, told_apart
from stages.dataset.pixels import add_places, write_manifest
from stages.evaluation.curves import precision_recall_table, roc_table
from stages.evaluation.predictions import Predictions, describe_classes, predictions_table
from stages.files import (
    DETAILS,
    ENVIRONMENT,
    EVALUATION,
    PLOTS,
    PREDICTIONS,
    PREPARED,
    PUBLISHED,
    SPLIT_METRICS,
    read_json,
    write_csv,
    write_json,
)
from stages.plot import confusion_table

IMAGES = 120  # two of each lesion


def git(*arguments):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def start_repository():
    """Make the working directory a repository of Git and DVC, with nothing committed."""
    git("init", "--quiet", "--initial-branch", "main")
    Repo.init(".").close()


def add_remote(url, config=".dvc/config"):
    with Path(config).open("a") as file:
        file.write(f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n")


def commit(name):
    """Commit the workspace, as a branch; with the images, if there are any."""
    if PREPARED.exists():
        with Repo() as repo:
            repo.add(str(PREPARED))
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", name)
    git("branch", name)


def replace(path, old, new):
    """Put `new` where a file first has `old`."""
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new, 1), encoding="utf-8")


def change_parameter(old, new):
    replace("params.yaml", old, new)


def write_run(skill, images=range(IMAGES), *, speed=100.0, **options):
    """Write what the stages would of two test images per lesion; options as of `write_predictions`."""
    rows, table = write_predictions(skill, images, **options)
    test = Predictions(table, told_apart(2))
    for name, curve in (
        ("roc", roc_table(test.is_malignant, test.malignant_probability)),
        ("precision_recall", precision_recall_table(test.is_malignant, test.malignant_probability)),
    ):
        write_csv(PLOTS / f"{name}.csv", curve.assign(lower=0.1, upper=1.0))
    bins = {"predicted": [0.1, 0.9], "observed": [0.2, 0.8], "lower": [0.1, 0.6], "upper": [0.3, 0.9]}
    write_csv(PLOTS / "reliability.csv", pd.DataFrame(bins))
    write_csv(PLOTS / "confusion_matrix.csv", confusion_table(test))
    metrics = {"auroc": {"value": min(0.5 + skill / 5, 1), "interval": [0.5, 0.9]}}
    details = {"classes": list(test.classes.names), "confidence": 0.95, "test": {"metrics": metrics}}
    write_json(PUBLISHED[DETAILS], read_json(PUBLISHED[DETAILS]) | details)
    write_json(EVALUATION, {"auroc": metrics["auroc"]["value"]})
    counts = {dx: {"images": int(count), "lesions": 1} for dx, count in sorted(rows["dx"].value_counts().items())}
    split = {"images": len(rows), "lesions": rows["lesion_id"].nunique(), "diagnoses": counts}
    write_json(PUBLISHED[SPLIT_METRICS], {"test": split})
    Path("dvc.lock").write_text("stages:\n  train:\n    deps:\n    - {path: stages/train.py, md5: '0'}\n")
    # A commit differs always, and says nothing of the cost.
    environment = {"cpu": "x86_64", "cpu_cores": 2, "gpu": None, "commit": f"{speed}", "dirty": speed > 100}
    write_json(ENVIRONMENT, {**environment, "training_seconds": 60.0, "training_images_per_second": speed})


def write_predictions(skill, images=range(IMAGES), *, seed=0, threshold=0.5, classes=2, diagnosis_of_first="nv"):
    """Write what `prepare` and `evaluate` would: two images per lesion, whose predictions get better with the skill.

    Returns:
        The tables of the images and of the predictions.
    """
    images = np.array(images)
    diagnoses = np.array(["nv", "mel", "bcc", "bkl"])[images // 2 % 4].astype(object)
    diagnoses[images == 0] = diagnosis_of_first
    malignant = np.isin(diagnoses, ["mel", "bcc"]).astype(int)
    evidence = np.random.default_rng(seed).normal(size=IMAGES)[images] + skill * (2 * malignant - 1)
    score = 1 / (1 + np.exp(-2 * skill * evidence))
    table = pd.DataFrame(
        {"image_id": [f"I{image:03d}" for image in images], "lesion_id": [f"L{image // 2:02d}" for image in images]}
    )
    probabilities, labels = np.stack([1 - score, score], axis=1), np.array(["benign", "malignant"])[malignant]
    if classes == 7:
        spread = np.isin(told_apart(7).names, ["mel", "bcc", "akiec"])
        probabilities = np.where(spread, score[:, None] / 3, (1 - score[:, None]) / 4)
        labels = diagnoses
    predictions = predictions_table(table, "test", list(labels), probabilities, told_apart(classes))
    write_csv(PUBLISHED[PREDICTIONS], predictions)
    calibration = {"calibration": {"threshold": threshold}} if threshold is not None else {}
    described = describe_classes(told_apart(classes), HAM10000)
    write_json(PUBLISHED[DETAILS], calibration | described | {"test": {"metrics": {}}})
    rows = table.assign(dx=diagnoses, dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown")
    write_manifest(PREPARED, add_places(rows), HAM10000)
    return rows, predictions
