import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import told_apart
from stages.evaluation.labels import doubtful_labels
from stages.evaluation.predictions import Predictions, predictions_table

CLASSES = told_apart(7)


def predicted(probabilities, labels, lesions=None):
    count = len(labels)
    lesions = np.arange(count) if lesions is None else lesions
    images = pd.DataFrame({"image_id": [f"I{n}" for n in range(count)], "lesion_id": [f"L{n:04d}" for n in lesions]})
    names = [CLASSES.names[label] for label in labels]
    return Predictions(predictions_table(images, "test", names, probabilities, CLASSES), CLASSES)


def test_planted_labels_are_found_first():
    """2,000 lesions of the usual mix, of which 40 got another label; the model is as good as on real ones."""
    random = np.random.default_rng(0)
    shares = [0.03, 0.05, 0.11, 0.02, 0.11, 0.65, 0.03]
    truth = random.choice(7, 2000, p=shares)
    logits = np.log(shares) + 2.6 * (random.normal(size=(2000, 7)) + 2.6 * np.eye(7)[truth])
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert 0.8 < (probabilities.argmax(axis=1) == truth).mean() < 0.95
    planted = random.choice(2000, 40, replace=False)
    labels = truth.copy()
    labels[planted] = (truth[planted] + random.integers(1, 7, 40)) % 7
    found = doubtful_labels(predicted(probabilities, labels))
    wrong = {f"L{n:04d}" for n in planted}
    assert len(wrong & set(found["lesion_id"][:40])) >= 26
    assert len(wrong & set(found["lesion_id"])) >= 28
    assert found["margin"].is_monotonic_increasing
    assert (found["label"] != found["suggested"]).all()


def test_confidence_is_that_which_is_usual_for_a_class():
    """0.45 of a class of which the model says 0.4 at most is much; of another it is not."""
    usual = {0: [0.4, 0.0, 0, 0, 0, 0.6, 0], 1: [0, 0.9, 0, 0, 0, 0.1, 0], 5: [0, 0, 0, 0, 0, 1.0, 0]}
    rows = [usual[0]] * 10 + [usual[1]] * 10 + [usual[5]] * 10
    labels = [0] * 10 + [1] * 10 + [5] * 10
    rows += [[0.45, 0, 0, 0, 0, 0.55, 0], [0, 0.45, 0, 0, 0, 0.55, 0]]
    found = doubtful_labels(predicted(np.array(rows, float), [*labels, 5, 5]))
    assert found[["lesion_id", "label", "suggested"]].to_numpy().tolist() == [["L0030", "nv", "akiec"]]
    assert found["margin"][0] == pytest.approx(0.55 - 0.45)


def test_images_of_a_lesion_are_judged_together():
    rows = np.tile([0, 0, 0, 0, 0.1, 0.9, 0], (8, 1))
    rows[4:6] = [[0, 0, 0, 0, 0.97, 0.03, 0], [0, 0, 0, 0, 0.87, 0.13, 0]]
    rows[6:] = [[0, 0, 0, 0, 0.9, 0.1, 0]] * 2
    found = doubtful_labels(predicted(rows, [5, 5, 5, 5, 5, 5, 4, 4], [0, 0, 1, 1, 2, 2, 3, 3]))
    assert found[["lesion_id", "suggested", "image_ids"]].to_numpy().tolist() == [["L0002", "mel", "I4 I5"]]
    assert found["probability_mel"][0] == pytest.approx(0.92)


def test_of_labels_that_nothing_contradicts_none_is_listed():
    assert doubtful_labels(predicted(np.eye(7)[[0, 5, 4]], [0, 5, 4])).empty
