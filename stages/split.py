"""Split: hold out folds of lesions for validation and test.

Reads `data/prepared/manifest.csv`, writes `data/split.csv` and `metrics/split.json`.
"""

import pandas as pd

from stages.config import SplitConfig, load_config
from stages.dataset.folds import SPLITS, assign_folds, lesion_groups, split_of
from stages.dataset.pixels import MANIFEST, MANIFEST_COLUMNS
from stages.errors import run
from stages.files import PREPARED, SPLIT, SPLIT_METRICS, read_csv, write_csv, write_json


def split_dataset(manifest: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Assign every image to a fold and a split.

    Args:
        manifest: columns image_id, lesion_id and dx.

    Returns:
        Columns image_id, lesion_id, fold and split, in the order of `manifest`.

    Raises:
        InputError: a diagnosis has too few lesions for `config.folds`.
    """
    fold = assign_folds(manifest, config.folds, config.seed)
    split = split_of(fold, config.test_fold, config.validation_fold)
    return manifest[["image_id", "lesion_id"]].assign(fold=fold, split=split)


def count_split(manifest: pd.DataFrame, split: pd.DataFrame) -> dict:
    """Images and lesions of each diagnosis in each split, and the lesions that leak from one split to another."""
    images = manifest[["image_id", "lesion_id", "dx"]].assign(split=split["split"], group=lesion_groups(manifest))
    counts = {}
    for name in SPLITS:
        members = images[images["split"] == name]
        diagnoses = {
            dx: {"images": len(rows), "lesions": int(rows["lesion_id"].nunique())} for dx, rows in members.groupby("dx")
        }
        counts[name] = {
            "images": len(members),
            "lesions": int(members["lesion_id"].nunique()),
            "diagnoses": diagnoses,
        }
    leaks = images.groupby("group")["split"].nunique() > 1
    return {**counts, "lesions_in_more_than_one_split": int(leaks.sum())}


def main() -> None:
    manifest = read_csv(PREPARED / MANIFEST, MANIFEST_COLUMNS)
    split = split_dataset(manifest, load_config().split)
    counts = count_split(manifest, split)
    write_csv(SPLIT, split)
    write_json(SPLIT_METRICS, counts)
    for name in SPLITS:
        print(f"{name}: {counts[name]['images']} images of {counts[name]['lesions']} lesions")


if __name__ == "__main__":
    run(main)
