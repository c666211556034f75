"""Validate: assess the trained model on a dataset that it has never seen.

    python -m stages validate data/hospital --output hospital-results

The dataset is a folder with a metadata table and images, loose or zipped, as `prepare` reads it; `--columns` and
`--classes` stand for data.columns and data.classes, which describe the training data. Images of diagnoses that the
model does not know are left out, and counted. Nothing is fitted: temperature
and thresholds are those in models/calibration.json. Run from the root of the repository.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages.command_line import new_parser, pair
from stages.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd

    from stages.classifier.description import ModelDescription
    from stages.config import Config
    from stages.dataset.pixels import PixelStore
    from stages.dataset.taxonomy import Classes, Diagnosis
    from stages.evaluation.predictions import Predictions

SHOWN = 5  # ids in a warning


def validate_model(
    config: "Config",
    data_dir: Path,
    prepared: Path,
    models: Path,
    columns: dict[str, str | None],
    classes: dict[str, str | None],
    taxonomy: Path | None = None,
    say: "Callable[[str], None]" = print,
) -> tuple["Predictions", dict, "PixelStore", tuple["pd.DataFrame", "np.ndarray"]]:
    """Assess the model in `models` on the dataset in `data_dir`.

    Args:
        config: the parameters; of `data` only the threads are used.
        data_dir: the dataset.
        prepared: a folder for its prepared images.
        models: folder of the trained model.
        columns: what `data.columns` would say of this dataset.
        classes: what `data.classes` would say of it.
        taxonomy: the file of its diagnoses; None: those of the model.
        say: is given what the user should know of the dataset, line by line.

    Returns:
        The predictions, what docs/details.schema.json describes, the prepared images, and what `explain` says of them.

    Raises:
        InputError: the dataset or the model has a mistake.
    """
    from dataclasses import asdict, replace

    from stages.classifier.calibration import apply_temperature, load_calibration
    from stages.classifier.hardware import set_up_device
    from stages.classifier.inference import predict_probabilities
    from stages.classifier.weights import load_model
    from stages.config import override
    from stages.dataset.loaders import Batches, SplitImages
    from stages.dataset.pixels import PixelStore
    from stages.dataset.taxonomy import read_taxonomy
    from stages.evaluate import explain
    from stages.evaluation.assessment import assess
    from stages.evaluation.predictions import Predictions, as_malignancy, describe_classes, predictions_table
    from stages.files import write_csv
    from stages.prepare import prepare_dataset

    device = set_up_device(config.runtime.cpu_threads)
    network, description = load_model(models)
    calibration = load_calibration(models)
    diagnoses, judged = _judged(description, None if taxonomy is None else read_taxonomy(taxonomy))
    if judged != description.told_apart:
        calibration = replace(calibration, costs=None)  # they are of diagnoses
    changes = {
        "data.data_dir": str(data_dir),
        "data.columns": columns,
        "data.classes": classes,
        "data.image_size": description.image_size,
        "data.detail": description.detail,
        "data.subsample_percentage": 1.0,
    }
    data = override(config, changes).data
    table = prepare_dataset(data, prepared, config.runtime.num_workers, diagnoses, say)
    split_file = prepared / "split.csv"
    write_csv(split_file, table[["image_id", "lesion_id"]].assign(fold=0, split="test"))

    store, settings = PixelStore(prepared), config.evaluation
    encoding = description.metadata
    images = SplitImages(store, "test", split_file, len(judged.names), encoding=encoding)
    batches = (batch.images for batch in Batches(images, settings.batch_size, device))
    raw = predict_probabilities(network, batches, device, calibration.test_time_augmentation, images.metadata)
    calibrated = apply_temperature(raw, calibration.temperature)
    if judged != description.told_apart:
        raw, calibrated = (as_malignancy(each, description.told_apart) for each in (raw, calibrated))
    labels = [judged.names[number] for number in images.labels]
    table = predictions_table(images.table, "test", labels, calibrated, judged)
    predictions = Predictions(table, judged, calibration.costs)
    if encoding is not None and (values := encoding.unheard_of(images.table)):
        say(f"the model was trained on no {', '.join(values)}: taken as unknown")
    absent = [name for name in judged.names if name not in labels]
    if absent and judged.are_diagnoses:
        say(f"no image is of {', '.join(absent)}: means over the diagnoses leave these out")
    details = {
        **describe_classes(judged, diagnoses),
        "confidence": settings.confidence,
        "bootstrap_replicates": settings.bootstrap_replicates,
        "calibration": asdict(calibration),
        "val": None,
        "test": assess(predictions, raw, images.table, calibration, settings),
        "baselines": None,
        "leakage": None,
    }
    judging = predictions, calibration.threshold, device, settings
    explained = explain(network, description.told_apart, store, *judging, encoding)
    return predictions, details, store, explained


def _judged(
    description: "ModelDescription", theirs: "dict[str, Diagnosis] | None"
) -> tuple["dict[str, Diagnosis]", "Classes"]:
    """The diagnoses that images of a dataset may have, and the classes that the model is judged for on them.

    A model of benign and malignant is judged by what the dataset's taxonomy says of its diagnoses, and so is any model
    where that knows no others. Else the dataset's diagnoses are those of the model that have a label in common.
    """
    from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT, diagnoses_of, translated

    if theirs is None:
        return description.taxonomy, description.told_apart
    if description.told_apart.are_diagnoses and diagnoses_of(theirs).are_diagnoses:
        return translated(description.taxonomy, theirs), description.told_apart
    return theirs, BENIGN_OR_MALIGNANT


def find_overlap(store: "PixelStore") -> tuple[dict | None, list[str]]:
    """What a dataset shares with the images that the workspace's model was trained and calibrated on.

    Args:
        store: the dataset's prepared images.

    Returns:
        The section `leakage` of metrics/details.json, the dataset being its split `test`; None where the split or the
        prepared images of the model are missing. And warnings: numbers on images that a model has seen are too good.
    """
    import pandas as pd

    from stages.dataset.duplicates import near_duplicates_between
    from stages.dataset.pixels import PixelStore
    from stages.files import PREPARED, SPLIT, read_csv
    from stages.split import find_leaks

    if not SPLIT.exists() or not PREPARED.exists():
        missing = f"{SPLIT} or {PREPARED} is missing"
        return None, [f"{missing}, so it cannot be checked whether the model was trained on some of these images"]
    splits = read_csv(SPLIT, ["image_id", "lesion_id", "split"])
    seen = splits.loc[splits["split"] != "test"]
    images = store.manifest[["image_id", "lesion_id"]].assign(split="test")
    shared = {name: sorted(set(images[name]) & set(seen[name])) for name in ("image_id", "lesion_id")}
    # By name: an image that has the id of one that was seen is of the same lesion, whatever the table says.
    lesion_of = dict(zip(seen["image_id"], seen["lesion_id"]))
    images["lesion_id"] = [lesion_of.get(*pair) for pair in zip(images["image_id"], images["lesion_id"])]
    pairs = near_duplicates_between(store, PixelStore(PREPARED))
    # An image that has the id of one that was seen is counted above, and not again as its copy.
    pairs = pairs.loc[pairs["image_id_2"].isin(seen["image_id"]) & (pairs["image_id_1"] != pairs["image_id_2"])]
    split_of_image = dict(zip(seen["image_id"], seen["split"]))
    pairs = pairs.assign(split_1="test", split_2=[split_of_image[name] for name in pairs["image_id_2"]])
    leakage = find_leaks(pd.concat([seen, images], ignore_index=True), pairs)
    copies = [" = ".join(pair["image_ids"]) for pair in leakage["near_duplicates"]["pairs"]]
    warnings = [
        f"{len(found)} {one if len(found) == 1 else several} that the model was trained or calibrated on: "
        f"{', '.join(found[:SHOWN])}{', …' * (len(found) > SHOWN)}"
        for found, one, several in (
            (shared["image_id"], "image", "images"),
            (shared["lesion_id"], "lesion", "lesions"),
            (copies, "copy of an image", "copies of images"),
        )
        if found
    ]
    return leakage, warnings


def _parse(argv: list[str] | None) -> argparse.Namespace:
    description = "Assess the trained model on another dataset; temperature and thresholds stay as they are."
    parser = new_parser("validate", description)
    add = parser.add_argument
    add("data_dir", type=Path, help="folder with the metadata table and the images")
    add("--output", type=Path, required=True, help="folder for the results, which must not exist yet")
    add("--models", type=Path, default=Path("models"), help="folder of the model (default: %(default)s)")
    pairs = {"type": pair, "nargs": "+", "default": []}
    named = "your table's name of each of our columns, as dx=label; nothing after =: not there"
    add("--columns", metavar="OURS=YOURS", help=named, **pairs)
    known = "file of its diagnoses, as data.taxonomy names one (default: those of the model)"
    add("--taxonomy", type=Path, metavar="FILE.yaml", help=known)
    meant = "diagnosis of each of your labels, as mole=CODE; nothing after =: leave it out"
    add("--classes", metavar="LABEL=DIAGNOSIS", help=meant, **pairs)
    args = parser.parse_args(argv)
    if args.output.exists():
        raise InputError(f"--output is {str(args.output)!r}, which exists; name a folder that does not")
    if files := [parent for parent in args.output.parents if parent.is_file()]:
        raise InputError(f"--output is {str(args.output)!r}; {files[0]} is a file, not a folder")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument, the dataset or the model is wrong; nothing is then written.
    """
    args = _parse(argv)
    from dataclasses import asdict

    from stages.classifier.description import DESCRIPTION, read_description
    from stages.config import load_config
    from stages.evaluate import print_metrics, values
    from stages.evaluation.metrics import headline_numbers
    from stages.figures.report import describe_images, describe_model, write_report
    from stages.files import DETAILS, EVALUATION, MODELS, PREDICTIONS, replacing, write_csv, write_json
    from stages.plot import draw_pictures, draw_tables, write_plots

    config = load_config()
    notes: list[str] = []
    with replacing(args.output) as folder:
        folder.mkdir()
        scratch = folder / "prepared"
        mappings = dict(args.columns), dict(args.classes)
        predictions, details, store, explained = validate_model(
            config, args.data_dir, scratch, args.models, *mappings, args.taxonomy, notes.append
        )
        warnings = [f"which images {args.models} was trained on is not known here: some may be among these"]
        if args.models.resolve() == MODELS.resolve():  # the split here is that of the model here
            details["leakage"], warnings = find_overlap(store)
        write_csv(folder / PREDICTIONS.name, predictions.table)
        write_json(folder / DETAILS.name, details)
        write_json(folder / EVALUATION.name, values(headline_numbers(details["test"])))
        tables = draw_tables(predictions, details)
        pictures = draw_pictures(predictions, details, tables, store, *explained)
        write_plots(folder / "plots", tables, pictures)
        title = f"External validation on {args.data_dir.name}"
        about = {
            "Model": describe_model(asdict(read_description(args.models / DESCRIPTION))),
            "Data": describe_images(str(args.data_dir), store.manifest),
        }
        page = folder / "plots" / "report.html"
        write_report(page, details, folder / "plots" / "pictures", store.manifest, about, title, notes)
        shutil.rmtree(scratch)
    print(*notes, sep="\n", end="\n" * bool(notes))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_metrics(headline_numbers(details["test"]))
    print(f"wrote {args.output}")
