from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from benchmarks.plain import told_apart
from stages.errors import InputError
from stages.evaluation.comparison import (
    BETTER,
    MIXED,
    NO_EVIDENCE,
    WORSE,
    Pair,
    compare_predictions,
    differences_of_test_sets,
    holm,
    paired_headline,
    paired_test,
)
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, predictions_table

LABELS = [0, 0, 1, 1] * 50  # two images of each lesion


def model(labels, malignant_probability, lesions=None):
    """Predictions of two classes."""
    told, score = told_apart(2), np.asarray(malignant_probability, float)
    count = range(len(score))
    images = pd.DataFrame(
        {
            "image_id": [f"I{number:03d}" for number in count],
            "lesion_id": [f"L{lesion:03d}" for lesion in (count if lesions is None else lesions)],
        }
    )
    return Predictions(
        predictions_table(
            images, "test", [told.names[label] for label in labels], np.stack([1 - score, score], 1), told
        ),
        told,
    )


def manifest(predictions, **columns):
    rows = predictions.table[["image_id", "lesion_id"]].assign(
        dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown"
    )
    return rows.assign(**columns)


def compare(base, new, images=None, thresholds=(0.5, 0.5), replicates=400, confidence=0.95):
    return compare_predictions(base, new, images, thresholds, replicates, confidence)


@pytest.fixture
def noisy():
    """A function that gives a model of `LABELS` whose probabilities get nearer to the truth with its skill."""

    def make(skill, seed=0):
        evidence = np.random.default_rng(seed).normal(size=len(LABELS)) + skill * (2 * np.array(LABELS) - 1)
        # The probabilities that the evidence stands for: calibrated.
        return model(LABELS, 1 / (1 + np.exp(-2 * skill * evidence)), np.arange(len(LABELS)) // 2)

    return make


@pytest.mark.parametrize("classes", [2, 7])
def test_a_model_does_not_differ_from_itself(predictions_of, classes):
    predictions = predictions_of([number // 2 % classes for number in range(140)], classes)
    result = compare(predictions, predictions, manifest(predictions))
    assert result["verdict"] == NO_EVIDENCE
    assert len(result["metrics"]) == {2: 13, 7: 14}[classes]
    for metric in result["metrics"].values():
        assert metric["difference"] == {"value": 0, "interval": [0, 0]}
        assert metric["p"] == metric["p_adjusted"] == 1
    assert result["subgroups"]["worse"] == []
    for kind in result["changed"].values():
        assert kind["wrong_to_right"] == kind["right_to_wrong"] == []


@pytest.mark.parametrize("classes", [2, 7])
def test_the_values_are_those_of_the_metrics(predictions_of, classes):
    base = predictions_of([number // 2 % classes for number in range(140)], classes)
    shuffled = base.table[[column for column in base.table if column.startswith("probability_")]].to_numpy()[::-1]
    new = Predictions(base.table.copy(), base.classes)
    new.table[[f"probability_{name}" for name in new.classes.names]] = shuffled
    result = compare(base, new)["metrics"]
    for side, predictions in (("base", base), ("new", new)):
        measured = compute_metrics(predictions.probabilities, predictions.labels, predictions.classes)
        for name, value in measured["metrics"].items():
            assert result[name][side] == pytest.approx(value), name
    for metric in result.values():
        assert metric["difference"]["value"] == pytest.approx(metric["new"] - metric["base"])


def test_a_much_better_model_is_better_and_its_opposite_worse(noisy):
    weak, strong = noisy(0.3), noisy(2.0)
    forth, back = compare(weak, strong), compare(strong, weak)
    assert (forth["verdict"], back["verdict"]) == (BETTER, WORSE)
    for name in ("auroc", "accuracy", "brier", "nll"):
        assert forth["metrics"][name]["verdict"] == BETTER, name
        assert back["metrics"][name]["verdict"] == WORSE, name
        low, high = forth["metrics"][name]["difference"]["interval"]
        assert back["metrics"][name]["difference"]["interval"] == pytest.approx([-high, -low])


@pytest.mark.parametrize("classes", [2, 7])
def test_decisions_by_cost_are_compared_where_one_of_the_models_makes_them(predictions_of, classes):
    base = predictions_of([number // 2 % classes for number in range(140)], classes)
    costs = 1 - np.eye(classes)
    equal = replace(base, costs=costs.tolist())
    assert compare(base, equal)["metrics"].keys() == compare(base, base)["metrics"].keys()
    costs[0] *= 5
    new = replace(base, costs=costs.tolist())
    metrics = compare(base, new)["metrics"]
    decided = (base.probabilities @ costs).argmin(axis=1)
    before, after = metrics["accuracy"], metrics["decided_accuracy"]
    assert after["base"] == before["base"] == before["new"] == (base.predicted == base.labels).mean()
    assert after["new"] == (decided == base.labels).mean() < after["base"]
    each = [(decided == base.labels)[base.labels == number].mean() for number in range(classes)]
    assert metrics["decided_balanced_accuracy"]["new"] == pytest.approx(np.mean(each))
    assert metrics["decided_balanced_accuracy"]["difference"]["interval"] != [0, 0]
    assert compare(new, base)["metrics"]["decided_accuracy"]["new"] == after["base"]


def test_lower_is_better_for_errors(noisy):
    metrics = compare(noisy(0.3), noisy(2.0))["metrics"]
    assert {name for name, metric in metrics.items() if metric["lower_is_better"]} == {"ece", "brier", "nll"}
    assert metrics["brier"]["difference"]["value"] < 0 < metrics["auroc"]["difference"]["value"]


def test_more_sensitivity_for_less_specificity_is_mixed(noisy):
    predictions = noisy(0.5)
    result = compare(predictions, predictions, thresholds=(0.7, 0.2))
    assert result["verdict"] == MIXED
    assert result["metrics"]["sensitivity_at_threshold"]["verdict"] == BETTER
    assert result["metrics"]["specificity_at_threshold"]["verdict"] == WORSE
    assert result["metrics"]["auroc"]["p"] == 1


def test_pairing_finds_what_two_separate_intervals_would_not(noisy):
    # The same errors but for a few: each model's own interval is far wider than their difference.
    base = noisy(0.8)
    score = base.malignant_probability.copy()
    wrong = np.flatnonzero((score >= 0.5) != np.array(LABELS, bool))[::3]
    score[wrong] = 1 - score[wrong]
    metric = compare(base, model(LABELS, score, np.arange(len(LABELS)) // 2))["metrics"]["accuracy"]
    assert metric["verdict"] == BETTER
    assert metric["difference"]["value"] < 1.96 * np.sqrt(2 * 0.8 * 0.2 / len(LABELS)) * 1.5


@pytest.mark.parametrize(("found", "lost"), [(30, 10), (12, 3), (20, 20), (9, 0)])
def test_accuracy_with_one_image_a_lesion_is_mcnemars_test(found, lost):
    labels = [0] * 60 + [1] * 60
    base = np.array(labels, float)
    new = base.copy()
    base[:found] = 1  # wrong before, right now
    new[found : found + lost] = 1
    metric = compare(model(labels, base), model(labels, new), replicates=4000)["metrics"]["accuracy"]
    expected = mcnemar([[0, found], [lost, 0]], exact=False, correction=False).pvalue
    assert metric["p"] == pytest.approx(expected, rel=0.25, abs=0.01)


def test_a_few_lesions_that_all_changed_to_one_side_are_not_overrated():
    # 9 of 10 lesions: the sign test's p is 0.004, that of the standard error alone 1e-19.
    drawn = np.random.default_rng(0).binomial(10, 0.9, 2000) / 10
    assert 0.001 < paired_test(Pair(0.0, 0.9, drawn, 10), 0.95)["p"] < 0.01


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_an_interval_without_0_and_a_small_p_are_the_same(confidence):
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        value, lesions = random.normal(0, 0.2), int(random.integers(10, 200))
        tested = paired_test(Pair(0.0, value, random.normal(value, 0.1, 200), lesions), confidence)
        low, high = tested["difference"]["interval"]
        assert low < tested["difference"]["value"] < high
        assert (low > 0 or high < 0) == (tested["p"] < 1 - confidence)
        seen.add(tested["p"] < 1 - confidence)
    assert seen == {True, False}


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    # Means of 20 numbers that scatter about 1.
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(500):
        numbers = random.normal(1, 2, 20)
        drawn = numbers[random.integers(20, size=(300, 20))].mean(axis=1)
        low, high = paired_test(Pair(0.0, numbers.mean(), drawn, 20), 0.95)["difference"]["interval"]
        covered += low <= 1 <= high
    assert 0.92 < covered / 500 < 0.98


def test_too_few_lesions_show_no_difference():
    tested = paired_test(Pair(0.0, 1.0, np.ones(100), 3), 0.95)
    assert tested["difference"]["interval"] is None
    assert tested["p"] > 0.05


def test_rounding_errors_are_no_difference():
    assert paired_test(Pair(0.9, 0.9 + 1e-15, np.full(100, 1e-15), 50), 0.95)["p"] == 1


def test_holms_adjustment_is_that_of_statsmodels():
    random = np.random.default_rng(3)
    for count in (1, 2, 13, 60):
        p = random.random(count) ** 3
        p[: count // 3] = p[0]  # ties
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_verdicts_allow_for_the_number_of_metrics(noisy):
    metrics = compare(noisy(0.8), noisy(1.0, seed=5))["metrics"]
    assert [metric["p_adjusted"] for metric in metrics.values()] == pytest.approx(
        multipletests([metric["p"] for metric in metrics.values()], method="holm")[1]
    )
    for metric in metrics.values():
        assert (metric["verdict"] == NO_EVIDENCE) == (metric["p_adjusted"] >= 0.05)


def test_images_of_a_lesion_are_drawn_together():
    labels = [0, 1] * 40
    base, new = (np.random.default_rng(seed).random(80) for seed in (0, 1))
    once = compare(model(labels, base), model(labels, new))["metrics"]["auroc"]
    copies = np.repeat(np.arange(80), 4)
    models = [model(np.array(labels)[copies], score[copies], copies) for score in (base, new)]
    assert compare(*models)["metrics"]["auroc"]["p"] == pytest.approx(once["p"])


def test_the_order_of_the_rows_does_not_matter(noisy):
    base, new = noisy(0.5), noisy(0.9)
    reversed_new = Predictions(new.table[::-1].reset_index(drop=True), new.classes)
    images = manifest(base)
    assert compare(base, reversed_new, images[::-1]) == compare(base, new, images)


def test_a_model_of_seven_classes_is_compared_with_one_of_two_by_malignancy(predictions_of):
    seven = predictions_of([number // 2 % 7 for number in range(140)], 7)
    two = model(seven.is_malignant.astype(int), seven.malignant_probability, np.arange(140) // 2)
    result = compare(two, seven)
    assert result["classes"] == ["benign", "malignant"]
    assert "auroc" in result["metrics"]
    assert {metric["difference"]["value"] for metric in result["metrics"].values()} == {0}


def test_without_a_threshold_nothing_is_compared_at_it(noisy):
    result = compare(noisy(0.5), noisy(0.9), manifest(noisy(0.5)), thresholds=(None, 0.4))
    assert set(result["not_compared"]) == {"sensitivity_at_threshold", "specificity_at_threshold"}
    assert result["changed"] is None
    assert result["subgroups"]["looked_at"] == 5  # AUROC of the one group of each attribute


def test_metrics_without_a_value_are_not_compared():
    labels = [0] * 30
    result = compare(model(labels, np.linspace(0, 0.6, 30)), model(labels, np.linspace(0.1, 0.7, 30)))
    assert {"auroc", "sensitivity"} <= set(result["not_compared"])
    assert "accuracy" in result["metrics"]
    # Of one class, which all lesions are of.
    same = [result["metrics"][name]["difference"]["interval"] for name in ("balanced_accuracy", "accuracy")]
    assert same[0] == pytest.approx(same[1])


def test_a_subgroup_that_got_worse_is_named_and_the_others_are_not():
    labels = np.tile([0, 1], 150)
    truth = np.where(labels == 1, 0.8, 0.2) + np.random.default_rng(0).normal(0, 0.05, 300)
    sex = np.where(np.arange(300) % 4 < 2, "female", "male")
    worse = np.where((sex == "female") & (labels == 1), 1 - truth, truth)
    base, new = model(labels, truth), model(labels, worse)
    images = manifest(base, sex=sex)
    result = compare(base, new, images)["subgroups"]
    named = {(group["attribute"], group["name"], group["metric"]) for group in result["worse"]}
    assert ("sex", "female", "sensitivity") in named
    assert ("sex", "female", "auroc") in named
    assert not any(name == "male" or metric == "specificity" for _, name, metric in named)
    assert result["looked_at"] == 3 * 6
    assert all(group["difference"]["interval"][1] < 0 for group in result["worse"])
    assert compare(new, base, images)["subgroups"]["worse"] == []


def test_a_subgroup_that_is_worse_only_because_many_were_looked_at_is_not_named():
    # 5 malignant lesions of a group are missed now: p is 0.025 for it alone.
    labels = np.tile([0, 1], 100)
    truth = np.where(labels == 1, 0.8, 0.2)
    missed = truth.copy()
    missed[1:10:2] = 0.45
    base = model(labels, truth)
    images = manifest(base, sex=np.where(np.arange(200) < 80, "female", "male"))
    result = compare(base, model(labels, missed), images)["subgroups"]
    assert result == {"looked_at": 3 * 6, "worse": []}


def test_a_subgroup_of_few_lesions_is_not_looked_at():
    labels = np.tile([0, 1], 50)
    truth = np.where(labels == 1, 0.8, 0.2)
    sex = np.where(np.arange(100) < 16, "female", "male")  # 8 benign and 8 malignant lesions
    worse = np.where(sex == "female", 1 - truth, truth)
    base = model(labels, truth)
    result = compare(base, model(labels, worse), manifest(base, sex=sex))["subgroups"]
    assert result["looked_at"] == 3 * 5
    assert not [group for group in result["worse"] if group["name"] == "female"]


def test_a_subgroup_of_benign_lesions_is_looked_at_for_specificity_only():
    labels = np.array([0] * 20 + [0, 1] * 20)
    base, new = (model(labels, np.random.default_rng(seed).random(60)) for seed in (0, 1))
    images = manifest(base, sex=np.where(np.arange(60) < 20, "female", "male"))
    assert compare(base, new, images)["subgroups"]["looked_at"] == 3 * 5 + 1


def test_changed_decisions_are_those_at_each_models_own_threshold():
    labels = [1, 1, 1, 0, 0, 0] * 5
    base = model(labels, [0.6, 0.4, 0.9, 0.4, 0.6, 0.1] * 5)
    new = model(labels, [0.2, 0.3, 0.9, 0.3, 0.2, 0.1] * 5)
    changed = compare(base, new, thresholds=(0.5, 0.3))["changed"]
    first = {
        name: {key: ids if key == "images" else ids[:1] for key, ids in kind.items()} for name, kind in changed.items()
    }
    assert first == {
        "malignant": {"images": 15, "right_to_wrong": ["I000"], "wrong_to_right": ["I001"]},
        "benign": {"images": 15, "right_to_wrong": ["I003"], "wrong_to_right": ["I004"]},
    }
    assert len(changed["malignant"]["right_to_wrong"]) == 5


def changed_table(predictions, **columns):
    return Predictions(predictions.table.assign(**columns), predictions.classes)


def test_other_test_images_are_refused_with_how_many_and_examples(noisy):
    base = noisy(0.5)
    new = Predictions(base.table[10:].reset_index(drop=True), base.classes)
    assert differences_of_test_sets(base, new, ("main", "mine")) == (
        "190 images are in both, 10 only in main (I000, I001, I002, I003, I004, …)"
    )
    renamed = changed_table(base, image_id=["X", *base.table["image_id"][1:]])
    assert "1 only in base (I000) and 1 only in new (X)" in differences_of_test_sets(base, renamed)
    with pytest.raises(InputError, match="different test sets: 190 images are in both, 10 only in base"):
        compare(base, new)


def test_other_labels_or_lesions_of_the_same_images_are_refused(noisy):
    base = noisy(0.5)
    labels = ["malignant", *base.table["label"][1:]]
    assert differences_of_test_sets(base, changed_table(base, label=labels)) == "1 images have other labels (I000)"
    lesions = ["L999", "L999", *base.table["lesion_id"][2:]]
    with pytest.raises(InputError, match=r"2 images have other lesions \(I000, I001\)"):
        compare(base, changed_table(base, lesion_id=lesions))


def test_no_images_or_the_same_image_twice_are_refused(noisy):
    base = noisy(0.5)
    assert differences_of_test_sets(base, Predictions(base.table[:0], base.classes)) == "new has no test images"
    twice = changed_table(base, image_id=["I001", *base.table["image_id"][1:]])
    assert differences_of_test_sets(base, twice) == "new has an image more than once (I001)"


def test_a_manifest_that_lacks_test_images_is_refused(noisy):
    base = noisy(0.5)
    with pytest.raises(InputError, match="the manifest lacks 3 of the test images"):
        compare(base, base, manifest(base)[3:])


def test_the_difference_of_two_eces_scatters_as_its_replicates_do():
    random, differences, variances = np.random.default_rng(4), [], []
    for _ in range(300):
        labels = random.integers(2, size=200)
        # Calibrated: evidence of one standard deviation whose mean is half a unit up or down.
        base, new = (model(labels, 1 / (1 + np.exp(0.5 - labels - random.normal(size=200)))) for _ in range(2))
        pair = paired_headline(base, new, (0.5, 0.5), 100)["ece"]
        differences.append(pair.new - pair.base)
        variances.append(pair.drawn.var())
    # Plain replicates scatter 1.3 times as much: of absolute gaps that chance made, too few change sign.
    assert np.sqrt(np.mean(variances)) == pytest.approx(np.std(differences), rel=0.13)


@pytest.mark.parametrize(("bounds", "largest"), [((0, 1), 1), ((0, 2), 2)])
def test_no_interval_of_a_difference_leaves_what_is_possible(bounds, largest):
    drawn = np.random.default_rng(0).normal(-0.9, 0.8, 500)
    assert paired_test(Pair(0.95, 0.05, drawn, 9), 0.95, bounds)["difference"]["interval"] == pytest.approx(
        [-largest, min(largest, 1.33)], abs=0.2
    )
