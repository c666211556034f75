import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from benchmarks.plain import told_apart
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.subgroups import METRICS, assess_subgroups, subgroup_table

THRESHOLD = 0.5


@pytest.fixture
def images():
    """400 images of 200 lesions, every other one malignant, in three groups; scores, truth and lesions."""
    random = np.random.default_rng(0)
    lesions = np.repeat(np.arange(200), 2)
    groups = pd.DataFrame({"site": np.array(["back"] * 240 + ["face"] * 132 + ["ear"] * 28)})
    truth = lesions % 2 == 0
    score = np.clip(0.5 + 0.3 * (truth - 0.5) + 0.3 * random.normal(size=400), 0, 1).round(2)
    return score, truth, lesions, groups


def assess(score, truth, lesions, groups, replicates=200):
    images = pd.DataFrame({"image_id": np.arange(len(score)).astype(str), "lesion_id": lesions})
    labels, classes = np.where(truth, "malignant", "benign").tolist(), told_apart(2)
    table = predictions_table(images, "test", labels, np.stack([1 - score, score], axis=1), classes)
    return assess_subgroups(Predictions(table, classes), THRESHOLD, groups, replicates, 0.95)


def test_each_image_has_a_group_of_each_kind():
    rows = pd.DataFrame(
        {
            "age": [0, 29.5, 30, 44, 45, 59, 60, 74, 75, 120, np.nan],
            "sex": ["female"] * 10 + ["unknown"],
            "localization": "back",
            "dataset": "rosendahl",
            "dx_type": ["histo", "consensus", "follow_up", "confocal", *["histo"] * 7],
        }
    )
    table = subgroup_table(rows)
    bands = ["under 30"] * 2 + ["30-44"] * 2 + ["45-59"] * 2 + ["60-74"] * 2 + ["75 and older"] * 2 + ["unknown"]
    assert list(table["age"]) == bands
    assert list(table["sex"]) == ["female"] * 10 + ["unknown"]
    assert list(table["dx_type"]) == ["histopathology", *["other reference"] * 3, *["histopathology"] * 7]
    assert list(table.columns) == ["age", "sex", "localization", "dataset", "dx_type"]


def test_a_group_has_the_numbers_of_its_images(images):
    score, truth, lesions, groups = images
    described = assess(*images)["site"]["groups"]
    assert [group["name"] for group in described] == ["back", "face", "ear"], "the largest first"
    for group in described:
        mine = (groups["site"] == group["name"]).to_numpy()
        called = score >= THRESHOLD
        assert group["images"] == mine.sum()
        assert group["lesions"] == len(set(lesions[mine]))
        assert group["malignant_lesions"] == len(set(lesions[mine & truth]))
        assert group["benign_lesions"] == len(set(lesions[mine & ~truth]))
        assert group["sensitivity"]["value"] == pytest.approx(called[mine & truth].mean())
        assert group["specificity"]["value"] == pytest.approx(1 - called[mine & ~truth].mean())
        assert group["auroc"]["value"] == pytest.approx(roc_auc_score(truth[mine], score[mine]))
        for metric in METRICS:
            low, high = group[metric]["interval"]
            assert low < group[metric]["value"] <= high


def test_groups_with_fewer_than_ten_lesions_of_a_kind_are_shown_but_not_judged():
    lesions = np.arange(59)
    # Malignant and benign lesions: 10 and 10, 9 and 10, 10 and 9, and 1 and 0.
    groups = pd.DataFrame({"site": np.repeat(["a", "b", "c", "d"], [20, 19, 19, 1])})
    truth = np.repeat([True, False, True, False, True, False, True], [10, 10, 9, 10, 10, 9, 1])
    score = np.tile([0.9, 0.1, 0.6], 20)[:59]
    site = assess(score, truth, lesions, groups)["site"]
    judged = {group["name"]: list(group["judged"].values()) for group in site["groups"]}
    assert judged == {
        "a": [True, True, True],
        "b": [False, True, False],
        "c": [True, False, False],
        "d": [False, False, False],
    }
    assert {site["worst_gap"]["sensitivity"][end] for end in ("highest", "lowest")} == {"a", "c"}
    assert {site["worst_gap"]["specificity"][end] for end in ("highest", "lowest")} == {"a", "b"}
    assert site["worst_gap"]["auroc"] is None, "only one group can be judged"
    alone = site["groups"][-1]
    assert alone["specificity"] == alone["auroc"] == {"value": None, "interval": None}


def test_the_interval_of_a_group_rests_on_its_own_lesions(images):
    _, truth, lesions, groups = images
    for group in assess(truth.astype(float), truth, lesions, groups)["site"]["groups"]:
        # All are right: the interval is that of its number of lesions.
        behind = {"sensitivity": group["malignant_lesions"], "specificity": group["benign_lesions"]}
        for metric, count in (behind | {"auroc": min(behind.values())}).items():
            low = (count - 1) / (count - 1 + t.ppf(0.975, count - 1) ** 2)
            assert group[metric] == {"value": 1, "interval": pytest.approx([low, 1])}


def test_ten_images_of_one_lesion_are_one_lesion():
    groups = pd.DataFrame({"site": ["a"] * 20 + ["b"] * 40})
    lesions = np.r_[np.repeat([0, 1], 10), np.arange(2, 42)]
    truth = np.r_[lesions[:20] == 0, np.arange(40) % 2 == 0]
    site = assess(np.linspace(0, 1, 60), truth, lesions, groups)["site"]
    assert site["worst_gap"] == {"sensitivity": None, "specificity": None, "auroc": None}


def test_the_widest_gap_is_the_difference_of_the_highest_and_the_lowest(images):
    site = assess(*images)["site"]
    for metric in METRICS:
        judged = {group["name"]: group[metric] for group in site["groups"] if group["judged"][metric]}
        assert set(judged) == {"back", "face"}
        gap = site["worst_gap"][metric]
        assert judged[gap["highest"]]["value"] == max(number["value"] for number in judged.values())
        assert judged[gap["lowest"]]["value"] == min(number["value"] for number in judged.values())
        wanted = judged[gap["highest"]]["value"] - judged[gap["lowest"]]["value"]
        assert gap["difference"]["value"] == pytest.approx(wanted)
        low, high = gap["difference"]["interval"]
        assert low < wanted < high


def test_the_interval_of_a_gap_is_that_of_two_independent_fractions():
    # Of 100 lesions each, 80 and 60 are found: the standard error is the root of 0.8·0.2/100 + 0.6·0.4/100.
    found = np.r_[np.arange(100) < 80, np.arange(100) < 60]
    groups = pd.DataFrame({"sex": np.repeat(["female", "male"], 100)})
    gap = assess(found * 0.9, np.ones(200, bool), np.arange(200), groups, 2000)["sex"]["worst_gap"]["sensitivity"]
    assert (gap["highest"], gap["lowest"]) == ("female", "male")
    error = 1.96 * (0.16 / 100 + 0.24 / 100) ** 0.5
    assert gap["difference"]["interval"] == pytest.approx([0.2 - error, 0.2 + error], abs=0.012)


def test_where_all_groups_are_alike_the_gap_is_0_and_between_two_of_them():
    groups = pd.DataFrame({"sex": np.repeat(["female", "male", "unknown"], 20)})
    truth = np.arange(60) % 2 == 0
    for metric, gap in assess(truth * 0.9, truth, np.arange(60), groups)["sex"]["worst_gap"].items():
        assert gap["highest"] != gap["lowest"], metric
        assert gap["difference"] == {"value": 0, "interval": [0, 0]}


def test_groups_of_one_size_are_in_the_order_of_their_names():
    groups = pd.DataFrame({"sex": ["male", "female", "unknown"] * 4})
    truth = np.arange(12) % 2 == 0
    described = assess(truth * 0.9, truth, np.arange(12), groups)["sex"]["groups"]
    assert [group["name"] for group in described] == ["female", "male", "unknown"]
