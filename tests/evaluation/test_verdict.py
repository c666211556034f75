"""What is said of a model's promises, and how often it is right, on simulated lesions."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from benchmarks.plain import told_apart
from stages.classifier.calibration import Calibration
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.verdict import MARGINS, calibration_slope, independent_difference, judge, told

TWO = told_apart(2)
THRESHOLD = 0.3
REPEATED = 100, 0.95
EXPERIMENTS = 150
pytestmark = pytest.mark.xdist_group("verdict")


def predictions(probabilities, labels, lesions, classes=TWO):
    ids = pd.DataFrame({"image_id": [f"I{number}" for number in range(len(labels))], "lesion_id": lesions})
    return Predictions(
        predictions_table(ids, "test", [classes.names[it] for it in labels], probabilities, classes), classes
    )


def calibrated(random, lesions=400, images=2, slope=1.0, shift=0.0):
    """Lesions whose images are alike, and probabilities that are calibrated, or off by a slope and a shift."""
    right = np.repeat(random.normal(-0.5, 2, lesions), images)
    labels = np.repeat(random.random(lesions) < expit(right[::images]), images).astype(int)
    score = expit((right + shift) / slope)
    return predictions(np.stack([1 - score, score], axis=1), labels, np.repeat(np.arange(lesions), images).astype(str))


def calibration(target):
    return Calibration(False, 1.0, THRESHOLD, target, 0.5)


def by_name(verdict):
    return {promise["name"]: promise for promise in verdict["promises"]}


def shifted(estimated, by):
    return {"value": estimated["value"] + by, "interval": [end + by for end in estimated["interval"]]}


@pytest.fixture(scope="module")
def sensitivity():
    """That of calibrated probabilities at the threshold."""
    many = calibrated(np.random.default_rng(1), 200_000, 1)
    return (many.malignant_probability >= THRESHOLD)[many.is_malignant].mean()


@pytest.fixture(scope="module")
def experiments(sensitivity):
    """Verdicts on a model that keeps what it promises, each of other lesions here and there."""
    random = np.random.default_rng(0)
    kept = calibration(sensitivity)
    return [by_name(judge(calibrated(random), calibrated(random), kept, *REPEATED)) for _ in range(EXPERIMENTS)]


@pytest.mark.parametrize("name", ["sensitivity_at_threshold", "auroc", "mean_probability", "calibration_slope"])
def test_a_verdict_is_wrong_as_seldom_as_its_intervals(experiments, name):
    """One in forty kept promises is said to be broken, or one in twenty where both sides count; and the reverse."""
    two_sided = name in ("mean_probability", "calibration_slope")
    broken = np.mean([verdict[name]["status"] == "broken" for verdict in experiments])
    assert broken <= (0.1 if two_sided else 0.07)
    worse = [shifted(verdict[name]["difference"], -MARGINS[name]) for verdict in experiments]
    statuses = [told(difference, MARGINS[name], two_sided)[0] for difference in worse]
    assert np.mean([status == "holds" for status in statuses]) <= 0.07
    assert np.mean([status == "broken" for status in statuses]) > 0.3
    assert any(verdict[name]["status"] == "holds" for verdict in experiments)


def test_a_promise_that_is_far_from_kept_is_broken():
    random = np.random.default_rng(0)
    own, there = calibrated(random, 1000), calibrated(random, 600, slope=0.5, shift=-2.0)
    found = by_name(judge(there, own, calibration(0.9), *REPEATED))
    statuses = {name: promise["status"] for name, promise in found.items()}
    assert statuses == {
        "sensitivity_at_threshold": "broken",
        "auroc": "holds",
        "mean_probability": "broken",
        "calibration_slope": "broken",
    }
    for name in ("sensitivity_at_threshold", "calibration_slope"):
        assert found[name]["difference"]["value"] == pytest.approx(
            found[name]["found"]["value"] - found[name]["promised"]
        )
    assert found["mean_probability"]["promised"] == pytest.approx(there.is_malignant.mean())
    assert found["calibration_slope"]["found"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["sensitivity_at_threshold"]["sentence"].startswith("Broken: Sensitivity at the threshold is 0.")
    assert found["sensitivity_at_threshold"]["sentence"].endswith("; 0.900 was promised.")


def test_few_lesions_tell_nothing_and_it_is_said_how_many_would():
    few, many = (calibrated(np.random.default_rng(5), lesions, 1) for lesions in (40, 3000))
    verdict = judge(few, many, calibration(0.85), *REPEATED)
    untold = [promise for promise in verdict["promises"] if promise["status"] == "cannot be told"]
    assert len(untold) >= 3
    for promise in untold:
        words = promise["sentence"].split()
        have, needed = (int(words[words.index(word) + step]) for word, step in (("malignant", -1), ("about", 1)))
        assert have == few.is_malignant.sum() < needed < 3000
    assert "cannot be told (" in verdict["summary"]


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("value", [-0.06, -0.03, 0.0, 0.02])
def test_so_many_lesions_would_tell(value, two_sided):
    """An interval of a mean shrinks with the root of the number of lesions; that of the model's own does not."""
    own = {"value": 0.8, "interval": [0.79, 0.81]}

    def difference(factor):
        found = {"value": 0.8 + value, "interval": [0.8 + value + side * 0.2 / np.sqrt(factor) for side in (-1, 1)]}
        return independent_difference(found, own)

    status, factor = told(difference(1), 0.1, two_sided, own)
    assert status == "cannot be told"
    assert told(difference(0.99 * factor), 0.1, two_sided, own)[0] == "cannot be told"
    assert told(difference(1.01 * factor), 0.1, two_sided, own)[0] == ("broken" if value == -0.06 else "holds")


def test_no_number_of_lesions_makes_up_for_few_of_the_models_own():
    own = {"value": 0.8, "interval": [0.6, 0.9]}
    difference = independent_difference({"value": 0.8, "interval": [0.7, 0.9]}, own)
    assert told(difference, 0.05, False, own) == ("cannot be told", np.inf)


def test_the_difference_of_two_proportions_is_newcombes():
    """Newcombe 1998, table II, (a): 56/70 − 48/80 has the interval 0.0524 to 0.3339 by his method 10."""
    shares = [{"value": 56 / 70, "interval": [0.6914, 0.8778]}, {"value": 48 / 80, "interval": [0.4904, 0.7005]}]
    assert independent_difference(*shares)["interval"] == pytest.approx([0.0524, 0.3339], abs=2e-3)


def test_a_hand_worked_slope():
    """Odds of 1 : 9 and 9 : 1 where 1 : 3 and 3 : 1 came about: half as far apart, on the logit's scale."""
    score, truth = np.repeat([0.1, 0.9], 40), np.tile(np.repeat([False, True], [30, 10]), 2)
    truth[40:] = ~truth[40:]
    lesions = np.arange(80).astype(str)
    found = calibration_slope(score, truth, lesions, 0.95)
    assert found["value"] == pytest.approx(0.5, abs=1e-6)
    # The standard error of half the logarithm of an odds ratio, for 2 × 2 counts, and t for 39 of the rarer kind.
    error = np.sqrt(2 / 30 + 2 / 10) / (2 * np.log(9)) * np.sqrt(40 / 39)
    assert found["interval"] == pytest.approx([0.5 - 2.0227 * error, 0.5 + 2.0227 * error], abs=1e-4)
    # Images of one lesion that are alike tell nothing that one does not.
    twice = [np.repeat(it, 2) for it in (score, truth, lesions)]
    assert calibration_slope(*twice, 0.95)["interval"] == pytest.approx(found["interval"], abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], ids=str)
def test_what_does_not_exist_is_said_not_to(labels):
    """No malignant lesion, no benign one, or both told apart without a mistake, where no slope is the steepest."""
    score = np.array([0.1, 0.2, 0.8, 0.9])
    there = predictions(np.stack([1 - score, score], axis=1), labels, ["a", "b", "c", "d"])
    found = by_name(judge(there, None, calibration(0.9), *REPEATED, "the file is missing"))
    assert found["calibration_slope"]["found"] == {"value": None, "interval": None}
    assert "calibration_slope" in found
    assert "it takes malignant and benign lesions" in found["calibration_slope"]["sentence"]
    assert (found["sensitivity_at_threshold"]["found"]["value"] is None) == (1 not in labels)


def test_without_the_models_own_test_images_it_is_said_why():
    verdict = judge(calibrated(np.random.default_rng(0)), None, calibration(0.5), *REPEATED, "the file is missing")
    auroc = by_name(verdict)["auroc"]
    assert (auroc["status"], auroc["promised"]) == ("cannot be told", None)
    assert auroc["sentence"].endswith("that of the model's own test images is not known (the file is missing).")


def test_a_mean_over_diagnoses_is_compared_over_those_that_both_have():
    random, classes = np.random.default_rng(0), told_apart(7)

    def drawn(labels):
        odds = np.exp(random.normal(size=(len(labels), 7)))
        # The fifth diagnosis is known without a mistake: it must not count where the other dataset lacks it.
        odds[np.arange(len(labels)), labels] *= np.where(labels == 4, 1e6, 3)
        return predictions(odds / odds.sum(axis=1, keepdims=True), labels, np.arange(len(labels)).astype(str), classes)

    own, there = drawn(np.arange(700) % 7), drawn(np.arange(600) % 4)
    promise = by_name(judge(there, own, calibration(0.9), *REPEATED))["macro_auroc"]
    assert "AUROC, macro of the 4 diagnoses that both have" in promise["sentence"]
    assert abs(promise["difference"]["value"]) < 0.05
    assert promise["status"] != "broken"
