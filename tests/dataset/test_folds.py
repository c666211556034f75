import random

import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from stages.dataset.folds import KNOWN_DUPLICATES, assign_folds, lesion_groups, split_of, validated_on, validation_folds
from stages.errors import InputError

COUNTS = {"nv": 150, "mel": 40, "bkl": 35, "df": 12}


def table_of(lesions):
    """A table of so many lesions of each diagnosis, with one to four images each, in no special order."""
    rows = [
        {"image_id": f"I-{dx}-{lesion}-{image}", "lesion_id": f"L-{dx}-{lesion}", "dx": dx}
        for dx, count in lesions.items()
        for lesion in range(count)
        for image in range(1 + (lesion * 7) % 4)
    ]
    return pd.DataFrame(random.Random(1).sample(rows, len(rows)))


@pytest.fixture(scope="module")
def table():
    return table_of(COUNTS)


def by_image(table, fold):
    return dict(zip(table["image_id"], fold))


@pytest.mark.parametrize("folds", [3, 7, 10])
def test_every_image_has_a_fold_and_a_lesion_only_one(table, folds):
    fold = assign_folds(table, folds, seed=0)
    assert fold.index.equals(table.index)
    assert set(fold) == set(range(folds))
    assert fold.groupby(table["lesion_id"]).nunique().max() == 1


@pytest.mark.parametrize("per_patient", [1, 5])
@pytest.mark.parametrize(("folds", "seed"), [(3, 0), (7, 3), (10, 12345)])
def test_the_folds_are_those_of_scikit_learn(table, folds, seed, per_patient):
    ordered = table.sort_values("image_id", ignore_index=True)
    lesions = pd.factorize(ordered["lesion_id"])[0]
    # The lesions of a patient, as those of one id are, may be of several diagnoses.
    ordered["lesion_id"] = [f"L{lesion % (1 + lesions.max() // per_patient):03}" for lesion in lesions]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    expected = pd.Series(-1, index=ordered.index)
    for fold, (_, members) in enumerate(splitter.split(ordered, ordered["dx"], ordered["lesion_id"])):
        expected.iloc[members] = fold
    assert list(assign_folds(ordered, folds, seed)) == list(expected)


@pytest.mark.parametrize("folds", [3, 7, 10])
def test_each_fold_has_its_share_of_each_diagnosis(table, folds):
    fold = assign_folds(table, folds, seed=0)
    images = pd.crosstab(fold, table["dx"])
    assert images.shape == (folds, len(COUNTS))
    assert (images > 0).all(axis=None)
    # A lesion has up to four images, so that no fold can be nearer than that to its share.
    assert ((images - images.sum() / folds).abs() <= 4).all(axis=None)


def test_as_many_lesions_as_folds_are_enough():
    table = table_of({"nv": 30, "df": 5})
    fold = assign_folds(table, 5, seed=0)
    assert sorted(fold[table["dx"] == "df"].groupby(table["lesion_id"]).first()) == [0, 1, 2, 3, 4]


def test_the_order_of_the_rows_does_not_matter(table):
    shuffled = table.sample(frac=1, random_state=3)
    expected = by_image(table, assign_folds(table, 5, seed=0))
    assert by_image(shuffled, assign_folds(shuffled.reset_index(drop=True), 5, seed=0)) == expected
    kept_index = assign_folds(shuffled, 5, seed=0)
    assert by_image(table, kept_index[table.index]) == expected


def test_the_seed_decides(table):
    assert assign_folds(table, 5, seed=0).equals(assign_folds(table, 5, seed=0))
    assert not assign_folds(table, 5, seed=0).equals(assign_folds(table, 5, seed=1))


def test_too_few_lesions_are_refused_with_each_diagnosis_and_its_count():
    table = table_of({"nv": 20, "df": 4, "vasc": 1})
    with pytest.raises(InputError) as caught:
        assign_folds(table, 5, seed=0)
    assert "split.folds is 5, but df has only 4 lesions, vasc has only 1 lesion;" in str(caught.value)


def test_a_fold_without_a_diagnosis_is_refused_where_patients_have_several():
    patients = ["nv df", "nv df df", "df nv", "df nv nv df", "df nv", "df df df df", "df", "nv nv nv nv"]
    rows = [
        {"image_id": f"I{patient}-{image}", "lesion_id": f"P{patient}", "dx": dx}
        for patient, diagnoses in enumerate(patients)
        for image, dx in enumerate(diagnoses.split())
    ]
    with pytest.raises(InputError, match=r"split\.seed 0, but fold 0 has no df; every fold needs one of each"):
        assign_folds(pd.DataFrame(rows), 3, seed=0)


def test_known_duplicates_are_image_ids_of_ham10000():
    images = [image_id for pair in KNOWN_DUPLICATES for image_id in pair]
    assert len(KNOWN_DUPLICATES) == 18
    assert len(set(images)) == 36
    # HAM10000 has ISIC_0024306 to ISIC_0034320.
    assert all("ISIC_0024306" <= image_id <= "ISIC_0034320" for image_id in images)


def test_a_known_duplicate_puts_two_lesions_into_one_group_and_leaves_the_others():
    (first, second), (third, _) = KNOWN_DUPLICATES[:2]
    images = pd.DataFrame({"image_id": [first, "a", second, "b", third], "lesion_id": ["L4", "L4", "L2", "L2", "L3"]})
    groups = lesion_groups(images)
    assert groups.nunique() == 2
    assert groups[:4].nunique() == 1
    assert groups[4] == "L3"


def test_known_duplicates_join_lesions_over_several_pairs():
    (a, b), (c, d), (e, f) = KNOWN_DUPLICATES[:3]
    lesion_of = {a: "L1", b: "L6", c: "L6", d: "L3", e: "L3", f: "L2", "other": "L5"}
    for order in (list(lesion_of), list(reversed(lesion_of))):
        images = pd.DataFrame({"image_id": order, "lesion_id": [lesion_of[image_id] for image_id in order]})
        groups = by_image(images, lesion_groups(images))
        assert len({groups[image_id] for image_id in (a, b, c, d, e, f)}) == 1
        assert groups["other"] not in {groups[a]}


def test_known_duplicates_that_form_a_ring_end():
    (a, b), (c, d) = KNOWN_DUPLICATES[:2]
    images = pd.DataFrame({"image_id": [a, b, c, d], "lesion_id": ["L1", "L2", "L2", "L1"]})
    assert lesion_groups(images).nunique() == 1


def test_known_duplicates_share_a_fold(table):
    pairs = KNOWN_DUPLICATES
    duplicates = [
        {"image_id": image_id, "lesion_id": f"D-{image_id}", "dx": "nv"} for pair in pairs for image_id in pair
    ]
    table = pd.concat([table, pd.DataFrame(duplicates)], ignore_index=True)
    fold = by_image(table, assign_folds(table, 7, seed=0))
    assert [fold[first] for first, _ in pairs] == [fold[second] for _, second in pairs]


def test_the_held_out_folds_are_the_ones_chosen():
    fold = pd.Series([0, 1, 2, 3, 2])
    assert list(split_of(fold, test_fold=2, val_fold=0)) == ["val", "train", "test", "train", "test"]


def test_folds_validate_in_turn_and_the_one_that_the_split_names_is_left_out_then():
    fold = pd.Series([0, 1, 2, 3, 2])
    table = pd.DataFrame({"fold": fold, "split": split_of(fold, test_fold=1, val_fold=2)})
    assert validation_folds(table) == [2, 3, 0]
    assert list(validated_on(table, 3)["split"]) == ["train", "test", "test", "val", "test"]
    assert validated_on(table, 2).equals(table)
