import json
from itertools import product

import numpy as np
import pandas as pd
import pytest

from benchmarks import recipe
from benchmarks.plain import HAM10000
from benchmarks.recipe import BASE, FAMILIES, Measured, Row, average_seeds, cell, cross_fitted, fuse, key, plan, table
from stages.classifier.calibration import apply_temperature
from stages.classifier.temperature import fit_temperature
from stages.errors import InputError, TerminatedError

METRICS = ("accuracy", "malignant_auroc")


def record_of(planned: dict, accuracy: float = 0.5) -> dict:
    metrics = {"tta": dict.fromkeys(METRICS, accuracy), "plain": dict.fromkeys(METRICS, accuracy - 0.1)}
    metrics["metadata"] = metrics["tta"]
    return planned | {
        "data": {"images": 70, "lesions": 35},
        "metrics": metrics,
        "best_epoch": 2,
        "epochs": 3,
        "training_seconds": 10.0,
        "images_per_second": 1000,
        "seconds": 12.0,
    }


@pytest.fixture
def measured(monkeypatch):
    """The runs that were trained, in a benchmark whose trainings take no time."""
    runs = []

    def measure(planned, *_):
        runs.append(planned)
        probabilities = {"plain": np.full((4, 2), 0.5), "tta": np.full((4, 2), 0.5), "labels": np.arange(4) % 2}
        return Measured(record_of(planned), probabilities | {"half": np.array([True, True, False, False])})

    monkeypatch.setattr(recipe, "measure", measure)
    monkeypatch.setattr(recipe, "release_memory", lambda: None)  # there is none, and looking for it takes long
    return runs


@pytest.fixture
def images():
    """A manifest of ten training, two validation and two test lesions of each diagnosis, and its split."""
    rows = [
        {"image_id": f"{dx}{lesion}{image}", "lesion_id": f"{dx}{lesion}", "dx": dx, "split": name}
        for dx in HAM10000
        for lesion, name in enumerate(["train"] * 10 + ["val"] * 2 + ["test"] * 2)
        for image in "ab"
    ]
    manifest = pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)
    split = manifest[["image_id", "lesion_id"]].assign(fold=0, split=manifest.pop("split"))
    return manifest, split


def test_fewer_training_lesions_stay_whole_and_nothing_else_changes(images):
    manifest, split = images
    kept = {share: recipe.keep_lesions(split, manifest, share) for share in (0.2, 0.5, 1.0)}
    assert kept[1.0].equals(split)
    for share, fewer in kept.items():
        held_out = split["split"] != "train"
        assert fewer[held_out].equals(split[held_out])
        assert fewer.drop(columns="split").equals(split.drop(columns="split"))
        assert fewer.groupby("lesion_id")["split"].nunique().max() == 1
        lesions = manifest[fewer["split"] == "train"].groupby("dx")["lesion_id"].nunique()
        assert lesions.to_dict() == dict.fromkeys(HAM10000, round(10 * share))
    assert set(kept[0.2].query("split == 'train'")["image_id"]) < set(kept[0.5].query("split == 'train'")["image_id"])


def test_a_run_that_is_recorded_is_not_done_again(tmp_path, measured):
    runs = plan(["base", "warm-up"], BASE, [1, 2], [0, 1])
    for _ in range(2):
        recipe.run_all(runs, tmp_path, tmp_path, (0, 1), tmp_path, None)
        assert len(measured) == len(runs) == 12
    recipe.run_all(plan(["base"], BASE, [1, 2], [0, 1, 2]), tmp_path, tmp_path, (0, 1), tmp_path, None)
    assert [(planned["fold"], planned["seed"]) for planned in measured[12:]] == [(1, 2), (2, 2)]
    assert len(recipe.read_records(tmp_path)) == 14
    other_base = plan(["base"], BASE | {"training.learning_rate": 0.01}, [1], [0])
    recipe.run_all(other_base, tmp_path, tmp_path, (0, 1), tmp_path, None)
    assert len(measured) == 15


def test_parts_share_the_runs_and_skip_what_the_others_recorded(tmp_path, measured):
    runs = plan(["base"], BASE, [1, 2, 3], [0])
    for index in range(2):
        recipe.run_all(runs, tmp_path, tmp_path, (index, 2), tmp_path, None)
    assert sorted(map(key, measured)) == sorted(map(key, runs))
    recipe.run_all(runs, tmp_path, tmp_path, (0, 1), tmp_path, None)
    assert len(measured) == 3


def test_no_run_is_started_that_would_end_too_late(tmp_path, measured, monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))  # each look at the clock is 10 s later
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: next(clock))
    recipe.run_all(plan(["base"], BASE, [1, 2, 3], [0, 1]), tmp_path, tmp_path, (0, 1), tmp_path, 45)
    # Begun at 10 s and at 30 s, and each takes 10 s; at 50 s it is too late.
    assert len(measured) == 2
    assert "4 are left" in capsys.readouterr().out


def test_runs_that_fail_are_named_at_the_end_and_tried_again(tmp_path, measured, monkeypatch):
    works = recipe.measure

    def fails(planned, *others):
        if planned["seed"] == 0:
            raise InputError("the training loss is nan")
        return works(planned, *others)

    monkeypatch.setattr(recipe, "measure", fails)
    runs = plan(["base"], BASE, [1], [0, 1])
    with pytest.raises(InputError, match=r"1 runs failed:\n.*base, fold 1, seed 0: the training loss is nan"):
        recipe.run_all(runs, tmp_path, tmp_path, (0, 1), tmp_path, None)
    monkeypatch.setattr(recipe, "measure", works)
    recipe.run_all(runs, tmp_path, tmp_path, (0, 1), tmp_path, None)
    assert [planned["seed"] for planned in measured] == [1, 0]


def test_who_terminates_a_run_ends_them_all(tmp_path, monkeypatch):
    started = []

    def terminated(planned, *_):
        started.append(planned)
        raise TerminatedError("terminated; last.ckpt holds everything")

    monkeypatch.setattr(recipe, "measure", terminated)
    with pytest.raises(TerminatedError):
        recipe.run_all(plan(["base"], BASE, [1], [0, 1]), tmp_path, tmp_path, (0, 1), tmp_path, None)
    assert len(started) == 1


def test_runs_of_two_datasets_do_not_mix(tmp_path):
    one = record_of(plan(["base"], BASE, [1], [0])[0])
    recipe.append(tmp_path / "a.jsonl", one)
    recipe.append(tmp_path / "b.jsonl", one | {"data": {"images": 600, "lesions": 400}})
    with pytest.raises(InputError, match="more than one dataset"):
        recipe.read_records(tmp_path)


def test_the_base_comes_first_and_a_variant_that_says_the_same_is_no_run_of_its_own():
    runs = plan(["warm-up", "base", "training lesions", "network"], BASE, [1, 2], [0])
    assert [(planned["variant"], planned["fold"]) for planned in runs[:2]] == [("base", 1), ("base", 2)]
    names = {planned["variant"] for planned in runs}
    assert names.isdisjoint({"warm-up-1", "lesions-1.0", "lite0"})
    assert {"warm-up-0", "warm-up-3", "lesions-0.25", "lite1", "resnet18-from-scratch"} <= names


def test_every_variant_can_be_run():
    assert len(plan(["all"], BASE, [1, 2, 3], [0])) > 100


@pytest.mark.parametrize(
    ("names", "folds", "message"),
    [
        (["warmup"], [1], "warmup is not a variant or family; close are warm-up"),
        (["base"], [0], r"base: split\.val_fold is 0, the same as split\.test_fold"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(names, folds, message):
    with pytest.raises(InputError, match=message):
        plan(names, BASE, folds, [0])


def test_cells_are_means_with_deviations_and_paired_differences():
    runs = {(1, 0): {"accuracy": 0.9}, (2, 0): {"accuracy": 0.8}, (3, 0): {"accuracy": 0.7}}
    base = {(1, 0): {"accuracy": 0.8}, (2, 0): {"accuracy": 0.8}}
    # 0.8 ± √((0.01 + 0 + 0.01) / 2); of the differences 0.1 and 0 the mean is 0.05, and the deviation 0.1 / √2.
    assert cell(Row("x", runs, base), "accuracy") == "0.800 ± 0.100 (+0.050 ± 0.071)"
    assert cell(Row("x", runs, {}), "accuracy") == "0.800 ± 0.100"
    assert cell(Row("x", {(1, 0): {"accuracy": 0.75}}, base), "accuracy") == "0.750 (-0.050)"
    assert cell(Row("x", {(1, 0): {"accuracy": None}}, base), "accuracy") == "–"
    assert cell(Row("x", {(1, 0): {"best_epoch": 9}}, base), "best_epoch") == "9.0"


def test_tables_compare_with_the_base_on_the_same_folds_and_seeds():
    records = [
        record_of(planned, 0.6 if planned["variant"] == "base" else 0.7)
        for planned in plan(["base", "warm-up-0"], BASE, [1, 2], [0, 1])
    ]
    averages = [
        record | {"seed": [0, 1], "metrics": {"tta": dict.fromkeys(METRICS, metric)}}
        for record, metric in ((records[0], 0.65), (records[4], 0.72))
    ]
    lines = table(records, averages, BASE).splitlines()
    assert lines[0].startswith("| base | accuracy | malignant AUROC | best epoch | runs |")
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert rows["base"][0] == "0.600 ± 0.000"
    assert rows["warm-up-0"][0] == "0.700 ± 0.000 (+0.100 ± 0.000)"
    assert rows["warm-up-1"][0] == "0.600 ± 0.000"
    assert rows["without, base"][0] == "0.500 ± 0.000 (-0.100 ± 0.000)"
    assert rows["without, all runs"][-1] == "8 |"
    assert rows["base, 2 networks"][0] == "0.650 (+0.050)"
    assert rows["all variants, 2 networks"][0] == "0.685 ± 0.049 (+0.035 ± 0.021)"
    assert not any("dropout" in line for line in lines)  # of which there is only the base


def test_fusion_multiplies_and_takes_the_prior_out():
    # 0.5 · 0.9 / 0.75 = 0.6, 0.5 · 0.1 / 0.25 = 0.2
    fused = fuse(np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]]), np.array([0.75, 0.25]))
    assert fused == pytest.approx(np.array([[0.75, 0.25]]))
    # What the metadata say of everyone says nothing.
    image = np.array([[0.2, 0.8], [1.0, 0.0]])
    assert fuse(image, np.full((2, 2), 0.5), np.array([0.5, 0.5])) == pytest.approx(image)


def test_a_temperature_is_fitted_on_the_other_half():
    half = np.arange(8) < 4
    probabilities = np.where(half[:, None], [0.9, 0.1], [0.8, 0.2])
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    scaled = cross_fitted(probabilities, labels, half)
    for mine in (half, ~half):
        temperature = fit_temperature(probabilities[~mine], labels[~mine])
        assert scaled[mine] == pytest.approx(apply_temperature(probabilities[mine], temperature))


def test_halves_keep_lesions_whole_whatever_the_order(images):
    manifest, _ = images
    half = pd.Series(recipe.halves(manifest), index=manifest["image_id"])
    assert half.groupby(manifest["lesion_id"].to_numpy()).nunique().max() == 1
    assert half.mean() == 0.5
    turned = manifest[::-1]
    assert recipe.halves(turned).tolist() == half[turned["image_id"]].tolist()


def test_seven_classes_are_judged_as_two_as_well():
    # akiec, bcc, bkl, df, mel, nv, vasc; 0.6 for the first or the sixth class, the rest for melanoma.
    probabilities = np.zeros((8, 7))
    probabilities[:4, 0], probabilities[4:, 5], probabilities[:, 4] = 0.6, 0.6, 0.4
    labels = np.array([0, 0, 4, 4, 5, 5, 5, 0])
    numbers = recipe.assess(probabilities, labels, np.arange(8) % 2 == 0)
    assert numbers["accuracy"] == 5 / 8
    # A melanoma taken for an akiec is malignant nevertheless; the akiec taken for a naevus is missed.
    assert numbers["malignant_accuracy"] == 7 / 8
    assert numbers["malignant_balanced_accuracy"] == pytest.approx((4 / 5 + 1) / 2)
    assert numbers["malignant_auroc"] == pytest.approx((4 * 3 + 3 / 2) / 15)
    assert numbers["malignant_specificity_at_90"] == 0  # the fifth malignant image scores like every benign one
    assert numbers["nll_uncalibrated"] == pytest.approx(
        (-5 * np.log(0.6) - 2 * np.log(0.4) + 8 * np.log(10)) / 8, abs=1e-5
    )
    two = recipe.assess(np.array([[0.8, 0.2], [0.3, 0.7]] * 4), np.array([0, 1] * 4), np.arange(8) < 4)
    assert two["malignant_accuracy"] == two["malignant_auroc"] == 1
    assert "accuracy" not in two


def test_averages_are_of_the_probabilities_of_one_variant_and_fold(tmp_path):
    records = [record_of(planned) for planned in plan(["base"], BASE, [1, 2], [0, 1])]
    right, wrong = np.array([[0.9, 0.1], [0.1, 0.9]] * 2), np.array([[0.6, 0.4], [0.6, 0.4]] * 2)
    for record, probabilities in zip(records[:3], (right, wrong, right)):  # of the last one nothing is kept
        arrays = {"tta": probabilities, "plain": probabilities, "labels": np.array([0, 1] * 2)}
        path = tmp_path / f"{record['seed']}.npz"
        recipe.store_probabilities(path, record, arrays | {"half": np.array([True, True, False, False])})
    averaged = average_seeds(records, recipe.read_probabilities(tmp_path))
    assert [(one["variant"], one["fold"], one["seed"]) for one in averaged] == [("base", 1, [0, 1])]
    assert averaged[0]["metrics"]["tta"]["malignant_accuracy"] == 1  # (0.1 + 0.6) / 2 is less than 0.5
    json.dumps(averaged)


def test_names_of_variants_are_unlike():
    names = [name for variants in FAMILIES.values() for name in variants]
    assert len(set(names)) == len(names)
    families = set(FAMILIES) - {"base"}
    assert families.isdisjoint(names)
    assert all(
        one == other or set(FAMILIES[one]).isdisjoint(FAMILIES[other]) for one, other in product(FAMILIES, FAMILIES)
    )
