from itertools import product

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_curve

from stages.errors import InputError
from stages.evaluation.decisions import net_benefit, predictive_values, threshold_for_sensitivity, youden_threshold


def scored(seed: int, images: int = 60, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and truth."""
    random = np.random.default_rng(seed)
    truth = random.random(images) < 0.4
    truth[:2] = [False, True]
    return (random.random(images) / 2 + truth * 0.3).round(decimals), truth


@pytest.mark.parametrize("sensitivity", [0.5, 0.8, 0.9, 0.95, 1])
def test_the_threshold_is_the_highest_that_reaches_the_sensitivity(sensitivity):
    for seed in range(20):
        score, truth = scored(seed)
        reaching = [t for t in score if (score[truth] >= t).mean() >= sensitivity - 1e-12]
        assert threshold_for_sensitivity(score, truth, sensitivity) == max(reaching)


def test_a_sensitivity_that_so_many_images_give_exactly_takes_no_more_of_them():
    for count, percent in product((10, 20, 30, 70, 110, 1000), (1, 10, 55, 70, 90, 95, 100)):
        score = np.arange(count) / count
        threshold = threshold_for_sensitivity(score, np.ones(count, bool), percent / 100)
        assert (score >= threshold).sum() == -(-percent * count // 100)


def test_images_that_tie_with_the_threshold_are_found_as_well():
    score = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    assert threshold_for_sensitivity(score, np.ones(5, bool), 0.4) == 0.5


def test_however_small_a_sensitivity_takes_one_image():
    assert threshold_for_sensitivity(np.array([0.1, 0.9]), np.ones(2, bool), 1e-12) == 0.9


@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_youden_s_threshold_is_the_highest_of_the_best_in_scikit_learn_s_curve(decimals):
    for seed in range(20):
        score, truth = scored(seed, decimals=decimals)
        fpr, tpr, thresholds = roc_curve(truth, score, drop_intermediate=False)
        index = tpr - fpr
        assert youden_threshold(score, truth) == thresholds[index >= index.max() - 1e-9].max()


def test_perfect_scores_have_the_lowest_malignant_one_as_their_threshold():
    score, truth = np.array([0.1, 0.2, 0.7, 0.8]), np.array([False, False, True, True])
    assert youden_threshold(score, truth) == threshold_for_sensitivity(score, truth, 1) == 0.7


def test_images_of_one_kind_give_no_threshold():
    score = np.array([0.1, 0.9])
    for truth in (np.zeros(2, bool), np.ones(2, bool)):
        with pytest.raises(InputError, match=r"validation images are all .*; choose another split.val_fold"):
            youden_threshold(score, truth)
    with pytest.raises(InputError, match=r"no malignant lesion.*; choose another split.val_fold"):
        threshold_for_sensitivity(score, np.zeros(2, bool), 0.9)


def test_predictive_values_of_a_hand_worked_case():
    # Of 1000 images 10 are malignant: 9 are found, and 198 of 990 benign ones are called so too.
    ppv, npv = predictive_values(np.array([0.9]), np.array([0.8]), 0.01)
    assert ppv == pytest.approx([9 / 207])
    assert npv == pytest.approx([792 / 793])


def test_at_the_prevalence_of_the_images_predictive_values_are_counted():
    score, truth = scored(0)
    (tn, fp), (fn, tp) = confusion_matrix(truth, score >= 0.5)
    ppv, npv = predictive_values(np.array([tp / (tp + fn)]), np.array([tn / (tn + fp)]), truth.mean())
    assert ppv == pytest.approx([tp / (tp + fp)])
    assert npv == pytest.approx([tn / (tn + fn)])


def test_predictive_values_for_several_prevalences_stand_side_by_side():
    ppv, npv = predictive_values(np.array([[0.9], [0.5]]), np.array([[0.8], [1.0]]), np.array([0.01, 0.5]))
    assert ppv == pytest.approx(np.array([[9 / 207, 9 / 11], [1, 1]]))
    assert npv == pytest.approx(np.array([[792 / 793, 8 / 9], [990 / 995, 2 / 3]]))


@pytest.mark.parametrize(("sensitivity", "specificity", "undefined"), [(0, 1, "ppv"), (1, 0, "npv")])
def test_what_is_never_called_has_no_predictive_value(sensitivity, specificity, undefined):
    ppv, npv = predictive_values(np.array([float(sensitivity)]), np.array([float(specificity)]), 0.1)
    assert np.isnan({"ppv": ppv, "npv": npv}[undefined])
    assert np.isfinite({"ppv": npv, "npv": ppv}[undefined])


def test_net_benefit_of_a_hand_worked_case():
    # At 0.2 a needless excision costs a quarter of what a missed malignancy does: (30 − 40 / 4) / 200.
    assert net_benefit(np.array([[30.0]]), np.array([[40.0]]), np.array([[200.0]]), np.array([0.2])) == pytest.approx(
        0.1
    )


def test_treating_all_has_the_net_benefit_of_vickers_and_elkin():
    thresholds, prevalence = np.array([0.01, 0.1, 0.3, 0.8]), 0.3
    found = net_benefit(np.full((1, 4), 30.0), np.full((1, 4), 70.0), np.array([[100.0]]), thresholds)
    assert found[0] == pytest.approx(prevalence - (1 - prevalence) * thresholds / (1 - thresholds))
    assert found[0, 2] == pytest.approx(0), "at the prevalence treating all is as good as treating none"
