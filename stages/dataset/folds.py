"""Folds: groups of lesions that never share a lesion, each with the dataset's mix of diagnoses."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stages.errors import InputError, regenerate
from stages.files import read_csv

SPLITS = ("train", "val", "test")
NO_FOLD = -1  # of images that are not for folds to hold out

# Pairs of HAM10000's images that show one lesion under two lesion ids (the last five digits of ISIC_00xxxxx):
# Abhishek et al., Scientific Data 12:196, 2025.
_KNOWN_DUPLICATES = """
33481-33421 33556-32634 29152-33173 29036-27027 27820-28209 27689-32647 30906-24879 33391-34186 25226-30074
26087-25664 24736-29748 24770-27811 27162-29061 24602-32283 29625-24629 30000-31392 24437-31299 33374-33417
"""
KNOWN_DUPLICATES = [tuple(f"ISIC_00{number}" for number in pair.split("-")) for pair in _KNOWN_DUPLICATES.split()]


def lesion_groups(images: pd.DataFrame, pairs: Iterable[Sequence[str]] = ()) -> pd.Series:
    """The group of each image: its lesion, or the lesion that a duplicate of one of its images names.

    Args:
        images: columns image_id and lesion_id.
        pairs: ids of images that show one lesion, beside the known duplicates.

    Returns:
        One lesion id per image, with the index of `images`. Images with the same one belong in the same fold.
    """
    lesion_of = dict(zip(images["image_id"], images["lesion_id"]))
    merged: dict[str, str] = {}

    def root(lesion: str) -> str:
        while lesion in merged:
            lesion = merged[lesion]
        return lesion

    for first, second in [*KNOWN_DUPLICATES, *pairs]:
        if first in lesion_of and second in lesion_of:
            one, other = sorted((root(lesion_of[first]), root(lesion_of[second])))
            if one != other:
                merged[other] = one
    return pd.Series([root(lesion) for lesion in images["lesion_id"]], index=images.index, name="lesion_id")


def assign_folds(images: pd.DataFrame, folds: int, seed: int) -> pd.Series:
    """Distribute the images over folds, lesion by lesion, each fold with the dataset's mix of diagnoses.

    The folds are those of scikit-learn's `StratifiedGroupKFold(folds, shuffle=True, random_state=seed)`, whatever its
    version and twenty times as fast. They depend on which images there are, not on the order of the rows.

    Args:
        images: columns image_id, lesion_id and dx.
        folds: how many folds.
        seed: of the shuffle that breaks ties.

    Returns:
        The fold of each image, from 0, with the index of `images`.

    Raises:
        InputError: a diagnosis has fewer lesions than there are folds, or is missing in one of them.
    """
    images = images.sort_values("image_id")
    groups = lesion_groups(images)
    table = pd.crosstab(groups, images["dx"])
    counts, diagnoses = table.to_numpy(), list(table.columns)
    lesions = dict(zip(diagnoses, (counts > 0).sum(axis=0).tolist()))
    if scarce := {dx: count for dx, count in lesions.items() if count < folds}:
        too_few = ", ".join(f"{dx} has only {count} lesion{'s' * (count != 1)}" for dx, count in scarce.items())
        raise InputError(
            f"split.folds is {folds}, but {too_few}; every fold needs one of each diagnosis: "
            "lower split.folds, add lesions (a data.subsample_percentage below 1 leaves some out), or have "
            "data.classes map the label to another diagnosis, or to null"
        )
    # Large and pure groups first, which the small and mixed ones can balance; equals in random order.
    order = np.random.RandomState(seed).permutation(len(table))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    chosen = np.array(_distribute(counts[order], folds))
    # Groups of one diagnosis each cannot leave a fold without it; patients, who may have several, can.
    held = [zip(diagnoses, counts[order][chosen == fold].sum(axis=0)) for fold in range(folds)]
    if lacking := [f"fold {fold} has no {dx}" for fold, row in enumerate(held) for dx, count in row if not count]:
        raise InputError(
            f"split.folds is {folds} and split.seed {seed}, but {', '.join(lacking)}; every fold needs one of each "
            "diagnosis: lower split.folds, or take another split.seed"
        )
    fold_of_group = dict(zip(table.index[order], chosen))
    return pd.Series([fold_of_group[group] for group in groups], index=groups.index, name="fold").sort_index()


def _distribute(counts: np.ndarray, folds: int) -> list[int]:
    """Give each group to the fold with which the classes are spread most evenly; of equals to the smallest one.

    Args:
        counts: images of each group and class, shape (groups, classes), in the order in which they are given out.
        folds: how many folds.

    Returns:
        The fold of each group.
    """
    total = counts.sum(axis=0)
    held = np.zeros((folds, counts.shape[1]))  # images of each class in each fold
    one_more = np.eye(folds)[:, :, None]
    chosen = []
    for group in counts:
        # [i]: what the folds would hold if fold i took the group.
        unevenness = ((held + one_more * group) / total).std(axis=1).mean(axis=1).tolist()
        sizes = held.sum(axis=1).tolist()
        best = 0
        for fold in range(1, folds):
            is_equal = abs(unevenness[fold] - unevenness[best]) <= 1e-8 + 1e-5 * unevenness[best]
            if unevenness[fold] < unevenness[best] or (is_equal and sizes[fold] < sizes[best]):
                best = fold
        held[best] += group
        chosen.append(best)
    return chosen


def split_of(fold: pd.Series, test_fold: int | None, val_fold: int) -> pd.Series:
    """The split of each image: `test` and `val` for their folds, `train` for all others, and those in `NO_FOLD`."""
    names = {test_fold: "test", val_fold: "val"}
    return pd.Series([names.get(number, "train") for number in fold], index=fold.index, name="split")


def validation_folds(table: pd.DataFrame) -> list[int]:
    """The folds that are neither tested nor `NO_FOLD`, from the one that validates on.

    Args:
        table: what `read_split` gives.
    """
    pairs = list(zip(table["fold"], table["split"]))
    folds = sorted({int(fold) for fold, split in pairs if split != "test" and fold != NO_FOLD})
    validating = [int(fold) for fold, split in pairs if split == "val"]
    first = folds.index(min(validating)) if validating else 0
    return folds[first:] + folds[:first]


def validated_on(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """The table of the splits in which another fold validates, and the one that did is left out, as test images are."""
    held_out = table["split"].replace("val", "test")
    return table.assign(split=held_out.mask((table["fold"] == fold) & (table["split"] != "test"), "val"))


def read_split(path: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read the table of the splits.

    Args:
        path: what `split` wrote.
        images: the manifest of the prepared images.

    Returns:
        Columns image_id, lesion_id, fold and split, in the order of `images`.

    Raises:
        InputError: it is missing or damaged, or of other images.
    """
    table = read_csv(path, ["image_id", "lesion_id", "fold", "split"])
    if not table[["image_id", "lesion_id"]].equals(images[["image_id", "lesion_id"]]):
        raise regenerate(f"{path} is not of the prepared images")
    if unknown := [name for name in table["split"] if name not in SPLITS]:
        raise InputError(f"{path}: unknown split {unknown[0]!r}; it must be one of {', '.join(SPLITS)}")
    return table
