"""The trained model on a dataset that it has never seen, which is prepared and evaluated as the pipeline's own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.classifier.calibration import Calibration, calibrate, described, load_calibration, read_calibration
from stages.classifier.description import ModelDescription
from stages.classifier.hardware import set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.command_line import naming_options
from stages.config import Config, override
from stages.dataset.duplicates import near_duplicates_between
from stages.dataset.images import name_first
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT, Classes, Diagnosis, diagnoses_of, read_taxonomy, translated
from stages.errors import InputError
from stages.evaluate import explain
from stages.evaluation.assessment import describe_evaluation
from stages.evaluation.details import read_details
from stages.evaluation.predictions import Predictions, as_malignancy, predictions_table, read_predictions
from stages.evaluation.recalibration import assess_rest, draw_part, recalibrate
from stages.evaluation.uncertainty import count_lesions
from stages.evaluation.verdict import judge, remarks
from stages.files import DETAILS, PREDICTIONS, PREPARED, PUBLISHED, SPLIT, read_csv, write_csv
from stages.prepare import prepare_dataset
from stages.split import find_leaks


def validate_model(
    config: Config,
    data_dir: Path,
    prepared: Path,
    models: Path,
    columns: dict[str, str | None],
    classes: dict[str, str | None],
    taxonomy: Path | None = None,
    say: Callable[[str], None] = print,
    calibration: Path | None = None,
    fraction: float | None = None,
) -> tuple[Predictions, dict, PixelStore, tuple[pd.DataFrame, np.ndarray]]:
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
        calibration: a file that an earlier recalibration wrote; None: the model's own.
        fraction: of the lesions, to recalibrate on; None: not.

    Returns:
        The predictions, what docs/details.schema.json describes, the prepared images, and what `explain` says of them.

    Raises:
        InputError: the dataset or the model has a mistake.
    """

    device = set_up_device(config.runtime.cpu_threads)
    network, description = load_model(models)
    of_model = load_calibration(models)
    used = of_model if calibration is None else read_calibration(calibration, models)
    if used.fitted_on is not None:
        say(f"{calibration or models}: the calibration was fitted on {used.fitted_on}; do not judge it on these")
    diagnoses, judged = _judged(description, None if taxonomy is None else read_taxonomy(taxonomy))
    as_told = judged == description.told_apart  # else the costs, which are of diagnoses, are not for them
    changes = {
        "data.data_dir": str(data_dir),
        "data.columns": columns,
        "data.classes": classes,
        "data.image_size": description.image_size,
        "data.detail": description.detail,
        "data.subsample_percentage": 1.0,
    }
    data = override(config, changes).data
    with naming_options():
        table = prepare_dataset(data, prepared, config.runtime.num_workers, diagnoses, say)
    split_file = prepared / "split.csv"
    write_csv(split_file, table[["image_id", "lesion_id"]].assign(fold=0, split="test"))

    store, settings = PixelStore(prepared), config.evaluation
    encoding = description.metadata
    images = SplitImages(store, "test", split_file, len(judged.names), encoding=encoding)
    labels = [judged.names[number] for number in images.labels]
    lesions, is_malignant = images.table["lesion_id"].to_numpy(str), judged.is_malignant[images.labels]
    part = None if fraction is None else draw_part(lesions, is_malignant, fraction)
    batches = (batch.images for batch in Batches(images, settings.batch_size, device))
    raw = predict_probabilities(network, batches, device, used.test_time_augmentation, images.metadata)
    if encoding is not None and (values := encoding.unheard_of(images.table)):
        say(f"the model was trained on no {', '.join(values)}: taken as unknown")

    def in_judged(probabilities: np.ndarray) -> np.ndarray:
        return probabilities if as_told else as_malignancy(probabilities, description.told_apart)

    def predictions_with(calibration: Calibration) -> Predictions:
        probabilities = in_judged(calibrate(raw, calibration))
        table = predictions_table(images.table, "test", labels, probabilities, judged)
        return Predictions(table, judged, calibration.costs if as_told else None)

    predictions, (own, missing) = predictions_with(used), own_predictions(models, of_model, judged)
    shown = used if as_told else replace(used, costs=None)
    repeated = settings.bootstrap_replicates, settings.confidence
    details = describe_evaluation(predictions, in_judged(raw), images.table, diagnoses, shown, settings)
    details["verdict"] = judge(predictions, own, used, *repeated, missing)
    details["verdict"]["remarks"] = list(remarks(predictions, own, details["test"]))
    if part is not None:
        new = recalibrate(raw[part], predictions.where(part), description.told_apart, used, data_dir.resolve().name)
        rest = {"before": (predictions.where(~part), used), "after": (predictions_with(new).where(~part), new)}
        total, malignant, _ = count_lesions(lesions[~part], is_malignant[~part])
        details["recalibration"] = {
            "fraction": fraction,
            "calibration": described(new),
            "images": int((~part).sum()),
            "lesions": total,
            "malignant_lesions": malignant,
            **{name: assess_rest(*of, own, *repeated, missing) for name, of in rest.items()},
        }
    judging = predictions, used.threshold, device, settings
    explained = explain(network, description.told_apart, store, *judging, encoding)
    return predictions, details, store, explained


def own_predictions(models: Path, calibration: Calibration, judged: Classes) -> tuple[Predictions | None, str]:
    """What the model in `models` predicts of its own test images, if it is in that folder, or in metrics/ beside it.

    Returns:
        The predictions, of the classes that are judged, or None and why they are not known.
    """
    files = [models / path.name for path in (DETAILS, PREDICTIONS)]
    if not files[0].exists():
        files = [models.parent / PUBLISHED[path] for path in (DETAILS, PREDICTIONS)]
    details, predictions = files
    try:
        evaluated = read_details(details)
        own = read_predictions(predictions, evaluated.get("taxonomy")).of("test")
    except InputError as error:
        return None, str(error)
    if Calibration(**evaluated["calibration"]) != calibration:
        return None, f"{details} is of another model"
    return (own if own.classes == judged else own.benign_or_malignant), ""


def _judged(description: ModelDescription, theirs: dict[str, Diagnosis] | None) -> tuple[dict[str, Diagnosis], Classes]:
    """The diagnoses that images of a dataset may have, and the classes that the model is judged for on them.

    A model of benign and malignant is judged by what the dataset's taxonomy says of its diagnoses, and so is any model
    where that knows no others. Else the dataset's diagnoses are those of the model that have a label in common.
    """
    if theirs is None:
        return description.taxonomy, description.told_apart
    if description.told_apart.are_diagnoses and diagnoses_of(theirs).are_diagnoses:
        return translated(description.taxonomy, theirs), description.told_apart
    return theirs, BENIGN_OR_MALIGNANT


def describe_verdict(details: dict, notes: list[str], output: Path) -> list[str]:
    """The verdict, with what is to be known of the dataset, and what recalibration makes of it, as lines of text.

    The last says which promises hold.
    """
    verdict, test = details["verdict"], details["test"]

    def listed(sentences: list[str]) -> list[str]:
        return ["", *(f"- {sentence}" for sentence in sentences), ""]

    of = f"{test['images']} images of {test['lesions']} lesions, {test['malignant_lesions']} of them malignant"
    sentences = [promise["sentence"] for promise in verdict["promises"]]
    lines = [f"The model's promises on {of}:", *listed(sentences + verdict["remarks"] + notes), verdict["summary"]]
    if (new := details.get("recalibration")) is None:
        return lines
    part = new["calibration"]["fitted_on"]
    lines += ["", f"Recalibrated on {part['lesions']} lesions, {part['malignant_lesions']} of them malignant."]
    others = f"{new['lesions']} others, {new['malignant_lesions']} of them malignant"
    for name, words in (("before", "as above"), ("after", f"in {output / 'calibration.json'}")):
        judgement = new[name]["verdict"]
        lines += ["", f"On the {others}, with the calibration {words}:"]
        lines += [*listed([promise["sentence"] for promise in judgement["promises"]]), judgement["summary"]]
    return lines


def find_overlap(store: PixelStore) -> tuple[dict | None, list[str]]:
    """What a dataset shares with the images that the workspace's model was trained and calibrated on.

    Args:
        store: the dataset's prepared images.

    Returns:
        The section `leakage` of metrics/details.json, the dataset being its split `test`; None where the split or the
        prepared images of the model are missing. And warnings: numbers on images that a model has seen are too good.
    """

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
        f"{name_first(found)}"
        for found, one, several in (
            (shared["image_id"], "image", "images"),
            (shared["lesion_id"], "lesion", "lesions"),
            (copies, "copy of an image", "copies of images"),
        )
        if found
    ]
    return leakage, warnings
