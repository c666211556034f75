"""A cross-validated run as one: the experiments that test each fold in turn, and all of their test images together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.classifier.calibration import Calibration, apply_temperature, described
from stages.classifier.temperature import fit_temperature
from stages.config import Config
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT, diagnoses_of, numbers_of
from stages.errors import InputError
from stages.evaluation.assessment import describe_evaluation
from stages.evaluation.calibration import SMALLEST
from stages.evaluation.predictions import DECIDED, THRESHOLDS, Predictions, predictions_table
from stages.experiments.revision import WORKSPACE, Revision, differing_parameters, list_experiments
from stages.experiments.summary import group_revisions, without_repeats
from stages.files import PREPARED

FOLD = "split.test_fold"
SHOWN = 5  # images that a message names


class Fold(NamedTuple):
    """One run of a cross-validation.

    Attributes:
        number: the fold that it tests.
        revision: the experiment or commit.
        calibration: fitted on its validation images.
        leakage: what its splits share, as metrics/details.json says.
        val: predictions of its validation images, calibrated.
        test: those of its test images.
    """

    number: int
    revision: Revision
    calibration: Calibration
    leakage: dict | None
    val: Predictions
    test: Predictions


def find_run(names: Sequence[str]) -> list[Revision]:
    """The revisions of a cross-validated run.

    Args:
        names: of them; none: the experiments of HEAD that differ in `split.test_fold` alone; of several such runs the
            one with the workspace's parameters.

    Raises:
        InputError: there is no such run, or the revisions differ in more.
    """
    if names:
        revisions = [Revision(name) for name in dict.fromkeys(names)]
        runs = group_revisions(revisions, (FOLD,))
        if len(runs) > 1:
            others = [name for name in differing_parameters(revisions) if name != FOLD]
            what = f"in {', '.join(others)}" if others else "in their code or data"
            raise InputError(
                f"these are not runs of one cross-validation: they differ {what}; they may in {FOLD} alone"
            )
        return runs[0]
    runs = group_revisions([Revision(name) for name in list_experiments()[0]], (FOLD,))
    if len(runs) > 1:
        here = {name: value for name, value in Revision(WORKSPACE).parameters.items() if name != FOLD}
        alike = [run for run in runs if {name: run[0].parameters.get(name) for name in here} == here]
        if len(alike) != 1:
            listed = "; ".join(", ".join(revision.name for revision in run) for run in runs)
            raise InputError(f"HEAD has experiments of {len(runs)} runs, name those of one: {listed}")
        runs = alike
    if not runs:
        raise InputError(
            f"HEAD has no experiments; cross-validate with `python -m stages sweep -S '{FOLD}=range(N)'`, N being "
            "split.folds, or name revisions"
        )
    return runs[0]


def read_folds(revisions: Sequence[Revision]) -> list[Fold]:
    """Read a cross-validated run, its folds in order; of two experiments that test the same fold the first.

    Args:
        revisions: that differ in `split.test_fold` alone.

    Raises:
        InputError: a fold is missing, or its files are; or the folds are not those of one table of splits.
    """
    first = without_repeats(list(revisions), (FOLD,))[0]
    by_number = {revision.config.split.test_fold: revision for revision in first}
    expected = range(first[0].config.split.folds)
    if missing := [str(number) for number in expected if number not in by_number]:
        raise InputError(
            f"no run tests fold {', '.join(missing)} of {len(expected)} (split.folds); run "
            f"`python -m stages sweep -S {FOLD}={','.join(missing)}` with their other parameters"
        )
    folds = []
    for number in expected:
        revision = by_number[number]
        results, evaluated = revision.results, revision.evaluated
        calibration = Calibration(**results["calibration"])
        splits = (evaluated.of(name) for name in ("val", "test"))
        folds.append(Fold(number, revision, calibration, results["leakage"], *splits))
    _check_folds(folds)
    return folds


def _check_folds(folds: list[Fold]) -> None:
    """Raise an InputError unless each fold's images are tested once, and validate on one other fold."""
    tested: dict[str, str] = {}
    for fold in folds:
        name = fold.revision.name
        if fold.test.classes != folds[0].test.classes:
            raise InputError(f"{name} and {folds[0].revision.name} tell other classes apart; run both anew")
        for image in fold.test.table["image_id"]:
            if (other := tested.setdefault(image, name)) != name:
                raise InputError(f"{other} and {name} both test {image}: their tables of splits are not the same")
    for fold in folds:
        # The fold after it validates (split.val_fold null).
        following = folds[(fold.number + 1) % len(folds)]
        if set(fold.val.table["image_id"]) != set(following.test.table["image_id"]):
            raise InputError(
                f"{fold.revision.name} does not validate on the images that {following.revision.name} tests: their "
                "tables of splits are not the same, or split.val_fold is not null"
            )


def uncalibrated(predictions: Predictions, temperature: float) -> np.ndarray:
    """The probabilities before they were scaled by a temperature, shape (n, classes).

    From `DECIMALS` decimals: one that was written as 0 is taken for half of the last digit, so that its logarithm is
    that of a very improbable class and not of an impossible one.
    """
    written = np.maximum(predictions.probabilities, SMALLEST)
    return apply_temperature(written / written.sum(axis=1, keepdims=True), 1 / temperature)


def by_two_networks(folds: Sequence[Fold]) -> tuple[Predictions, np.ndarray, np.ndarray]:
    """What the two networks that have not trained on an image say of it.

    Returns:
        The test predictions of all folds, and the probabilities before temperature scaling, shape (images, classes), of
        the network that tested each image, and of the one that was validated on it.
    """
    test, val = (
        pd.concat([getattr(fold, split).table for fold in folds], ignore_index=True) for split in ("test", "val")
    )
    tested, validated = (
        np.concatenate([uncalibrated(getattr(fold, split), fold.calibration.temperature) for fold in folds])
        for split in ("test", "val")
    )
    order = pd.Index(val["image_id"]).get_indexer(pd.Index(test["image_id"]))
    return Predictions(test, folds[0].test.classes), tested, validated[order]


def mean_of_two_networks(pooled: Predictions, tested: np.ndarray, validated: np.ndarray) -> Predictions:
    """For each image the mean of what `by_two_networks` gives, at the temperature that fits best."""
    mean = (tested + validated) / 2
    calibrated = apply_temperature(mean, fit_temperature(mean, pooled.labels))
    labels = pooled.table["label"].tolist()
    return Predictions(predictions_table(pooled.table, "test", labels, calibrated, pooled.classes), pooled.classes)


def pool(folds: list[Fold], store: PixelStore, config: Config) -> tuple[Predictions, dict]:
    """Evaluate all test images of a cross-validated run together.

    Each image was judged by the network, the temperature and the thresholds of its fold, which had not seen it; they
    stay, and the decision of an image is its fold's. Probabilities of several networks are compared with each other, as
    they are where one network is chosen at random: the AUROC of all is a little below the mean of those of the folds.

    Args:
        folds: what `read_folds` gives.
        store: the prepared images.
        config: of the run: replicates, confidence and prevalences.

    Returns:
        The predictions in the order of the store, with the columns fold, `THRESHOLDS` and, unless it is the most
        probable class, `DECIDED`, and what
        docs/details.schema.json describes.

    Raises:
        InputError: the store's images are not those that were tested.
    """
    classes, settings = folds[0].test.classes, config.evaluation
    tables, raw = [], []
    for fold in folds:
        columns = {name: getattr(fold.calibration, name) for name in THRESHOLDS}
        if not all(each.test.is_most_probable for each in folds):
            columns[DECIDED] = [classes.names[number] for number in fold.test.predicted]
        tables.append(fold.test.table.assign(fold=fold.number, **columns))
        raw.append(uncalibrated(fold.test, fold.calibration.temperature))
    tested = pd.concat(tables)
    images = images_of(Predictions(tested, classes), store)
    order = pd.Index(tested["image_id"]).get_indexer(pd.Index(images["image_id"]))
    calibration = _typical([fold.calibration for fold in folds])
    predictions = Predictions(tested.iloc[order].reset_index(drop=True), classes, calibration.costs)
    judged = predictions, np.concatenate(raw)[order], images, store.taxonomy, calibration, settings
    return predictions, describe_evaluation(
        *judged,
        folds=[
            {
                "test_fold": fold.number,
                "revision": fold.revision.commit or fold.revision.name,
                "calibration": described(fold.calibration),
            }
            for fold in folds
        ],
        leakage=_leakage([fold.leakage for fold in folds if fold.leakage]),
    )


def images_of(predictions: Predictions, store: PixelStore) -> pd.DataFrame:
    """The rows of the manifest that were tested, in its order: all, unless a dataset is `train_only`.

    Raises:
        InputError: the predictions are of other images, lesions or diagnoses.
    """
    tested, classes, manifest = predictions.table, predictions.classes, store.manifest
    is_tested = manifest["image_id"].isin(tested["image_id"])
    images = pd.DataFrame(manifest[is_tested]).reset_index(drop=True)
    some_train_only = any(source["train_only"] for source in store.sources.values())
    left = [] if some_train_only else manifest.loc[~is_tested, "image_id"].tolist()
    unknown = sorted(set(tested["image_id"]) - set(manifest["image_id"]))
    for problem, names in (("were not tested", left), ("were tested, but are not there", unknown)):
        if names:
            raise _other_images(f"{problem}: {', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)}", len(names))
    if classes not in (BENIGN_OR_MALIGNANT, diagnoses_of(store.taxonomy)):
        raise _other_images("have diagnoses of another taxonomy")
    labels = [classes.names[number] for number in numbers_of(images["dx"], store.taxonomy, classes)]
    known = tested.set_index("image_id").loc[images["image_id"]]
    for column, here in (("lesion_id", images["lesion_id"]), ("label", labels)):
        if known[column].tolist() != [*here]:
            raise _other_images(f"have another {column.removesuffix('_id')}")
    return images


def _other_images(problem: str, count: int | str = "some") -> InputError:
    return InputError(
        f"{PREPARED} does not hold the images of these runs: {count} {problem}; have params.yaml name their dataset "
        "(`dvc exp apply` one of them), and `dvc repro split`"
    )


def _typical(calibrations: list[Calibration]) -> Calibration:
    """The median of each number of the folds' calibrations, of costs too: for pictures and headings, which have one."""
    middle: Any = {
        name: float(np.median([getattr(each, name) for each in calibrations])) for name in ("temperature", *THRESHOLDS)
    }
    if costs := [np.array(each.costs) for each in calibrations if each.costs is not None]:
        middle["costs"] = np.median(costs, axis=0).tolist()
    return replace(calibrations[0], **middle)


def _leakage(audits: list[dict]) -> dict | None:
    """What any two folds share: each run tells of its own three splits."""
    if not audits:
        return None
    apart = {tuple(pair): pair for audit in audits for pair in audit["known_duplicates_apart"]}
    # A pair of which neither image is tested is told by a run in which one is.
    pairs = {
        tuple(pair["image_ids"]): pair
        for audit in audits
        for pair in audit["near_duplicates"]["pairs"]
        if "test" in pair["splits"]
    }
    return {
        "lesions_in_more_than_one_split": max(audit["lesions_in_more_than_one_split"] for audit in audits),
        "known_duplicates_apart": [apart[key] for key in sorted(apart)],
        "near_duplicates": audits[0]["near_duplicates"] | {"pairs": [pairs[key] for key in sorted(pairs)]},
    }
