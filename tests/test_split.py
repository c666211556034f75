import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import HAM10000, PLAIN
from stages import split
from stages.dataset.duplicates import HASH, LARGEST_DISTANCE
from stages.dataset.folds import KNOWN_DUPLICATES, SPLITS
from stages.dataset.pixels import add_places, shard_path, write_manifest
from stages.errors import InputError
from stages.files import PREPARED, SPLIT, SPLIT_METRICS, read_csv, read_json
from stages.split import count_split, find_leaks, split_dataset

COUNTS = {"nv": 60, "mel": 25, "df": 8}
(FIRST, SECOND), *_ = KNOWN_DUPLICATES
NO_PAIRS = pd.DataFrame(columns=["image_id_1", "image_id_2", "split_1", "split_2", "distance"])


@pytest.fixture(scope="module")
def manifest():
    """Lesions with one to three images each, two of them known duplicates of each other, in no special order."""
    rows = [
        {"image_id": f"I-{dx}-{lesion}-{image}", "lesion_id": f"L-{dx}-{lesion}", "dx": dx}
        for dx, count in COUNTS.items()
        for lesion in range(count)
        for image in range(1 + lesion % 3)
    ]
    rows += [{"image_id": image_id, "lesion_id": f"D-{image_id}", "dx": "nv"} for image_id in (FIRST, SECOND)]
    table = pd.DataFrame(random.Random(2).sample(rows, len(rows)))
    return add_places(table.assign(dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown"))


def test_no_lesion_and_no_known_duplicate_is_in_two_splits(manifest):
    table = split_dataset(manifest, replace(PLAIN.split, folds=5))
    assert list(table.columns) == ["image_id", "lesion_id", "fold", "split"]
    assert list(table["image_id"]) == list(manifest["image_id"])
    assert set(table["split"]) == set(SPLITS)
    assert table.groupby("lesion_id")["split"].nunique().max() == 1
    of_image = table.set_index("image_id")["split"]
    assert of_image[FIRST] == of_image[SECOND]


def test_every_image_is_tested_once_and_validates_once_over_all_test_folds(manifest):
    splits = [split_dataset(manifest, replace(PLAIN.split, folds=5, test_fold=fold)) for fold in range(5)]
    for name in ("test", "val"):
        assert set(sum((table["split"] == name).astype(int) for table in splits)) == {1}
    # The folds are the same all along: only their use changes.
    assert all(table["fold"].equals(splits[0]["fold"]) for table in splits)


@pytest.mark.parametrize(
    ("settings", "test_fold", "val_fold"),
    [({}, 0, 1), ({"test_fold": 4}, 4, 0), ({"test_fold": 2, "val_fold": 0}, 2, 0)],
)
def test_the_parameters_choose_the_folds_that_are_held_out(manifest, settings, test_fold, val_fold):
    table = split_dataset(manifest, replace(PLAIN.split, folds=5, **settings))
    used = table.groupby("split")["fold"].unique()
    assert list(used["test"]) == [test_fold]
    assert list(used["val"]) == [val_fold]
    assert set(used["train"]) == set(range(5)) - {test_fold, val_fold}


def test_the_order_of_the_rows_does_not_matter_but_the_seed_does(manifest):
    def by_image(table, seed=0):
        return split_dataset(table, replace(PLAIN.split, folds=5, seed=seed)).set_index("image_id")["fold"].to_dict()

    shuffled = manifest.sample(frac=1, random_state=1)
    assert by_image(shuffled) == by_image(manifest)
    assert by_image(shuffled.reset_index(drop=True)) == by_image(manifest)
    assert by_image(manifest, seed=1) != by_image(manifest)


def test_too_few_lesions_are_refused_with_the_diagnosis_and_its_count(manifest):
    with pytest.raises(InputError, match=r"split\.folds is 9, but df has only 8 lesions"):
        split_dataset(manifest, replace(PLAIN.split, folds=9))


def test_counts_add_up_to_the_dataset(manifest):
    counts = count_split(manifest, split_dataset(manifest, replace(PLAIN.split, folds=5)))
    assert set(counts) == set(SPLITS)
    for unit, total in (("images", len(manifest)), ("lesions", manifest["lesion_id"].nunique())):
        assert sum(counts[name][unit] for name in SPLITS) == total
        for name in SPLITS:
            assert sum(diagnosis[unit] for diagnosis in counts[name]["diagnoses"].values()) == counts[name][unit]
    lesions = sum(counts[name]["diagnoses"]["mel"]["lesions"] for name in SPLITS)
    images = sum(counts[name]["diagnoses"]["mel"]["images"] for name in SPLITS)
    assert (lesions, images) == (COUNTS["mel"], (manifest["dx"] == "mel").sum())


@pytest.fixture
def leaks_after(manifest):
    """A function that puts some images into a wrong split and gives the leaks that are found."""

    def leak(*images):
        table = split_dataset(manifest, replace(PLAIN.split, folds=5)).set_index("image_id", drop=False)
        for image_id in images:
            table.loc[image_id, "split"] = "train" if table.loc[image_id, "split"] == "test" else "test"
        return find_leaks(table, NO_PAIRS)

    return leak


def test_leaking_lesions_are_counted(leaks_after):
    def lesions(*images):
        return leaks_after(*images)["lesions_in_more_than_one_split"]

    assert lesions() == 0
    assert lesions("I-nv-2-0") == 1
    assert lesions("I-nv-2-0", "I-nv-2-1", "I-mel-1-1") == 2
    assert lesions(FIRST) == 1
    assert lesions("I-nv-3-0") == 0, "a lesion with one image cannot leak"


def test_known_duplicates_in_different_splits_are_named(leaks_after):
    assert leaks_after("I-nv-2-0")["known_duplicates_apart"] == []
    assert leaks_after(FIRST, SECOND)["known_duplicates_apart"] == []
    assert leaks_after(SECOND)["known_duplicates_apart"] == [(FIRST, SECOND)]


@pytest.fixture
def prepared(manifest, params, tmp_path, monkeypatch):
    """The images, prepared in the working directory: noise that no two images share; their shard can be changed."""
    params()
    monkeypatch.chdir(tmp_path)
    write_manifest(PREPARED, manifest, HAM10000)
    pixels = np.random.default_rng(0).integers(0, 256, (len(manifest), 32, 32, 3), np.uint8)
    np.save(shard_path(PREPARED, 0), pixels)
    return np.load(shard_path(PREPARED, 0), mmap_mode="r+")


def test_the_command_writes_the_split_its_counts_and_that_nothing_leaks(manifest, prepared, capsys):
    split.main()
    printed = capsys.readouterr().out
    written, counts = read_csv(SPLIT, ["image_id", "lesion_id", "fold", "split"]), read_json(SPLIT_METRICS)
    assert list(written["image_id"]) == list(manifest["image_id"])
    for name in SPLITS:
        assert counts[name]["images"] == (written["split"] == name).sum()
        assert f"{name}: {counts[name]['images']} images" in printed
    assert counts["leakage"] == {
        "lesions_in_more_than_one_split": 0,
        "known_duplicates_apart": [],
        "near_duplicates": {"hash": HASH, "largest_distance": LARGEST_DISTANCE, "pairs": []},
    }
    assert "leakage: 0 lesions in two splits, 0 near-duplicate pairs across splits (data/split.json)" in printed
    first = SPLIT.read_bytes(), SPLIT_METRICS.read_bytes()
    split.main()
    assert (SPLIT.read_bytes(), SPLIT_METRICS.read_bytes()) == first


def test_the_command_lists_an_image_that_is_in_two_splits_under_two_names(prepared, capsys):
    split.main()
    splits = read_csv(SPLIT, ["image_id", "split"])
    (trained, *_), (tested, *_) = (splits.index[splits["split"] == name] for name in ("train", "test"))
    prepared[tested] = prepared[trained, :, ::-1]  # mirrored, so that no comparison of bytes would find it
    prepared.flush()
    split.main()
    (pair,) = read_json(SPLIT_METRICS)["leakage"]["near_duplicates"]["pairs"]
    assert pair["image_ids"] == [splits["image_id"][tested], splits["image_id"][trained]]
    assert pair["splits"] == ["test", "train"]
    assert pair["distance"] <= LARGEST_DISTANCE
    assert "1 near-duplicate pair across splits" in capsys.readouterr().out


def test_the_command_without_a_prepared_dataset_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"manifest\.csv does not exist; run `dvc repro`"):
        split.main()
