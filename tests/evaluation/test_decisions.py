from itertools import product

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_curve

from benchmarks.plain import ROOT, told_apart
from stages.classifier.calibration import cost_matrix, decide
from stages.errors import InputError
from stages.evaluation.decisions import (
    POWERS,
    decision_costs,
    net_benefit,
    predictive_values,
    read_decision,
    threshold_for_sensitivity,
    youden_threshold,
)


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


CLASSES = ("bcc", "mel", "nv")


@pytest.fixture
def costs_file(tmp_path):
    """A function that writes a file of costs and gives its path; of bytes as they are."""

    def write(text):
        path = tmp_path / "costs.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_costs_are_read_whatever_the_order_of_rows_and_columns_is(costs_file):
    expected = np.array([[0, 1, 5], [4, 0.25, 20], [1.23456, 1, 0]])
    in_order = "true,bcc,mel,nv\nbcc,0,1,5\nmel,4,0.25,20\nnv,1.234567,1,0\n"
    # As spreadsheets write it: with a mark at the start, carriage returns, and empty lines.
    shuffled = b"\xef\xbb\xbf,nv,bcc,mel\r\nnv,0,1.234567,1\r\n\r\nmel,2e1,4,.25\r\nbcc,5,0,1\r\n"
    for text in (in_order, shuffled):
        costs = read_decision(costs_file(text), CLASSES)
        assert costs.tolist() == expected.tolist()
        assert decision_costs(costs, np.eye(3), np.arange(3), np.ones(3)) is costs


def test_the_ready_file_is_of_the_diagnoses_of_ham10000():
    names = told_apart(7).names
    costs = read_decision(str(ROOT / "data/costs/ham10000.csv"), names)
    assert costs[names.index("mel"), names.index("nv")] == 20 * costs[names.index("nv"), names.index("mel")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"cannot be read .No columns.*; it must be most_probable, balanced or a CSV file of costs"),
        ("0,1,5\n4,0,20\n1,1,0\n", r"the columns are of 1, 5; they must be of bcc"),
        ("true,bcc,mel\nbcc,0,1\nmel,1,0\n", r"the columns are of bcc, mel; they must be of bcc, mel, nv"),
        ("true,bcc,mel,nv,nv\n", r"the columns are of bcc, mel, nv, nv.1; they must"),
        ("true,bcc,mel,nv\nbcc,0,1,5\nnv,1,1,0\n", r"the rows are of bcc, nv; they must"),
        ("true,bcc,mel,nv\nbcc,0,1,5\nmel,4,0,20\nmel,1,1,0\n", r"the rows are of bcc, mel, mel; they must"),
        ("t,bcc,mel,nv\nbcc,0,1,5\nmel,4,0\nnv,1,1,0\n", r"row mel, column nv is ''; it must be a number"),
        ("t,bcc,mel,nv\nbcc,0,1,5\nmel,4,0,\nnv,1,1,0\n", r"row mel, column nv is ''; it must be a number of at"),
        ("t,bcc,mel,nv\nbcc,0,-1,5\nmel,4,0,9\nnv,1,1,0\n", r"row bcc, column mel is '-1'; it must be a number"),
        ("t,bcc,mel,nv\nbcc,0,nan,5\nmel,4,0,9\nnv,1,1,0\n", r"row bcc, column mel is 'nan'; it must"),
        ("t,bcc,mel,nv\nbcc,0,1,5\nmel,1e999,0,9\nnv,1,1,0\n", r"row mel, column bcc is '1e999'; it must"),
        (
            "t,bcc,mel,nv\nbcc,0,1,5\nmel,4,3,2\nnv,1,1,0\n",
            r"row mel: the right decision costs 3 and a wrong one, nv, 2; the right one must cost less than all",
        ),
        ("t,bcc,mel,nv\nbcc,0,1,0\nmel,4,0,2\nnv,1,1,0\n", r"row bcc: the right decision costs 0 and .* nv, 0;"),
        (b"\xff\xfe", r"cannot be read .*; it must be most_probable, balanced or a CSV file of costs"),
        (None, r"evaluation.decision is '.*costs.csv', which cannot be read .*No such file"),
    ],
)
def test_a_file_that_holds_no_costs_of_these_classes_is_refused_in_one_line(costs_file, tmp_path, text, expected):
    path = str(tmp_path / "costs.csv") if text is None else costs_file(text)
    with pytest.raises(InputError, match=expected) as caught:
        read_decision(path, CLASSES)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


SHARES = np.array([0.9, 0.07, 0.03])


def classified(images: int, seed: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Posterior probabilities of three classes of very different shares, or, with a power below 1, of such as training
    has partly balanced; and labels."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(3), np.round(SHARES * images).astype(int)))
    evidence = random.normal(size=(len(labels), 3)) + 1.5 * np.eye(3)[labels]
    odds = np.exp(1.5 * evidence) * SHARES**power
    return (odds / odds.sum(axis=1, keepdims=True)).round(8), labels


def balanced_accuracy(labels: np.ndarray, decided: np.ndarray) -> float:
    """Scikit-learn's takes ten times as long."""
    return float(np.mean([(decided[labels == number] == number).mean() for number in range(3)]))


def power_of(costs: np.ndarray) -> float:
    """The power of the shares that balanced costs are of."""
    return float(-np.log(costs[2, 0] / costs[0, 1]) / np.log(SHARES[2] / SHARES[0]))


@pytest.mark.parametrize("trained", [1.0, 0.6, 0.0])
def test_a_balanced_decision_finds_the_power_with_which_the_classes_are_balanced(trained):
    probabilities, labels = classified(30_000, 0, trained)
    costs = decision_costs("balanced", probabilities, labels, 1000 * SHARES)
    assert power_of(costs) == pytest.approx(trained, abs=0.11)
    decided = (probabilities / SHARES ** power_of(costs)).argmax(axis=1)
    assert (decide(probabilities, costs) == decided).mean() > 0.999, "the costs are rounded"
    assert (costs == np.vectorize(lambda cost: float(f"{cost:.6g}"))(costs)).all(), "as calibration.json keeps them"
    if trained:
        most_probable = balanced_accuracy(labels, probabilities.argmax(axis=1))
        assert balanced_accuracy(labels, decide(probabilities, costs)) > most_probable + 0.05


def test_with_few_images_of_a_rare_class_the_choice_is_better_than_the_luckiest_power():
    population, truth = classified(20_000, 1)
    candidates = [cost_matrix(None, 3) / SHARES[:, None] ** power for power in POWERS]
    worth = [balanced_accuracy(truth, decide(population, costs)) for costs in candidates]
    ours, luckiest = [], []
    for seed in range(2, 42):
        probabilities, labels = classified(200, seed)  # 6 of the rarest class
        chosen = power_of(decision_costs("balanced", probabilities, labels, SHARES * 1000))
        ours.append(worth[round(chosen * 20)])
        here = [balanced_accuracy(labels, decide(probabilities, costs)) for costs in candidates]
        luckiest.append(worth[int(np.argmax(here))])
    lost = [max(worth) - np.mean(found) for found in (ours, luckiest)]
    assert lost[0] < 0.8 * lost[1]


def test_where_nothing_speaks_against_the_most_probable_class_it_stays():
    certain, labels = np.eye(3)[[0, 0, 1, 2]], np.array([0, 0, 1, 2])
    for rule in ("balanced", "most_probable"):
        assert (decision_costs(rule, certain, labels, np.array([90, 7, 3])) == cost_matrix(None, 3)).all()
    # A class without training or validation images has finite costs and no say.
    for counts in ([90, 7, 0], [90, 0, 0]):
        assert np.isfinite(decision_costs("balanced", *classified(200, 0), np.array(counts))).all()
    assert np.isfinite(decision_costs("balanced", certain[:3], labels[:3], np.array([90, 7, 3]))).all()
