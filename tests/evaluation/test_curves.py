import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from stages.evaluation.curves import precision_recall_table, roc_table


@pytest.fixture(params=["distinct scores", "ties", "all scores the same", "perfect", "inverted"])
def scored(request):
    """Truth and score of some images."""
    random = np.random.default_rng(3)
    truth = np.arange(60) % 3 == 0
    score = {
        "distinct scores": random.random(60) / 2 + truth * 0.3,
        "ties": (random.random(60) * 4).round() / 4,
        "all scores the same": np.full(60, 0.5),
        "perfect": truth * 0.9 + 0.05,
        "inverted": 0.95 - truth * 0.9,
    }[request.param]
    return truth, score


def test_the_area_under_the_roc_curve_is_the_auroc(scored):
    table = roc_table(*scored)
    assert list(table.columns) == ["fpr", "tpr", "threshold"]
    assert auc(table["fpr"], table["tpr"]) == pytest.approx(roc_auc_score(*scored))


def test_the_roc_curve_goes_from_0_0_to_1_1_and_its_thresholds_fit_an_axis(scored):
    table = roc_table(*scored)
    assert list(table.iloc[0, :2]) == [0, 0]
    assert list(table.iloc[-1, :2]) == [1, 1]
    assert table["fpr"].is_monotonic_increasing
    assert table["tpr"].is_monotonic_increasing
    assert table["threshold"].between(0, 1).all()
    assert table["threshold"].is_monotonic_decreasing


def test_the_thresholds_are_those_that_give_the_rates():
    truth, score = np.array([False, True, False, True]), np.array([0.1, 0.4, 0.6, 0.8])
    for row in roc_table(truth, score).iloc[1:].itertuples():
        positive = score >= row.threshold
        assert row.tpr == (positive & truth).sum() / 2
        assert row.fpr == (positive & ~truth).sum() / 2


def test_the_stepwise_area_under_the_precision_recall_curve_is_the_average_precision(scored):
    table = precision_recall_table(*scored)
    assert list(table.columns) == ["recall", "precision"]
    assert table["recall"].is_monotonic_increasing
    assert list(table["recall"].iloc[[0, -1]]) == [0, 1]
    area = np.sum(np.diff(table["recall"]) * table["precision"].to_numpy()[1:])
    assert area == pytest.approx(average_precision_score(*scored))


@pytest.mark.parametrize("truth", [True, False])
def test_images_of_one_kind_have_no_roc_curve(truth):
    table = roc_table(np.full(5, truth), np.linspace(0, 1, 5))
    assert table.empty
    assert list(table.columns) == ["fpr", "tpr", "threshold"]


def test_no_positives_have_no_precision_recall_curve():
    table = precision_recall_table(np.zeros(5, bool), np.linspace(0, 1, 5))
    assert table.empty
    assert list(table.columns) == ["recall", "precision"]
