"""Split: hold out folds of lesions for validation and test, and search for what leaks from one to another.

Reads `data/prepared/`, writes `data/split.csv` and `data/split.json`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from stages.config import SplitConfig, load_config
from stages.dataset.duplicates import LARGEST_DISTANCE, describe_search, near_duplicates
from stages.dataset.folds import KNOWN_DUPLICATES, NO_FOLD, SPLITS, assign_folds, lesion_groups, split_of
from stages.dataset.pixels import PixelStore
from stages.dataset.shortcuts import audit_sources, describe_sources
from stages.errors import InputError
from stages.files import PREPARED, SPLIT, SPLIT_METRICS, write_csv, write_json
from stages.launch import run_stage


def split_dataset(
    manifest: pd.DataFrame,
    config: SplitConfig,
    duplicates: Iterable[Sequence[str]] = (),
    train_only: Sequence[str] = (),
) -> pd.DataFrame:
    """Assign every image to a fold and a split.

    Args:
        manifest: columns image_id, lesion_id, dx and dataset.
        config: what is held out.
        duplicates: pairs of images of different datasets that show one lesion.
        train_only: datasets that are never held out; neither is a lesion that one of their images shows.

    Returns:
        Columns image_id, lesion_id, fold and split, in the order of `manifest`; fold is `NO_FOLD` for images that
        are only trained on, and for those of a source that is held out.

    Raises:
        InputError: a diagnosis has too few lesions for `config.folds`, or `config.test_source` cannot be held out.
    """
    source, groups = manifest["dataset"], lesion_groups(manifest, duplicates)
    is_trained = groups.isin(groups[source.isin(train_only)])
    is_tested = ~is_trained & groups.isin(groups[source == config.test_source])
    in_folds = ~(is_trained | is_tested)
    if config.test_source is not None and not (is_tested.any() and in_folds.any()):
        others = ", ".join(sorted(set(source) - {*train_only}))
        raise InputError(
            f"split.test_source is {config.test_source}; it must be one of several sources, which are {others}"
        )
    fold = pd.Series(NO_FOLD, index=manifest.index, name="fold")
    fold[in_folds] = assign_folds(manifest.assign(lesion_id=groups)[in_folds], config.folds, config.seed)
    split = split_of(fold, config.test_fold if config.by == "lesion" else None, config.validation_fold)
    return manifest[["image_id", "lesion_id"]].assign(fold=fold, split=split.mask(is_tested, "test"))


def count_split(manifest: pd.DataFrame, split: pd.DataFrame) -> dict:
    """Images and lesions of each diagnosis in each split."""
    images = manifest[["image_id", "lesion_id", "dx"]].assign(split=split["split"])
    counts = {}
    for name in SPLITS:
        members = images[images["split"] == name]
        diagnoses = {
            dx: {"images": len(rows), "lesions": len(set(rows["lesion_id"]))} for dx, rows in members.groupby("dx")
        }
        counts[name] = {
            "images": len(members),
            "lesions": len(set(members["lesion_id"])),
            "diagnoses": diagnoses,
        }
    return counts


def find_leaks(split: pd.DataFrame, pairs: pd.DataFrame) -> dict:
    """What the splits share that they should not.

    Args:
        split: as of `split_dataset`.
        pairs: near-duplicates, as of `stages.dataset.duplicates.near_duplicates`.

    Returns:
        How many lesions are in more than one split, where known duplicates are one lesion; the known duplicates that
        are in different splits; and the near-duplicates.
    """
    split_of_image = dict(zip(split["image_id"], split["split"]))
    # A lesion comes once for each split that it is in.
    lesions = Counter(lesion for lesion, _ in set(zip(lesion_groups(split), split["split"])))
    known = [pair for pair in KNOWN_DUPLICATES if split_of_image.keys() >= set(pair)]
    return {
        "lesions_in_more_than_one_split": sum(splits > 1 for splits in lesions.values()),
        "known_duplicates_apart": [pair for pair in known if len({split_of_image[image] for image in pair}) > 1],
        "near_duplicates": {
            "hash": describe_search(split.loc[:, "split"]),
            "largest_distance": LARGEST_DISTANCE,
            "pairs": [
                {
                    "image_ids": [pair["image_id_1"], pair["image_id_2"]],
                    "splits": [pair["split_1"], pair["split_2"]],
                    "distance": int(pair["distance"]),
                }
                for pair in pairs.to_dict("records")
            ],
        },
    }


def main() -> None:
    store = PixelStore(PREPARED)
    joined = []
    if store.sources:
        found = near_duplicates(store, store.manifest["dataset"], names=list(store.sources))
        joined = found[["image_id_1", "image_id_2"]].to_numpy().tolist()
    train_only = [name for name, source in store.sources.items() if source["train_only"]]
    split = split_dataset(store.manifest, load_config().split, joined, train_only)
    counts = count_split(store.manifest, split)
    sources = {}
    if store.sources:
        audit = audit_sources(store.manifest)
        sources = {"sources": {**audit, "near_duplicates": joined}}
        print(describe_sources(audit))
        print(f"{len(joined)} near-duplicate pair{'s' * (len(joined) != 1)} across sources, joined as one lesion each")
    leaks = find_leaks(split, near_duplicates(store, split.loc[:, "split"]))
    write_csv(SPLIT, split)
    write_json(SPLIT_METRICS, {**counts, **sources, "leakage": leaks})
    for name in SPLITS:
        print(f"{name}: {counts[name]['images']} images of {counts[name]['lesions']} lesions")
    pairs = len(leaks["near_duplicates"]["pairs"])
    print(
        f"leakage: {leaks['lesions_in_more_than_one_split']} lesions in two splits, "
        f"{pairs} near-duplicate pair{'s' * (pairs != 1)} across splits ({SPLIT_METRICS})"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
