"""Split: hold out folds of lesions for validation and test, and search for what leaks from one to another.

Reads `data/prepared/`, writes `data/split.csv` and `data/split.json`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from stages.config import SplitConfig, load_config
from stages.dataset.duplicates import LARGEST_DISTANCE, describe_search, near_duplicates
from stages.dataset.folds import KNOWN_DUPLICATES, NO_FOLD, SPLITS, assign_folds, lesion_groups, split_of
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.files import PREPARED, SPLIT, SPLIT_METRICS, write_csv, write_json
from stages.launch import run_stage

FEWEST_EXPECTED = 5  # lesions: fewer may be lacking by chance (at 5, once in 150 times: Poisson)
LARGEST_LACK = 0.1


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


def audit_sources(manifest: pd.DataFrame) -> dict:
    """How far the source of a lesion tells its diagnosis, or that it has not some: a shortcut for a network.

    Cramér's V is 0 where all sources have the same mix of diagnoses, 1 where each source decides: the root of
    χ² / (n (k - 1)), k being the smaller number of sources and diagnoses (H. Cramér, Mathematical Methods of
    Statistics, 1946, 21.9). Of lesions, for images of one are no further evidence.

    Args:
        manifest: columns lesion_id, dx and dataset, of several datasets.

    Returns:
        `lesions` of each diagnosis in each source; `cramers_v`, None where all are of one diagnosis; and `lacks`: by
        source the diagnoses of which it has less than a tenth of what the others' mix lets expect, which is at least 5.
    """
    lesions = manifest.drop_duplicates(["dataset", "lesion_id", "dx"])
    table = pd.crosstab(lesions["dataset"], lesions["dx"])
    counts = table.to_numpy()
    total, of_source, of_dx = counts.sum(), counts.sum(axis=1, keepdims=True), counts.sum(axis=0)
    by_chance, degrees = of_source * of_dx / total, min(counts.shape) - 1
    chi_squared = ((counts - by_chance) ** 2 / by_chance).sum()
    expected = of_source * (of_dx - counts) / np.maximum(total - of_source, 1)
    lacking = (expected >= FEWEST_EXPECTED) & (counts < LARGEST_LACK * expected)
    return {
        "lesions": table.to_dict("index"),
        "cramers_v": float(np.sqrt(chi_squared / (total * degrees))) if degrees else None,
        "lacks": {name: list(table.columns[row]) for name, row in zip(table.index, lacking) if row.any()},
    }


def describe_sources(sources: dict) -> str:
    """What `audit_sources` found as one line; a warning where a source nearly decides a diagnosis."""
    association = f"diagnosis and source: Cramér's V {sources['cramers_v'] or 0:.2f} ({SPLIT_METRICS})"
    if not sources["lacks"]:
        return association
    lacks = "; ".join(f"{name} has next to none of {', '.join(dx)}" for name, dx in sources["lacks"].items())
    return f"warning: {lacks}: a network may learn the source in place of the lesion; {association}"


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
