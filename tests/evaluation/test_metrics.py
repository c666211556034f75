import json

import numpy as np
import pytest
from sklearn import metrics as reference

from benchmarks.plain import told_apart
from stages.evaluation.metrics import compute_metrics

MALIGNANT = [0, 1, 4]  # akiec, bcc and mel among the seven diagnoses
KEYS = ("sensitivity", "specificity", "precision", "f1", "auroc", "auprc")


def random_predictions(classes, images=200, seed=0, ties=False):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, images - classes)])
    scores = random.random((images, classes))
    scores[np.arange(images), labels] += 0.4
    if ties:
        scores = np.round(scores * 3) + 1
    return scores / scores.sum(axis=1, keepdims=True), labels


def expected_of_class(probabilities, labels, number):
    """What scikit-learn says of one class against the rest."""
    truth, guess = labels == number, probabilities.argmax(axis=1) == number
    (true_negative, false_positive), _ = reference.confusion_matrix(truth, guess, labels=[False, True])
    return {
        "sensitivity": reference.recall_score(truth, guess),
        "specificity": true_negative / (true_negative + false_positive),
        "precision": reference.precision_score(truth, guess, zero_division=0),
        "f1": reference.f1_score(truth, guess, zero_division=0),
        "auroc": reference.roc_auc_score(truth, probabilities[:, number]),
        "auprc": reference.average_precision_score(truth, probabilities[:, number]),
    }


def metrics_of(probabilities, labels):
    return compute_metrics(probabilities, labels, told_apart(probabilities.shape[1]))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("classes", [2, 7])
def test_metrics_agree_with_scikit_learn(classes, seed, ties):
    probabilities, labels = random_predictions(classes, seed=seed, ties=ties)
    guess = probabilities.argmax(axis=1)
    result = metrics_of(probabilities, labels)
    numbers = result["metrics"]
    assert numbers["accuracy"] == pytest.approx(reference.accuracy_score(labels, guess))
    assert numbers["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, guess))
    assert result["confusion_matrix"] == reference.confusion_matrix(labels, guess).tolist()
    each = [expected_of_class(probabilities, labels, number) for number in range(classes)]
    if classes == 2:
        assert {key: numbers[key] for key in KEYS} == pytest.approx(each[1])
        assert "classes" not in result
        assert len(numbers) == 8
        return
    for name, expected in zip(told_apart(7).names, each):
        assert result["classes"][name] == pytest.approx(expected), name
    for key in KEYS:
        assert numbers[f"macro_{key}"] == pytest.approx(np.mean([expected[key] for expected in each])), key
    score = probabilities[:, MALIGNANT].sum(axis=1)
    assert numbers["malignant_auroc"] == pytest.approx(reference.roc_auc_score(np.isin(labels, MALIGNANT), score))
    assert len(numbers) == 9


@pytest.mark.parametrize("classes", [2, 7])
def test_perfect_predictions_have_1_everywhere(classes):
    labels = np.arange(classes).repeat(3)
    result = metrics_of(np.eye(classes)[labels], labels)
    assert set(result["metrics"].values()) == {1.0}
    assert result["confusion_matrix"] == (3 * np.eye(classes, dtype=int)).tolist()


def test_inverted_predictions_have_0():
    labels = np.array([0, 1, 0, 1])
    numbers = metrics_of(np.eye(2)[1 - labels], labels)["metrics"]
    assert {name for name, value in numbers.items() if value} == {"auprc"}


def test_the_rows_of_the_confusion_matrix_are_the_true_classes():
    result = metrics_of(np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]]), np.array([0, 0, 0]))
    assert result["confusion_matrix"] == [[1, 2], [0, 0]]


def test_confidence_that_differs_far_behind_the_point_still_ranks():
    probability = 1 - np.array([1e-9, 2e-9, 3e-9, 4e-9])
    scores = np.stack([1 - probability, probability], axis=1)
    assert metrics_of(scores, np.array([1, 1, 0, 0]))["metrics"]["auroc"] == 1
    assert metrics_of(scores, np.array([0, 0, 1, 1]))["metrics"]["auroc"] == 0


@pytest.mark.parametrize("absent", [0, 4, 5])
def test_a_class_without_images_has_no_metrics_and_is_left_out_of_the_means(absent):
    probabilities, labels = random_predictions(7)
    probabilities, labels = probabilities[labels != absent], labels[labels != absent]
    result = metrics_of(probabilities, labels)
    name = told_apart(7).names[absent]
    assert result["classes"][name] == dict.fromkeys(KEYS)
    present = [expected_of_class(probabilities, labels, number) for number in range(7) if number != absent]
    for key in KEYS:
        assert result["metrics"][f"macro_{key}"] == pytest.approx(np.mean([expected[key] for expected in present]))
    assert result["metrics"]["balanced_accuracy"] == pytest.approx(np.mean([each["sensitivity"] for each in present]))
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("label", "unknown"), [(1, {"specificity", "auroc", "auprc"}), (0, set(KEYS))])
def test_two_classes_of_which_one_is_absent_have_the_metrics_that_can_be_known(label, unknown):
    probabilities, _ = random_predictions(2, images=20)
    result = metrics_of(probabilities, np.full(20, label))
    assert {name for name, value in result["metrics"].items() if value is None} == unknown
    assert result["metrics"]["balanced_accuracy"] == result["metrics"]["accuracy"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("label", [0, 1])
def test_a_single_image_has_an_accuracy_and_no_ranking(classes, label):
    result = metrics_of(np.eye(classes)[[label]], np.array([label]))
    assert result["metrics"]["accuracy"] == result["metrics"]["balanced_accuracy"] == 1
    ranking = [value for name, value in result["metrics"].items() if "auroc" in name or "auprc" in name]
    assert set(ranking) == {None}
    json.dumps(result, allow_nan=False)


def test_only_benign_diagnoses_have_no_malignant_auroc():
    probabilities, labels = random_predictions(7)
    benign = ~np.isin(labels, MALIGNANT)
    assert metrics_of(probabilities[benign], labels[benign])["metrics"]["malignant_auroc"] is None
