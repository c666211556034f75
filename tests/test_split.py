import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats.contingency import association

from benchmarks.plain import HAM10000, PLAIN
from stages import split
from stages.dataset.duplicates import HASH, LARGEST_DISTANCE
from stages.dataset.folds import KNOWN_DUPLICATES, SPLITS, validation_folds
from stages.dataset.pixels import add_places, shard_path, write_manifest
from stages.dataset.shortcuts import audit_sources, describe_sources
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


@pytest.fixture
def sources(manifest):
    """The lesions of `manifest` in three datasets; the last has no df."""
    number = manifest["lesion_id"].str.extract(r"(\d+)$")[0].astype(int)
    names = np.where(number % 4 == 0, "a", np.where((number % 4 == 1) & (manifest["dx"] != "df"), "b", "c"))
    return manifest.assign(dataset=names)


def settings(**changes):
    return replace(PLAIN.split, folds=3, **changes)


def test_a_source_that_is_only_trained_on_and_what_shows_its_lesions_is_never_held_out(sources):
    ours, theirs = (sources[sources["dataset"] == name].iloc[0]["image_id"] for name in "ab")
    shown = sources.set_index("image_id").loc[theirs, "lesion_id"]
    for fold in range(3):
        table = split_dataset(sources, settings(test_fold=fold), [(ours, theirs)], train_only=["a"])
        trained = (sources["dataset"] == "a") | (sources["lesion_id"] == shown)
        assert set(table.loc[trained, "split"]) == {"train"}
        assert set(table.loc[~trained, "split"]) == set(SPLITS)
        assert set(table["split"][table["fold"] == -1]) == {"train"}
        assert -1 not in validation_folds(table)


def test_near_duplicates_of_two_sources_are_in_one_fold(sources):
    ours, theirs = (list(sources[sources["dataset"] == name]["image_id"]) for name in "ab")
    pairs = list(zip(ours, theirs))
    fold = split_dataset(sources, settings(), pairs).set_index("image_id")["fold"]
    assert all(fold[one] == fold[other] for one, other in pairs)
    apart = split_dataset(sources, settings()).set_index("image_id")["fold"]
    assert any(apart[one] != apart[other] for one, other in pairs)


def test_a_source_is_held_out_whole_and_a_fold_of_the_rest_validates(sources):
    ours, theirs = (sources[sources["dataset"] == name].iloc[0]["image_id"] for name in "ab")
    table = split_dataset(sources, settings(by="source", test_source="b"), [(ours, theirs)])
    shown = sources.set_index("image_id").loc[ours, "lesion_id"]
    tested = (sources["dataset"] == "b") | (sources["lesion_id"] == shown)
    assert (table["split"] == "test").equals(tested)
    assert set(table["fold"][table["split"] == "val"]) == {1}
    assert validation_folds(table) == [1, 2, 0]


def test_a_source_that_cannot_be_held_out_is_refused(sources):
    by = settings(by="source", test_source="d")
    with pytest.raises(
        InputError, match=r"split\.test_source is d; it must be one of several sources, which are a, b, c"
    ):
        split_dataset(sources, by)
    with pytest.raises(InputError, match=r"which are a, b$"):
        split_dataset(sources, replace(by, test_source="c"), train_only=["c"])
    with pytest.raises(InputError, match=r"which are b$"):
        split_dataset(sources.assign(dataset="b"), replace(by, test_source="b"))


def test_the_association_is_cramers_v_and_what_a_source_lacks_is_named(sources):
    found = audit_sources(sources)
    lesions = sources.drop_duplicates(["lesion_id"])
    table = pd.crosstab(lesions["dataset"], lesions["dx"])
    assert found["lesions"] == table.to_dict("index")
    assert found["cramers_v"] == pytest.approx(association(table.to_numpy(), method="cramer"))
    assert found["lacks"] == {}
    assert describe_sources(found).startswith("diagnosis and source: Cramér's V 0.")
    lacking = audit_sources(sources.assign(dx=sources["dx"].mask(sources["dataset"] == "b", "nv")))
    assert lacking["lacks"] == {"b": ["mel"]}
    assert describe_sources(lacking).startswith("warning: b has next to none of mel: a network may learn the source")
    assert audit_sources(sources[sources["dataset"] == "b"])["lacks"] == {}


def test_the_command_audits_several_sources_and_joins_what_they_share(sources, prepared, params, capsys):
    write_manifest(PREPARED, sources, HAM10000, {name: {"train_only": name == "b"} for name in "abc"})
    one, other = (sources.index[sources["dataset"] == name][0] for name in "ac")
    prepared[one] = prepared[other, ::-1]
    prepared.flush()
    params({"split.folds": 3})
    split.main()
    written, found = read_csv(SPLIT, []), read_json(SPLIT_METRICS)["sources"]
    assert set(found) == {"lesions", "cramers_v", "lacks", "near_duplicates"}
    assert [set(pair) for pair in found["near_duplicates"]] == [set(sources.loc[[one, other], "image_id"])]
    assert written["fold"][one] == written["fold"][other]
    assert set(written["split"][sources["dataset"] == "b"]) == {"train"}
    assert "1 near-duplicate pair across sources" in capsys.readouterr().out
