"""A small repository whose commits hold a model each, as after `dvc repro`: for tests of what compares commits."""

import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from dvc.repo import Repo

from stages.classifier.calibration import CALIBRATION, Calibration
from stages.dataset.pixels import MANIFEST, add_places
from stages.dataset.taxonomy import class_names
from stages.evaluation.predictions import predictions_table
from stages.files import MODELS, PREDICTIONS, PREPARED, write_csv, write_json

IMAGES = 120  # two of each lesion


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments], check=True)


def start_repository():
    """Make the working directory a repository of Git and DVC, with nothing committed."""
    git("init", "--quiet", "--initial-branch", "main")
    Repo.init(".").close()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")


def commit(name):
    """Commit the model in the workspace, as a branch."""
    with Repo() as repo:
        repo.add([str(PREDICTIONS), str(MODELS / "calibration.json"), str(PREPARED)])
    git("add", "--all")
    git("commit", "--quiet", "--message", name)
    git("branch", name)


def write_predictions(skill, images=range(IMAGES), *, seed=0, threshold=0.5, classes=2, diagnosis_of_first="nv"):
    """Write what `prepare` and `evaluate` would: two images a lesion, whose predictions get better with the skill.

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
        spread = np.isin(class_names(7), ["mel", "bcc", "akiec"])
        probabilities = np.where(spread, score[:, None] / 3, (1 - score[:, None]) / 4)
        labels = diagnoses
    predictions = predictions_table(table, "test", list(labels), probabilities)
    write_csv(PREDICTIONS, predictions)
    write_json(MODELS / CALIBRATION, asdict(Calibration(True, 1.0, threshold, 0.9, 0.5)))
    rows = table.assign(dx=diagnoses, dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown")
    write_csv(PREPARED / MANIFEST, add_places(rows))
    return rows, predictions
