"""A small repository in which a cross-validation has run: an experiment for each fold, and the prepared images."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.plain import HAM10000, PLAIN, told_apart
from benchmarks.sweep import set_parameters
from stages.classifier.calibration import apply_temperature, save_calibration
from stages.classifier.description import ModelDescription
from stages.classifier.networks import build_network
from stages.classifier.weights import save_model
from stages.config import BALANCED
from stages.dataset.pixels import add_places, shard_path, write_manifest
from stages.evaluation.assessment import assess, fit_calibration
from stages.evaluation.predictions import Predictions, describe_classes, predictions_table
from stages.files import DECIMALS, DETAILS, EVALUATION, PREDICTIONS, PREPARED, PUBLISHED, write_csv, write_json
from tests.history import git, start_repository

ROOT = Path(__file__).parents[1]
FOLDS, SIZE = 3, 16
NAMES = [f"fold-{number}" for number in range(FOLDS)]
IMAGES = 42 * FOLDS  # two of each lesion, the seven diagnoses in each fold
SETTINGS = replace(PLAIN.evaluation, bootstrap_replicates=100)
LEAKAGE = {
    "lesions_in_more_than_one_split": 0,
    "known_duplicates_apart": [],
    "near_duplicates": {"hash": "phash, 24×24 bits", "largest_distance": 120, "pairs": []},
}


def images() -> pd.DataFrame:
    """The manifest: rows whose order is not that of the folds."""
    numbers = np.arange(IMAGES)
    diagnoses = np.array(list(HAM10000))[numbers // 2 % 7]
    table = pd.DataFrame({"image_id": [f"I{n:03d}" for n in numbers], "lesion_id": [f"L{n // 2:03d}" for n in numbers]})
    site = {"localization": "back", "dataset": "unknown"}
    return table.assign(
        dx=diagnoses, dx_type="histo", age=50.0, sex=np.where(numbers % 4 < 2, "male", "female"), **site
    )


def fold_of(table: pd.DataFrame) -> np.ndarray:
    """The fold of each image: that of its lesion."""
    return np.arange(len(table)) // 14 % FOLDS


def outputs(sharpness: float = 1.5, own: float = 0.7) -> np.ndarray:
    """What the network of each fold gives for each image, before temperature scaling: (folds, images, 7)."""
    random, table = np.random.default_rng(0), images()
    truth = np.array(list(HAM10000)).tolist()
    logits = random.normal(size=(IMAGES, 7))
    logits[range(IMAGES), [truth.index(dx) for dx in table["dx"]]] += 1.5
    each = sharpness * (logits + own * random.normal(size=(FOLDS, IMAGES, 7)))
    return np.exp(each) / np.exp(each).sum(axis=2, keepdims=True)


def write_fold(number: int, raw: np.ndarray, classes: int = 7, networks: int = 1) -> None:
    """Write what the stages leave of the run that tests a fold.

    Args:
        number: of the fold.
        raw: what its network gives for each image, shape (images, 7).
        classes: 7, or 2.
        networks: of its model.
    """
    table, told = images(), told_apart(classes)
    folds, malignant = fold_of(table), np.array([HAM10000[dx].malignant for dx in table["dx"]])
    labels = table["dx"].map(told.names.index).to_numpy() if classes == 7 else malignant.astype(int)
    if classes == 2:
        score = raw[:, told_apart(7).is_malignant].sum(axis=1)
        raw = np.stack([1 - score, score], axis=1)
    members = {"val": folds == (number + 1) % FOLDS, "test": folds == number}
    val = members["val"]
    calibration = fit_calibration(raw[val], labels[val], told, SETTINGS)
    calibrated = apply_temperature(raw, calibration.temperature).round(DECIMALS)
    costs = (1 - np.eye(classes)) * (1 + number * np.arange(classes))[:, None]  # other ones in each fold
    calibration = replace(calibration, costs=costs.tolist())
    tables = [
        predictions_table(
            table[mine],
            split,
            [told.names[label] for label in labels[mine]],
            calibrated[mine],
            told,
        )
        for split, mine in members.items()
    ]
    tested = Predictions(tables[1].reset_index(drop=True), told, calibration.costs)
    mine = members["test"]
    details = {
        **describe_classes(told, HAM10000),
        "confidence": SETTINGS.confidence,
        "bootstrap_replicates": SETTINGS.bootstrap_replicates,
        "calibration": asdict(calibration),
        "val": None,
        "test": assess(tested, raw[mine], table[mine].reset_index(drop=True), calibration, SETTINGS),
        "baselines": None,
        "leakage": LEAKAGE,
    }
    write_csv(PUBLISHED[PREDICTIONS], pd.concat(tables))
    write_json(PUBLISHED[DETAILS], details)
    write_json(EVALUATION, {name: it["value"] for name, it in details["test"]["metrics"].items()})
    set_parameters(Path(), {"split.test_fold": number})
    torch.manual_seed(number)
    network = build_network("baseline_cnn", classes, SIZE)
    description = ModelDescription(
        architecture="baseline_cnn", networks=networks, classes=list(told.names), taxonomy=HAM10000, image_size=SIZE,
        mean=network.mean.flatten().tolist(), std=network.std.flatten().tolist(), epochs=[number], val_losses=[0.5],
        validation_folds=[], batch_size=8, accumulate_grad_batches=1,
    )  # fmt: skip
    save_model(network.eval(), description)
    save_calibration(calibration)


def commit_experiment(name: str, base: str) -> None:
    """Commit the workspace as an experiment of `base`, which is checked out again."""
    git("add", "--all")
    git("commit", "--quiet", "--message", name)
    git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", "HEAD")
    git("reset", "--quiet", "--hard", base)


def replace_experiment(number: int) -> None:
    """Commit the workspace as the experiment of a fold, instead of the one that there is."""
    base, name = git("rev-parse", "HEAD").strip(), NAMES[number]
    git("update-ref", "-d", git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").strip())
    commit_experiment(name, base)


def write_repository(classes: int = 7) -> None:
    """Make the working directory such a repository; experiments `fold-0`, `fold-1` …"""
    start_repository()
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("dvc.lock").write_text("stages:\n  train:\n    deps:\n    - {path: stages/train.py, md5: '0'}\n")
    quick = {
        "evaluation.bootstrap_replicates": 100,
        "split.folds": FOLDS,
        "model.num_classes": classes,
        "evaluation.decision": BALANCED,
    }
    set_parameters(Path(), quick)
    Path(".gitignore").write_text("/data\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "parameters")
    write_manifest(PREPARED, add_places(images()), HAM10000)
    np.save(shard_path(PREPARED, 0), np.random.default_rng(0).integers(0, 255, (IMAGES, SIZE, SIZE, 3), np.uint8))
    base = git("rev-parse", "HEAD").strip()
    for number, raw in enumerate(outputs()):
        write_fold(number, raw, classes)
        commit_experiment(NAMES[number], base)
