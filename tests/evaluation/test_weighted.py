import numpy as np
import pytest
from sklearn import metrics as reference

from benchmarks.plain import told_apart
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.uncertainty import combine
from stages.evaluation.weighted import (
    weighted_areas,
    weighted_metrics,
    weighted_rates,
    weighted_sensitivity_at,
    weighted_steps,
)

ONCE = np.ones((1, 200))


def random_predictions(classes: int, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties and labels that they have something to do with."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    scores = random.random((images, classes)).round(2) + 0.4 * (labels[:, None] == np.arange(classes)) + 0.01
    return scores / scores.sum(axis=1, keepdims=True), labels


def expected(probabilities, labels) -> dict:
    return compute_metrics(probabilities, labels, told_apart(probabilities.shape[1]))["metrics"]


@pytest.fixture(params=["distinct scores", "ties", "all scores the same", "perfect", "inverted", "one positive"])
def scored(request):
    """Score and truth of 200 images."""
    random = np.random.default_rng(1)
    truth = np.arange(200) == 17 if request.param == "one positive" else np.arange(200) % 3 == 0
    noise = random.random(200)
    score = {
        "ties": ((noise + truth) * 4).round() / 8,
        "all scores the same": np.full(200, 0.5),
        "perfect": truth * 0.9 + 0.05,
        "inverted": 0.95 - truth * 0.9,
    }.get(request.param, noise / 2 + truth * 0.3)
    return score, truth


@pytest.fixture
def weights():
    """How often 200 images count in 5 replicates; a third of them not at all."""
    drawn = np.random.default_rng(2).poisson(1, (5, 200)).astype(float)
    drawn[:, 17] = np.arange(1, 6)
    return drawn


@pytest.mark.parametrize("classes", [2, 7])
def test_a_weight_counts_an_image_as_often(classes, weights):
    probabilities, labels = random_predictions(classes)
    weighted = weighted_metrics(probabilities, labels, weights, told_apart(classes))
    for number, weight in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(200), weight)
        numbers = {name: combine(name, values[number]) for name, values in weighted.items()}
        assert numbers == pytest.approx(expected(probabilities[repeated], labels[repeated]))


@pytest.mark.parametrize("classes", [2, 7])
def test_a_class_that_a_replicate_lacks_is_left_out_of_its_means(classes):
    probabilities, labels = random_predictions(classes)
    weighted = weighted_metrics(probabilities, labels, (labels != 1).astype(float)[None], told_apart(classes))
    without = expected(probabilities[labels != 1], labels[labels != 1])
    for name, value in without.items():
        number = combine(name, weighted[name][0])
        assert number == (pytest.approx(value) if value is not None else pytest.approx(np.nan, nan_ok=True))


def test_where_nothing_is_predicted_malignant_there_is_no_precision():
    probabilities = np.full((4, 2), [0.9, 0.1])
    metrics = weighted_metrics(probabilities, np.array([0, 1, 0, 1]), np.ones((1, 4)), told_apart(2))
    assert np.isnan(metrics["precision"]).all()
    assert metrics["f1"] == [0]
    assert metrics["accuracy"] == combine("balanced_accuracy", metrics["balanced_accuracy"]) == [0.5]


def test_a_diagnosis_that_is_never_predicted_has_a_precision_of_0():
    probabilities = np.full((2, 7), [0.4, *[0.1] * 6])
    metrics = weighted_metrics(probabilities, np.array([0, 1]), np.ones((1, 2)), told_apart(7))
    assert metrics["macro_precision"][0, :2].tolist() == [0.5, 0]


def test_areas_agree_with_scikit_learn(scored, weights):
    score, truth = scored
    auroc, auprc = weighted_areas(score, truth, weights)
    for number, weight in enumerate(weights):
        assert auroc[number] == pytest.approx(reference.roc_auc_score(truth, score, sample_weight=weight), abs=1e-12)
        precision = reference.average_precision_score(truth, score, sample_weight=weight)
        assert auprc[number] == pytest.approx(precision, abs=1e-12)


def test_a_hand_worked_area():
    # Pairs of a positive and a negative: 0.9 beats both, 0.4 ties with one and loses to the other: (2 + ½) of 4.
    score, truth = np.array([0.9, 0.4, 0.4, 0.6]), np.array([True, True, False, False])
    auroc, auprc = weighted_areas(score, truth, np.ones((1, 4)))
    assert auroc == [2.5 / 4]
    assert auprc == pytest.approx([(1 + 2 / 4) / 2])


@pytest.mark.parametrize("kind", [True, False])
def test_images_of_one_kind_have_no_areas(kind):
    for truth, weights in (
        (np.full(4, kind), np.ones((2, 4))),
        (np.array([kind, kind, not kind, kind]), np.array([[1.0, 1, 0, 3], [2, 0, 0, 0]])),
    ):
        for area in weighted_areas(np.array([0.1, 0.2, 0.3, 0.4]), truth, weights):
            assert np.isnan(area).all()


def test_the_steps_hold_every_image_once(scored, weights):
    score, truth = scored
    positives, negatives = weighted_steps(score, truth, weights)
    assert positives.shape[1] == len(set(score))
    for place, step in enumerate(sorted(set(score), reverse=True)):
        assert np.array_equal(positives[:, place], weights[:, truth & (score == step)].sum(axis=1))
        assert np.array_equal(negatives[:, place], weights[:, ~truth & (score == step)].sum(axis=1))


def test_rates_agree_with_scikit_learn(scored, weights):
    score, truth = scored
    thresholds = np.array([2.0, 0.5, score[3], score[3], 0.3, score[17], 0.0, -1.0])  # in no order, two of them alike
    rates = weighted_rates(score, truth, thresholds, weights)
    for row, column in np.ndindex(len(weights), len(thresholds)):
        called = score >= thresholds[column]
        (tn, fp), (fn, tp) = reference.confusion_matrix(truth, called, labels=[False, True], sample_weight=weights[row])
        ratio = {"sensitivity": (tp, fn), "specificity": (tn, fp), "ppv": (tp, fp), "npv": (tn, fn)}
        wanted = {name: a / (a + b) if a + b else np.nan for name, (a, b) in ratio.items()}
        wanted |= {"true_positives": tp, "false_positives": fp}
        assert {name: values[row, column] for name, values in rates.items()} == pytest.approx(wanted, nan_ok=True)


def test_an_image_is_called_positive_from_the_threshold_on():
    score, truth = np.array([0.2, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    rates = weighted_rates(score, truth, np.array([0.4, 0.4 + 1e-9]), np.ones((1, 4)))
    assert rates["sensitivity"].tolist() == [[1, 0.5]]
    assert rates["specificity"].tolist() == [[0.5, 1]]
    assert rates["ppv"].tolist() == [[2 / 3, 1]]
    assert rates["npv"].tolist() == [[1, 2 / 3]]


LEVELS = (0, 0.5, 0.8, 0.9, 0.95, 1)


def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds(scored, weights):
    score, truth = scored
    found = weighted_sensitivity_at(LEVELS, score, truth, weights)
    thresholds = np.append(np.unique(score), np.inf)
    for row, weight in enumerate(weights):
        sensitivity, specificity = (
            np.array([weight[kind & (called(score, t))].sum() / weight[kind].sum() for t in thresholds])
            for kind, called in ((truth, np.greater_equal), (~truth, np.less))
        )
        best = [sensitivity[specificity >= level - 1e-12].max() for level in LEVELS]
        assert list(found[row]) == pytest.approx(best)


def test_specificity_at_a_sensitivity_is_the_same_of_the_benign(scored, weights):
    score, truth = scored
    found = weighted_sensitivity_at(LEVELS, -score, ~truth, weights)
    for row, weight in enumerate(weights):
        fpr, tpr, _ = reference.roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
        assert list(found[row]) == pytest.approx([1 - fpr[tpr >= level - 1e-12].min() for level in LEVELS])


def test_a_level_that_so_many_images_reach_exactly_is_reached():
    # 1 − 0.9 is 0.09999999999999998: of 10 benign images, one may be called malignant all the same.
    score, truth = np.arange(20) / 20, np.arange(20) >= 10
    score[0] = 0.725
    assert weighted_sensitivity_at([0.9], score, truth, np.ones((1, 20))) == [[1]]


def test_images_of_one_kind_have_no_sensitivity_at_a_specificity():
    for truth in (np.ones(3, bool), np.zeros(3, bool)):
        assert np.isnan(weighted_sensitivity_at(LEVELS, np.array([0.1, 0.2, 0.3]), truth, np.ones((1, 3)))).all()
