"""Which parameters make the classifier better: one changed at a time, evaluated on validation folds only.

    python -m benchmarks.recipe --data-dir data/ham10000
    python -m benchmarks.recipe --data-dir data/ham10000 --variants base warm-up --part 0/2 --time-limit 3000
    python -m benchmarks.recipe --data-dir data/ham10000 --across data/ham10000-224 --output across
    python -m benchmarks.recipe --ensembles
    python -m benchmarks.recipe --table

Each variant is `BASE` with a few other parameters. It is trained by `train_model` of `stages/training/fit.py` on
every validation fold and seed, all in one process, so that imports and cuDNN's plans are paid once; the test fold is
never predicted. Of each run the validation images are predicted with and without test-time augmentation, and the
former once more with what the metadata say, or nothing said to a network that takes them. The base comes first, then
one variant after another. With `--across`, other pictures of the same lesions are predicted as well, those of the
validation fold; their folds are the same.

Every run is one line of `<output>/part-<i>-of-<n>.jsonl`, written when it ends: a run that stands in any .jsonl file of
the folder is not done again. Its probabilities go to the .npz file of the same name, which Git ignores; `--ensembles`
averages them over the seeds of a variant and fold. `--table` prints the tables from the .jsonl files alone.
"""

import argparse
import contextlib
import functools
import gc
import hashlib
import io
import json
import operator
import tempfile
import time
from dataclasses import asdict, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from scipy.special import softmax

from benchmarks.plain import PLAIN, told_apart
from stages.classifier.calibration import apply_temperature
from stages.classifier.description import DESCRIPTION
from stages.classifier.hardware import describe_environment, set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.temperature import fit_temperature
from stages.classifier.weights import load_model
from stages.config import Config, SplitConfig, override, parse_yaml
from stages.dataset.folds import lesion_groups
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.metadata import subsample_lesions
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT
from stages.errors import InputError, TerminatedError
from stages.evaluation.baselines import predict_from_metadata
from stages.evaluation.calibration import weighted_calibration
from stages.evaluation.history import read_history
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import as_malignancy, malignant_probability
from stages.evaluation.uncertainty import combine
from stages.evaluation.weighted import weighted_sensitivity_at
from stages.files import JSON_DECIMALS, replacing, write_csv
from stages.launch import run
from stages.prepare import prepare_dataset
from stages.split import split_dataset
from stages.training.fit import Training, train_model

RESULTS = Path("benchmarks/results/recipe")
ENSEMBLES = "ensembles.jsonl"
ACROSS = "across"
# Overrides that are not parameters: the fraction of the training lesions, of which validation has no part; and the
# parameters in which a teacher, trained first, differs from its student.
TRAIN_LESIONS, TEACHER = "train_lesions", "teacher"

BASE = {
    "data.image_size": 144,
    "model.name": "efficientnet",
    "model.variant": "lite0",
    "model.num_classes": 7,
    "model.pretrained": True,
    "training.max_epochs": 20,
    "training.batch_size": 128,
    "training.learning_rate": 1e-3,
    "training.lr_warmup_epochs": 1,
    "training.ema_decay": 0.99,
    "training.early_stopping_patience": 1000,  # never: all epochs are run
}

# What was found, on validation folds: benchmarks/README.md has the runs that led to it.
RECIPE = BASE | {
    "data.image_size": 224,
    "model.dropout_rate": 0.5,
    "training.max_epochs": 15,
    "training.learning_rate": 3e-3,
    "training.monitor": "val_calibrated_loss",
    "training.class_balance": "logits",
    "training.class_balance_strength": 0.25,
}

_SCRATCH = {"model.pretrained": False}
_TAUGHT = {
    TEACHER: {
        "model.ensemble": 5,
        "model.ensemble_over": "folds",
        "data.mixup": 0.0,
        "training.max_epochs": 15,
        "training.teacher_weight": 1.0,  # of no effect: all students have the same teacher
    }
}
_PLAIN = {"data.augment": True, "data.cutout": 0.0, "data.mixup": 0.0, "data.cutmix": 0.0}
# Values of the base are listed as well: their run is the base's, and the tables stay whole when the base changes.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "base": {"base": {}},
    "image size": {f"image-size-{size}": {"data.image_size": size} for size in (96, 112, 144, 192, 224, 288)},
    "network": {
        **{lite: {"model.name": "efficientnet", "model.variant": lite} for lite in ("lite0", "lite1", "lite2")},
        "lite0-from-scratch": _SCRATCH,
        "resnet18-from-scratch": {"model.name": "resnet", "model.variant": 18} | _SCRATCH,
        "baseline-cnn-from-scratch": {"model.name": "baseline_cnn", "model.variant": None} | _SCRATCH,
    },
    "augmentation": {
        "augmentation-off": _PLAIN | {"data.augment": False},
        "augmentation-usual": _PLAIN,
        **{f"strength-{factor}": _PLAIN | {"data.augment_strength": factor} for factor in (0.0, 0.5, 2.0)},
        "cutout": _PLAIN | {"data.cutout": 0.3},
        "mixup": _PLAIN | {"data.mixup": 0.2},
        "cutmix": _PLAIN | {"data.cutmix": 1.0},
    },
    "acquisition": {f"acquisition-{factor}": {"data.acquisition_strength": factor} for factor in (0.0, 0.5, 1.0, 2.0)},
    "warm-up": {f"warm-up-{epochs}": {"training.lr_warmup_epochs": epochs} for epochs in (0, 1, 3)},
    "schedule": {kind: {"training.lr_scheduler": kind} for kind in ("cosine", "step", "exponential")},
    "optimizer": {
        "adamw": {"training.optimizer": "adamw"},
        **{
            # The learning rate multiplies the decay of the weights: one that is tens of times as high wants less of it.
            f"sgd-{rate}": {
                "training.optimizer": "sgd",
                "training.learning_rate": rate,
                "training.weight_decay": 1e-4,
            }
            for rate in (0.01, 0.03)
        },
    },
    "learning rate": {f"rate-{rate}": {"training.learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)},
    "layer decay": {f"layer-decay-{decay}": {"training.layer_decay": decay} for decay in (0.7, 0.85, 1.0)},
    "class balance": {
        "balance-none": {"training.class_balance": "none", "training.class_balance_strength": 1.0},
        **{
            f"{kind}-{strength}": {"training.class_balance": kind, "training.class_balance_strength": strength}
            for kind, strength in [*product(("sampling", "weights", "logits"), (0.5, 1.0)), ("logits", 0.25)]
        },
    },
    "label smoothing": {f"smoothing-{share}": {"training.label_smoothing": share} for share in (0.0, 0.05, 0.1)},
    "weight average": {f"ema-{decay}": {"training.ema_decay": decay} for decay in (0.0, 0.99, 0.998)},
    "dropout": {f"dropout-{rate}": {"model.dropout_rate": rate} for rate in (0.0, 0.2, 0.5)},
    "drop path": {f"drop-path-{rate}": {"model.drop_path_rate": rate} for rate in (0.0, 0.1, 0.2)},
    "monitor": {f"monitor-{loss}": {"training.monitor": loss} for loss in ("val_loss", "val_calibrated_loss")},
    "epochs": {f"epochs-{epochs}": {"training.max_epochs": epochs} for epochs in (10, 15, 20, 25, 40)},
    "batch size": {f"batch-{size}": {"training.batch_size": size} for size in (64, 128, 256)},
    "weight decay": {f"weight-decay-{decay}": {"training.weight_decay": decay} for decay in (0.01, 0.05, 0.1)},
    "classes": {f"classes-{classes}": {"model.num_classes": classes} for classes in (2, 7)},
    "training lesions": {f"lesions-{share}": {TRAIN_LESIONS: share} for share in (0.25, 0.5, 1.0)},
    "metadata in the network": {
        f"metadata-{fusion}": {"model.metadata": fusion} for fusion in ("none", "late", "fused")
    },
    "several networks": {
        "networks-1": {"model.ensemble": 1},
        "networks-3-predictions": {"model.ensemble": 3},
        "networks-3-folds": {"model.ensemble": 3, "model.ensemble_over": "folds"},
    },
    "distillation": {
        "taught-0.5": _TAUGHT | {"training.teacher_weight": 0.5},
        "taught-1.0": _TAUGHT | {"training.teacher_weight": 1.0},
        "taught-1.0, epochs-30": _TAUGHT | {"training.teacher_weight": 1.0, "training.max_epochs": 30},
        "taught-1.0, epochs-30, mixup": _TAUGHT
        | {"training.teacher_weight": 1.0, "training.max_epochs": 30, "data.mixup": 0.2},
    },
}
_VARIANTS = {name: changes for variants in FAMILIES.values() for name, changes in variants.items()}


def _together(*names: str) -> dict[str, dict[str, Any]]:
    """Several variants as one, which is named after them all; where two change a parameter, the last one does."""
    return {", ".join(names): functools.reduce(operator.or_, (_VARIANTS[name] for name in names))}


# What was better alone is tried together.
FAMILIES["together"] = {
    **_together("rate-0.003", "smoothing-0.1", "dropout-0.5"),
    **_together("rate-0.003", "smoothing-0.1", "drop-path-0.2"),
    **_together("rate-0.003", "smoothing-0.1", "logits-0.5"),
    **_together("rate-0.003", "smoothing-0.1", "epochs-40"),
    **_together("rate-0.003", "mixup"),
    "rate-0.003, mixup, cutmix, epochs-30": {
        "training.learning_rate": 3e-3, "data.mixup": 0.2, "data.cutmix": 1.0, "training.max_epochs": 30,
    },
    **_together("rate-0.003", "smoothing-0.1", "dropout-0.5", "image-size-224"),
    **_together("rate-0.003", "smoothing-0.1", "dropout-0.5", "image-size-224", "lite1"),
    **_together("rate-0.003", "dropout-0.5", "image-size-224", "epochs-15"),
    **_together("batch-64", "drop-path-0.1"),
    **_together("batch-64", "drop-path-0.1", "logits-0.5"),
    **_together("rate-0.001", "logits-0.5"),
    **_together("rate-0.001", "drop-path-0.1", "logits-0.25"),
    **_together("drop-path-0.1", "logits-0.25", "epochs-20"),
    **_together("acquisition-1.0", "strength-2.0"),
    **_together("acquisition-1.0", "strength-2.0", "epochs-25"),
    **_together("acquisition-1.0", "strength-2.0", "drop-path-0.1", "epochs-25"),
    **_together("acquisition-1.0", "mixup", "epochs-25"),
}  # fmt: skip


def resolve(base: dict, changes: dict) -> dict:
    """The overrides of a variant, without those that only say what holds anyway: then its run is the base's."""
    return {name: value for name, value in sorted((base | changes).items()) if value != _default(name)}


def _default(name: str) -> Any:
    if name == TRAIN_LESIONS:
        return 1.0
    section, _, key = name.partition(".")
    return getattr(getattr(PLAIN, section, None), key, None)


def configure(overrides: dict) -> Config:
    """The plain recipe with other values, by dotted names.

    Raises:
        InputError: there is no such parameter, or it cannot have this value.
    """
    return override(PLAIN, overrides)


def plan(names: list[str], base: dict, folds: list[int], seeds: list[int]) -> list[dict]:
    """The runs of variants, and of whole families, one variant after another.

    Args:
        names: of variants and families; "all" for everything.
        base: the overrides that all have.
        folds: that validate.
        seeds: of training.

    Returns:
        `variant`, `overrides`, `fold` and `seed` of each run; variants with the same overrides are run once.

    Raises:
        InputError: there is no such variant, or one cannot be run; all are named together.
    """
    chosen = {
        variant: changes
        for family, variants in FAMILIES.items()
        for variant, changes in variants.items()
        if not {"all", family, variant}.isdisjoint(names)
    }
    known = {"all", *FAMILIES, *(variant for variants in FAMILIES.values() for variant in variants)}
    problems = {
        f"{name} is not a variant or family; close are {', '.join(get_close_matches(name, known, cutoff=0.3))}": None
        for name in names
        if name not in known
    }
    runs: dict[str, dict] = {}
    for variant, changes in chosen.items():
        for fold, seed in product(folds, seeds):
            planned = {"variant": variant, "overrides": resolve(base, changes), "fold": fold, "seed": seed}
            runs.setdefault(key(planned), planned)
            try:
                config_of(planned)
            except InputError as error:
                problems[f"{variant}: {error}"] = None
    if problems:
        raise InputError("\n  ".join(["these cannot be run:", *problems]))
    return list(runs.values())


def config_of(planned: dict) -> Config:
    """The parameters of a run.

    Raises:
        InputError: one of them does not exist, or cannot have its value.
    """
    parameters = {name: value for name, value in planned["overrides"].items() if "." in name}
    own = {"split.val_fold": planned["fold"], "training.seed": planned["seed"], "training.resume": False}
    return configure(parameters | own)


def key(planned: dict) -> str:
    """What tells a run, or its record, from all others."""
    return json.dumps([planned["overrides"], planned["fold"], planned["seed"]], sort_keys=True)


def keep_lesions(split: pd.DataFrame, manifest: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The split with a fraction of the training lesions of each diagnosis; the others are held out, as test images are.

    A smaller fraction is a subset of a larger one, and the same for every seed. Rows of validation and test stay.

    Args:
        split: what `split_dataset` gives.
        manifest: of the same images, with dx.
        fraction: in (0, 1].
    """
    in_train = split["split"] == "train"
    kept = subsample_lesions(manifest[in_train.to_numpy()], fraction)["image_id"]
    # A split names every prepared image, and only training and validation look at theirs.
    dropped = in_train & ~split["image_id"].isin(kept)
    return split.assign(split=split["split"].mask(dropped, "test"))


def halves(images: pd.DataFrame) -> np.ndarray:
    """Which images belong to the first half of the lesions, bool of shape (n,): of each image it is always the same."""
    groups = lesion_groups(images)
    lesions = np.random.default_rng(0).permutation(np.unique(groups))
    return groups.isin(lesions[: len(lesions) // 2]).to_numpy()


def cross_fitted(probabilities: np.ndarray, labels: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Probabilities of each half scaled with the temperature that the other half asks for, shape (n, classes)."""
    scaled = np.empty_like(probabilities)
    for mine in (half, ~half):
        scaled[mine] = apply_temperature(probabilities[mine], fit_temperature(probabilities[~mine], labels[~mine]))
    return scaled


def fuse(image: np.ndarray, metadata: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probabilities given image and metadata, which are taken to be independent within a class, shape (n, classes).

    Args:
        image: given the image, shape (n, classes).
        metadata: given the metadata, shape (n, classes).
        prior: of the classes among the training images, shape (classes,).
    """
    image_log, metadata_log, prior_log = (
        np.log(np.maximum(part, np.finfo(np.float64).tiny)) for part in (image, metadata, prior)
    )
    return softmax(image_log + metadata_log - prior_log, axis=1)


def assess(probabilities: np.ndarray, labels: np.ndarray, half: np.ndarray) -> dict[str, float | None]:
    """The metrics of uncalibrated probabilities of validation images.

    Ranking is that of the probabilities as they are; calibration errors, and decisions at a probability of malignancy
    of 0.5, are of `cross_fitted` ones. Two classes have only the metrics of malignancy, `malignant_…`.

    Args:
        probabilities: shape (n, 2) or (n, 7).
        labels: shape (n,).
        half: what `halves` gives.
    """
    once, classes = np.ones((1, len(labels))), told_apart(probabilities.shape[1])
    calibrated = cross_fitted(probabilities, labels, half)
    is_malignant = classes.is_malignant[labels]
    score, decided = malignant_probability(probabilities, classes), as_malignancy(calibrated, classes)
    uncalibrated = as_malignancy(probabilities, classes)
    two, ranked = (
        compute_metrics(each, is_malignant.astype(int), BENIGN_OR_MALIGNANT)["metrics"]
        for each in (decided, uncalibrated)
    )
    specificity = weighted_sensitivity_at(np.array([0.9]), -score, ~is_malignant, once)
    numbers = {
        "malignant_auroc": ranked["auroc"],
        "malignant_accuracy": two["accuracy"],
        "malignant_balanced_accuracy": two["balanced_accuracy"],
        "malignant_specificity_at_90": specificity[0, 0],
        "malignant_ece": combine("ece", weighted_calibration(decided, is_malignant.astype(int), once)["ece"])[0],
    }
    if classes.are_diagnoses:
        seven, errors = (
            compute_metrics(probabilities, labels, classes)["metrics"],
            weighted_calibration(calibrated, labels, once),
        )
        numbers |= {name: seven[name] for name in ("accuracy", "balanced_accuracy", "macro_auroc")}
        numbers |= {"nll": errors["nll"][0], "ece": combine("ece", errors["ece"])[0]}
        numbers["nll_uncalibrated"] = weighted_calibration(probabilities, labels, once)["nll"][0]
    return {name: _rounded(value) for name, value in numbers.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), JSON_DECIMALS)


def prepared(data_dir: Path, size: int, cache: Path) -> Path:
    """The folder of the dataset's pixels at a size; `prepare` fills it where it is not in the cache."""
    folder = cache / f"{data_dir.name}-{size}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # another part may want it, too
        if not folder.exists():
            prepare_dataset(replace(PLAIN.data, data_dir=str(data_dir), image_size=size), folder)
    return folder


@functools.cache  # takes seconds
def _split_of(folders: tuple[Path, ...], config: SplitConfig) -> pd.DataFrame:
    """The split of the images of several stores together; an image that several have stands in it once."""
    manifests = [PixelStore(folder).manifest for folder in folders]
    return split_dataset(pd.concat(manifests, ignore_index=True).drop_duplicates("image_id", ignore_index=True), config)


def _rows_of(split: pd.DataFrame, store: PixelStore) -> pd.DataFrame:
    """The rows of a store's images."""
    return split.set_index("image_id").loc[store.manifest["image_id"]].reset_index()


class Measured(NamedTuple):
    """What a run gives.

    Attributes:
        record: the run, its metrics by reading (tta, plain, metadata, across), and how it went.
        probabilities: `plain` and `tta` of the validation images, uncalibrated, with their `labels` and `half`.
    """

    record: dict
    probabilities: dict[str, np.ndarray]


def measure(planned: dict, data_dir: Path, cache: Path, across: Path | None = None) -> Measured:
    """Train one variant on one fold and seed, and evaluate it on the validation images, and on those of `across`.

    Raises:
        InputError: a parameter does not fit, or training diverged.
    """
    start = time.perf_counter()
    config = config_of(planned)
    classes = int(config.model.num_classes)
    folders = tuple(prepared(each, config.data.image_size, cache) for each in (data_dir, across) if each)
    folder, stores = folders[0], [PixelStore(each) for each in folders]
    store, table = stores[0], _split_of(tuple(sorted(folders)), config.split)
    fraction = planned["overrides"].get(TRAIN_LESIONS, 1.0)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        split, others = scratch / "split.csv", scratch / "across.csv"
        write_csv(split, keep_lesions(_rows_of(table, store), store.manifest, fraction))
        write_csv(others, _rows_of(table, stores[-1]))
        outputs = [scratch / name for name in ("models", "metrics", "checkpoints")]
        with contextlib.redirect_stdout(io.StringIO()):  # one line per epoch
            if teacher := planned["overrides"].get(TEACHER):
                taught_by = _teach(override(config, teacher), folder, split, cache)
                config = override(config, {"training.teacher": str(taught_by)})
            training = cast(Training, train_model(config, folder, split, *outputs))
        epochs = len(read_history(outputs[1]))
        encoding = training.description.metadata
        train, val = (SplitImages(store, name, split, classes, encoding=encoding) for name in ("train", "val"))
        elsewhere = SplitImages(stores[-1], "val", others, classes, encoding=encoding)
        device = set_up_device(config.runtime.cpu_threads)

        def predicted(
            images: SplitImages, views: bool, metadata: np.ndarray | None, models: Path = outputs[0]
        ) -> np.ndarray:
            network, _ = load_model(models)
            batches = (batch.images for batch in Batches(images, config.evaluation.batch_size, device))
            return predict_probabilities(network, batches, device, views, metadata)

        tta, plain = (predicted(val, views, val.metadata) for views in (True, False))
        alone = {} if encoding is None else {"image_alone": predicted(val, True, None)}
        if config.training.teacher is not None:
            alone["teacher"] = predicted(val, True, val.metadata, Path(config.training.teacher))
        other = None if across is None else predicted(elsewhere, True, elsewhere.metadata)
    labels, half = val.labels.numpy(), halves(val.table)
    prior = np.bincount(train.labels, minlength=classes) / len(train)
    readings = {
        "tta": tta,
        "plain": plain,
        **alone,
        "metadata": fuse(tta, predict_from_metadata(train.table, train.labels.numpy(), val.table, classes), prior),
    }
    metrics = {name: assess(probabilities, labels, half) for name, probabilities in readings.items()}
    if other is not None:
        metrics[ACROSS] = assess(other, elsewhere.labels.numpy(), halves(elsewhere.table))
    record = planned | {
        "data": {"images": len(store.manifest), "lesions": int(store.manifest["lesion_id"].nunique())},
        "images": {"train": len(train), "val": len(val)},
        "metrics": metrics,
        "best_epoch": training.description.epochs[0] + 1,
        "epochs": epochs,
        "training_seconds": round(training.seconds, 1),
        "images_per_second": round(training.images_per_second),
        "seconds": round(time.perf_counter() - start, 1),
        "on": _machine(),
    }
    return Measured(record, {"tta": tta, "plain": plain, "labels": labels, "half": half})


def _teach(config: Config, folder: Path, split: Path, cache: Path) -> Path:
    """The folder of a teacher in the cache, where it is trained if it is not there."""
    digest = hashlib.sha256(json.dumps([str(folder), asdict(config)], sort_keys=True, default=str).encode()).hexdigest()
    models = cache / f"teacher-{digest[:16]}"
    if not (models / DESCRIPTION).exists():
        with tempfile.TemporaryDirectory() as scratch:
            train_model(config, folder, split, models, *(Path(scratch, name) for name in ("metrics", "checkpoints")))
    return models


@functools.cache
def _machine() -> dict:
    about = describe_environment()
    commit = about["commit"] and f"g{about['commit'][:10]}{'-dirty' * bool(about['dirty'])}"  # as `git describe` has it
    return {"device": about["gpu"] or about["cpu"], "commit": commit} | {
        name: about[name] for name in ("python", "torch")
    }


def release_memory() -> None:
    """Give back what the run before held on the GPU: Lightning's objects refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_records(output: Path, ensembles: bool = False) -> list[dict]:
    """The runs that are recorded in a folder, or the ensembles.

    Raises:
        InputError: they are of more than one dataset.
    """
    paths = [path for path in sorted(output.glob("*.jsonl")) if (path.name == ENSEMBLES) == ensembles]
    records = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    if len({json.dumps(record["data"], sort_keys=True) for record in records}) > 1:
        raise InputError(f"{output} has runs of more than one dataset; give each an --output of its own")
    return records


def append(path: Path, record: dict) -> None:
    """Add a line to a file, which is replaced as a whole: a kill leaves no half line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    with replacing(path) as partial:
        partial.write_text(text + json.dumps(record, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _name(record: dict) -> str:
    return hashlib.sha256(key(record).encode()).hexdigest()[:16]


def store_probabilities(path: Path, record: dict, arrays: dict[str, np.ndarray]) -> None:
    """Add a run's probabilities to an .npz file, in single precision."""
    small = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()}
    kept: dict[str, Any] = {}
    if path.exists():
        with np.load(path) as stored:
            kept = dict(stored)
    with replacing(path) as partial, partial.open("wb") as file:
        kept |= {f"{_name(record)}.{name}": array for name, array in small.items()}
        np.savez(file, **kept)


def read_probabilities(output: Path) -> dict[str, np.ndarray]:
    """All that `store_probabilities` wrote to a folder."""
    found = {}
    for path in sorted(output.glob("*.npz")):
        with np.load(path) as stored:
            found |= dict(stored)
    return found


def average_seeds(records: list[dict], arrays: dict[str, np.ndarray]) -> list[dict]:
    """A record of each variant and fold with several seeds: the metrics of their mean probabilities."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for record in records:
        if f"{_name(record)}.tta" in arrays:
            groups.setdefault((_spelt(record["overrides"]), record["fold"]), []).append(record)
    averaged = []
    for members in (sorted(members, key=lambda record: record["seed"]) for members in groups.values()):
        if len(members) > 1:
            labels, half = (arrays[f"{_name(members[0])}.{name}"] for name in ("labels", "half"))
            means = {
                name: np.mean([arrays[f"{_name(member)}.{name}"].astype(np.float64) for member in members], axis=0)
                for name in ("tta", "plain")
            }
            averaged.append(
                {name: members[0][name] for name in ("variant", "overrides", "fold", "data")}
                | {"seed": [member["seed"] for member in members]}
                | {"metrics": {name: assess(mean, labels, half) for name, mean in means.items()}}
            )
    return averaged


COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "nll": "NLL",
    "ece": "ECE",
    "malignant_auroc": "malignant AUROC",
    "malignant_accuracy": "malignancy: accuracy",
    "malignant_balanced_accuracy": "malignancy: balanced accuracy",
    "malignant_specificity_at_90": "malignancy: specificity at 90 % sensitivity",
    "malignant_ece": "malignancy: ECE",
}
BEST_EPOCH = "best_epoch"


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        name: of the line.
        runs: numbers by run, and by the names of `COLUMNS` and `BEST_EPOCH`.
        others: those that each run is compared with, by run; empty where there is nothing to compare.
    """

    name: str
    runs: dict[Any, dict]
    others: dict[Any, dict]


def spread(values: list[float], pattern: str) -> str:
    """Mean ± standard deviation (n − 1); a single value has none."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):{pattern.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{pattern}}{deviation}"


def cell(row: Row, column: str) -> str:
    """Mean ± standard deviation over the runs, and in brackets that of the paired differences."""
    own = {run: numbers[column] for run, numbers in row.runs.items() if numbers.get(column) is not None}
    if column == BEST_EPOCH:
        return spread(list(own.values()), ".1f")
    pairs = [
        value - row.others[run][column]
        for run, value in own.items()
        if run in row.others and row.others[run].get(column) is not None
    ]
    return spread(list(own.values()), ".3f") + (f" ({spread(pairs, '+.3f')})" if pairs else "")


def table(records: list[dict], ensembles: list[dict], base: dict, reading: str = "tta") -> str:
    """A Markdown table of each family: means over folds and seeds, and paired differences to the base."""
    runs_of: dict[str, dict[tuple[int, int], dict]] = {}
    for record in records:
        runs_of.setdefault(_spelt(record["overrides"]), {})[record["fold"], record["seed"]] = record
    base_runs = runs_of.get(_spelt(resolve(base, {})), {})
    base_numbers = {run: _numbers(record, reading) for run, record in base_runs.items()}

    sections = []
    for family, variants in FAMILIES.items():
        rows = []
        for name, changes in variants.items():
            spelt = _spelt(resolve(base, changes))
            if runs := runs_of.get(spelt):
                numbers = {run: _numbers(record, reading) for run, record in runs.items()}
                rows.append(Row(name, numbers, {} if runs is base_runs else base_numbers))
        if family == "base" or any(row.others for row in rows):  # of the base alone there is nothing to compare
            sections.append((family, rows))
    sections += [
        ("test-time augmentation", _reading_rows("plain", "without", base_runs, records)),
        ("metadata", _reading_rows("metadata", "image and metadata", base_runs, records)),
        ("networks that take metadata", _reading_rows("image_alone", "where they are unknown", base_runs, records)),
        ("teachers", _reading_rows("teacher", "of those that were taught", base_runs, records)),
        ("averages over seeds", _ensemble_rows(ensembles, runs_of, base_runs)),
    ]
    return "\n\n".join(_markdown(family, rows) for family, rows in sections if rows)


def _spelt(overrides: dict) -> str:
    return json.dumps(overrides, sort_keys=True)


def _numbers(record: dict, reading: str) -> dict:
    return record["metrics"][reading] | {BEST_EPOCH: record[BEST_EPOCH]}


def _reading_rows(reading: str, name: str, base_runs: dict, records: list[dict]) -> list[Row]:
    """Another reading of the base's runs, and of all, compared with the usual reading of the same runs."""
    rows = []
    for of, runs in (("base", base_runs), ("all runs", {key(record): record for record in records})):
        read = {run: record["metrics"] for run, record in runs.items() if record["metrics"].get(reading)}
        if read:
            ours, usual = ({run: metrics[kind] for run, metrics in read.items()} for kind in (reading, "tta"))
            rows.append(Row(f"{name}, {of}", ours, usual))
    return rows


def _ensemble_rows(ensembles: list[dict], runs_of: dict, base_runs: dict) -> list[Row]:
    """Averages over seeds, of the base and of all variants, beside the mean of what their networks reach alone."""
    rows: dict[str, Row] = {}
    for record in ensembles:
        spelt, fold = _spelt(record["overrides"]), record["fold"]
        runs = runs_of.get(spelt, {})
        alone = [runs.get((fold, seed)) for seed in record["seed"]]
        if None in alone:
            continue
        for of in ["base", "all variants"] if runs is base_runs else ["all variants"]:
            name = f"{of}, {len(alone)} networks"
            row = rows.setdefault(name, Row(name, {}, {}))
            row.runs[spelt, fold] = record["metrics"]["tta"]
            row.others[spelt, fold] = {
                metric: np.mean([each["metrics"]["tta"][metric] for each in alone])
                for metric, value in record["metrics"]["tta"].items()
                if value is not None
            }
    return sorted(rows.values(), key=lambda row: not row.name.startswith("base"))


def _markdown(family: str, rows: list[Row]) -> str:
    columns = COLUMNS | {BEST_EPOCH: "best epoch"}
    shown = [name for name in columns if any(cell(row, name) != "–" for row in rows)]
    lines = [
        f"| {family} | " + " | ".join([*(columns[name] for name in shown), "runs"]) + " |",
        "| --- " + "| ---: " * (len(shown) + 1) + "|",
    ]
    for row in rows:
        lines.append(f"| {row.name} | " + " | ".join([*(cell(row, name) for name in shown), str(len(row.runs))]) + " |")
    return "\n".join(lines)


def run_all(
    runs: list[dict], data_dir: Path, output: Path, part: tuple[int, int], cache: Path, limit: float | None,
    across: Path | None = None,
) -> None:  # fmt: skip
    """Do the part's runs that are not recorded, as long as there is time for another of the longest one's length.

    Raises:
        InputError: a run failed; the others were done.
    """
    start, longest, failed = time.perf_counter(), 0.0, []
    done = {key(record) for record in read_records(output)}
    mine = [planned for planned in runs[part[0] :: part[1]] if key(planned) not in done]
    path = output / f"part-{part[0]}-of-{part[1]}.jsonl"
    for number, planned in enumerate(mine, start=1):
        begun = time.perf_counter()
        if limit is not None and begun - start + longest > limit:
            print(f"no time for another run: {len(mine) - number + 1} are left", flush=True)
            break
        label = f"{number}/{len(mine)} {planned['variant']}, fold {planned['fold']}, seed {planned['seed']}"
        try:
            record, probabilities = measure(planned, data_dir, cache, across)
        except TerminatedError:
            raise  # who terminates one run means all
        except InputError as error:
            failed.append(f"{label}: {error}")
            print(f"{label} failed: {error}", flush=True)
            continue
        finally:
            release_memory()
            longest = max(longest, time.perf_counter() - begun)
        store_probabilities(path.with_suffix(".npz"), record, probabilities)
        append(path, record)
        _print_run(label, record)
    if failed:
        raise InputError("\n  ".join([f"{len(failed)} runs failed:", *failed]))


def _print_run(label: str, record: dict) -> None:
    found = record["metrics"]["tta"]
    told = [
        f"{name} {found[name]:.3f}" for name in ("accuracy", "balanced_accuracy", "malignant_auroc") if found.get(name)
    ]
    held = f", {torch.cuda.memory_allocated() >> 20} MiB held" if torch.cuda.is_available() else ""
    print(
        f"{label}: {', '.join(told)}, best epoch {record['best_epoch']} of {record['epochs']}, "
        f"{record['images_per_second']} images/s, {record['seconds']} s{held}",
        flush=True,
    )


def parse_part(text: str) -> tuple[int, int]:
    """0/2: the first of two parts."""
    index, _, count = text.partition("/")
    part = int(index), int(count)
    if not 0 <= part[0] < part[1]:
        raise ValueError
    return part


def parse_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as params.yaml has it."""
    name, _, value = text.partition("=")
    return name, parse_yaml(value.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Change one parameter at a time, and evaluate on validation folds.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/ham10000"), help="the dataset")
    parser.add_argument("--variants", nargs="+", default=["all"], metavar="NAME", help="or families; default: all")
    parser.add_argument("--val-folds", type=int, nargs="+", default=[1, 2, 3], help="the test fold is 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--set", type=parse_value, nargs="+", default=[], metavar="NAME=VALUE", help="of the base")
    parser.add_argument("--part", type=parse_part, default=(0, 1), help="as 0/2: every second run, from the first on")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="start no run that would end later")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--across", type=Path, metavar="DIR", help="other pictures of the same lesions, judged as well")
    parser.add_argument(
        "--reading", default="tta", help="--table: tta, plain, metadata, teacher or across; default: tta"
    )
    parser.add_argument("--cache", type=Path, help="folder for pixels; default: prepared in the output")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--table", action="store_true", help="print the tables, train nothing")
    action.add_argument("--ensembles", action="store_true", help="average what is there over seeds, train nothing")
    args = parser.parse_args()

    base = BASE | dict(args.set)
    if args.table:
        print(table(read_records(args.output), read_records(args.output, ensembles=True), base, args.reading))
    elif args.ensembles:
        recorded = {key(record) for record in read_records(args.output, ensembles=True)}
        for record in average_seeds(read_records(args.output), read_probabilities(args.output)):
            if key(record) not in recorded:
                append(args.output / ENSEMBLES, record)
    else:
        runs = plan(args.variants, base, args.val_folds, args.seeds)
        cache = args.cache or args.output / "prepared"
        run_all(runs, args.data_dir, args.output, args.part, cache, args.time_limit, args.across)


if __name__ == "__main__":
    run(main)
