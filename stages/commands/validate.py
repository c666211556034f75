"""Validate: judge the trained model on a dataset that it has never seen.

    python -m stages validate data/hospital --output hospital-results

The dataset is a folder with a metadata table and images, loose or zipped, as `prepare` reads it; `--columns` and
`--classes` stand for data.columns and data.classes, which describe the training data. Nothing is fitted: temperature
and thresholds are those in models/calibration.json. Run from the root of the repository.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from stages.classifier.calibration import apply_temperature, load_calibration
from stages.classifier.hardware import set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.config import Config, load_config, override
from stages.dataset.duplicates import near_duplicates_between
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluate import explain_model, print_metrics, values
from stages.evaluation.judgement import judge
from stages.evaluation.predictions import Predictions, predictions_table
from stages.figures.report import write_report
from stages.files import (
    DETAILS,
    EVALUATION,
    MODELS,
    PREDICTIONS,
    PREPARED,
    SPLIT,
    read_csv,
    replacing,
    write_csv,
    write_json,
)
from stages.plot import draw_pictures, draw_tables, write_plots
from stages.prepare import prepare_dataset
from stages.split import find_leaks

SHOWN = 5  # ids in a warning


def validate_model(
    config: Config,
    data_dir: Path,
    prepared: Path,
    models: Path = MODELS,
    columns: dict[str, str | None] | None = None,
    classes: dict[str, str | None] | None = None,
) -> tuple[Predictions, dict, PixelStore]:
    """Judge the model in `models` on the dataset in `data_dir`.

    Args:
        config: the parameters; of `data` only the threads are used.
        data_dir: the dataset.
        prepared: a folder for its prepared images.
        models: folder of the trained model.
        columns: what `data.columns` would say of this dataset.
        classes: what `data.classes` would say of it.

    Returns:
        The predictions, what docs/details.schema.json describes, and the prepared images.

    Raises:
        InputError: the dataset or the model has a mistake.
    """
    device = set_up_device(config.runtime.cpu_threads)
    network, description = load_model(models)
    calibration = load_calibration(models)
    changes = {
        "data.data_dir": str(data_dir),
        "data.columns": columns or {},
        "data.classes": classes or {},
        "data.image_size": description.image_size,
        "data.subsample_percentage": 1.0,
    }
    data = override(config, changes).data
    table = prepare_dataset(data, prepared, config.runtime.num_workers)
    split_file = prepared / "split.csv"
    write_csv(split_file, table[["image_id", "lesion_id"]].assign(fold=0, split="test"))

    store, settings, classes = PixelStore(prepared), config.evaluation, tuple(description.classes)
    images = SplitImages(store, "test", split_file, len(classes))
    batches = (batch.images for batch in Batches(images, settings.batch_size, device))
    raw = predict_probabilities(network, batches, device, calibration.test_time_augmentation)
    labels = [classes[number] for number in images.labels]
    calibrated = apply_temperature(raw, calibration.temperature)
    predictions = Predictions(predictions_table(images.table, "test", labels, calibrated), classes)
    details = {
        "classes": list(classes),
        "confidence": settings.confidence,
        "bootstrap_replicates": settings.bootstrap_replicates,
        "calibration": asdict(calibration),
        "val": None,
        "test": judge(predictions, raw, images.table, calibration, settings),
        "baselines": None,
        "leakage": None,
    }
    return predictions, details, store


def audit(store: PixelStore, split: Path = SPLIT, prepared: Path = PREPARED) -> dict | None:
    """What a dataset shares with the images that the model was trained and calibrated on.

    Args:
        store: the dataset's prepared images.
        split: table of the splits that the model was trained on.
        prepared: folder of the prepared images that it was trained on.

    Returns:
        The section `leakage` of metrics/details.json, the dataset being its split `test`; None where `split` or
        `prepared` is missing.
    """
    if not split.exists() or not prepared.exists():
        return None
    splits = read_csv(split, ["image_id", "lesion_id", "split"])
    seen = splits[splits["split"] != "test"]
    images = store.manifest[["image_id", "lesion_id"]].assign(split="test")
    # By name: an image that has the id of one that was seen is of the same lesion, whatever the table says.
    lesion_of = dict(zip(seen["image_id"], seen["lesion_id"]))
    images["lesion_id"] = images["image_id"].map(lesion_of).fillna(images["lesion_id"])
    pairs = near_duplicates_between(store, PixelStore(prepared))
    split_of_image = dict(zip(seen["image_id"], seen["split"]))
    # An image that has the id of one that was seen is counted above, and no news as its copy.
    pairs = pairs[pairs["image_id_2"].isin(seen["image_id"]) & (pairs["image_id_1"] != pairs["image_id_2"])]
    pairs = pairs.assign(split_1="test", split_2=pairs["image_id_2"].map(split_of_image))
    return find_leaks(pd.concat([seen, images], ignore_index=True), pairs)


def warn_of(leakage: dict | None, store: PixelStore, split: Path = SPLIT) -> None:
    """Say on stderr what `audit` found: numbers on images that the model has seen are too good."""
    if leakage is None:
        print(
            f"warning: {split} or {PREPARED} is missing, so it cannot be checked whether the model was trained on "
            "some of these images",
            file=sys.stderr,
        )
        return
    splits = read_csv(split, ["image_id", "lesion_id", "split"])
    seen = splits[splits["split"] != "test"]
    for column, noun in (("image_id", "image"), ("lesion_id", "lesion")):
        _warn(noun, sorted(set(store.manifest[column]) & set(seen[column])))
    copies = [" = ".join(pair["image_ids"]) for pair in leakage["near_duplicates"]["pairs"]]
    _warn("copy of an image", copies, "copies of images")


def _warn(noun: str, found: list[str], plural: str | None = None) -> None:
    if found:
        what = noun if len(found) == 1 else plural or f"{noun}s"
        shown = ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
        print(f"warning: {len(found)} {what} that the model was trained or calibrated on: {shown}", file=sys.stderr)


def _pair(text: str) -> tuple[str, str | None]:
    """`a=b` as (a, b), `a=` as (a, None)."""
    name, sign, value = text.rpartition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair NAME=VALUE")
    return name, value or None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages validate",
        description="Judge the trained model on another dataset; temperature and thresholds stay as they are.",
    )
    parser.add_argument("data_dir", type=Path, help="folder with the metadata table and the images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results, which must not exist yet")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the model (default: %(default)s)")
    for option, pair, purpose in (
        (
            "--columns",
            "OURS=YOURS",
            "your table's name of each of our columns, as dx=label; nothing after =: it has none",
        ),
        (
            "--classes",
            "LABEL=DIAGNOSIS",
            "diagnosis of each of your labels, as naevus=nv; nothing after =: leave it out",
        ),
    ):
        parser.add_argument(option, type=_pair, nargs="+", default=[], metavar=pair, help=purpose)
    options = parser.parse_args(arguments)
    if options.output.exists():
        raise InputError(f"--output is {str(options.output)!r}, which exists; name a folder that does not")
    files = [parent for parent in options.output.parents if parent.is_file()]
    if files:
        raise InputError(f"--output is {str(options.output)!r}; {files[0]} is a file, no folder")
    config = load_config()
    with replacing(options.output) as folder:
        folder.mkdir()
        scratch = folder / "prepared"
        predictions, details, store = validate_model(
            config, options.data_dir, scratch, options.models, dict(options.columns), dict(options.classes)
        )
        # The split here is that of the model here.
        is_ours = options.models.resolve() == MODELS.resolve()
        details["leakage"] = audit(store) if is_ours else None
        write_csv(folder / PREDICTIONS.name, predictions.table)
        write_json(folder / DETAILS.name, details)
        write_json(folder / EVALUATION.name, values(details["test"]["metrics"]))
        explained = explain_model(config, predictions, details["calibration"]["threshold"], options.models, scratch)
        tables = draw_tables(predictions, details)
        pictures = draw_pictures(predictions, details, tables, store, *explained)
        write_plots(folder / "plots", tables, pictures)
        title = f"External validation on {options.data_dir.name}"
        write_report(folder / "plots" / "report.html", details, folder / "plots" / "pictures", title)
        shutil.rmtree(scratch)
    if is_ours:
        warn_of(details["leakage"], store)
    else:
        print(
            f"warning: which images {options.models} was trained on is not known here: some may be among these",
            file=sys.stderr,
        )
    print_metrics(details["test"]["metrics"])
    print(f"wrote {options.output}")
