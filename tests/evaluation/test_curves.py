import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from benchmarks.plain import told_apart
from stages.evaluation.curves import (
    DECISION_THRESHOLDS,
    decision_curve_table,
    precision_recall_table,
    precision_recall_with_band,
    roc_table,
    roc_with_band,
    threshold_table,
)
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.uncertainty import replicate, score_interval


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


def test_the_curves_are_those_of_scikit_learn(scored):
    """To the last bit, and without the points that it drops."""
    fpr, tpr, threshold = roc_curve(*scored)
    expected = pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": np.minimum(threshold, 1)})
    pd.testing.assert_frame_equal(roc_table(*scored), expected, check_exact=True)
    precision, recall, _ = precision_recall_curve(*scored, drop_intermediate=True)
    expected = pd.DataFrame({"recall": recall[::-1], "precision": precision[::-1]})
    pd.testing.assert_frame_equal(precision_recall_table(*scored), expected, check_exact=True)


def test_the_roc_curve_goes_from_0_0_to_1_1_and_its_thresholds_fit_an_axis(scored):
    table = roc_table(*scored)
    assert list(table.iloc[0, :2]) == [0, 0]
    assert list(table.iloc[-1, :2]) == [1, 1]
    assert table["fpr"].is_monotonic_increasing
    assert table["tpr"].is_monotonic_increasing
    assert table["threshold"].between(0, 1).all()
    assert table["threshold"].is_monotonic_decreasing


def test_the_band_of_the_roc_curve_ends_where_all_curves_do(predictions_of):
    band = roc_with_band(predictions_of([0, 1] * 30, 2), 100, 0.95).iloc[-1]
    assert (band["fpr"], band["lower"], band["upper"]) == (1, 1, 1)


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


def predictions(truth: np.ndarray, score: np.ndarray) -> Predictions:
    """One image a lesion."""
    ids = pd.DataFrame({name: np.arange(len(truth)).astype(str) for name in ("image_id", "lesion_id")})
    labels = [told_apart(2).names[malignant] for malignant in truth.astype(int)]
    probabilities = np.stack([1 - score, score], axis=1)
    return Predictions(predictions_table(ids, "test", labels, probabilities, told_apart(2)), told_apart(2))


@pytest.mark.parametrize("with_band", [roc_with_band, precision_recall_with_band])
def test_a_band_stays_in_the_picture_and_is_nowhere_certain(scored, with_band):
    table = with_band(predictions(*scored), 100, 0.95)
    assert table["lower"].between(0, 1).all()
    assert table["upper"].between(0, 1).all()
    # All scores alike have the corners of every ROC curve only; its first and last heights are no measurement.
    inner = table[1:-1] if with_band is roc_with_band else table
    assert (inner["lower"] < inner["upper"]).all()


def test_the_band_of_a_perfect_curve_is_as_wide_as_its_lesions_are_few():
    truth = np.arange(60) % 3 == 0
    table = roc_with_band(predictions(truth, truth * 0.9 + 0.05), 100, 0.95)
    assert table["lower"].iloc[-2] == pytest.approx(19 / (19 + t.ppf(0.975, 19) ** 2))


@pytest.mark.parametrize("name", ["sensitivity", "specificity"])
def test_a_rate_at_a_threshold_has_the_interval_of_its_own_lesions(scored, name):
    truth, score = scored
    table = threshold_table(predictions(truth, score), 100, 0.95)
    kind = truth if name == "sensitivity" else ~truth
    for row in table.iloc[::10].itertuples():
        right = (score >= row.threshold) == truth

        def rate(weights, right=right):
            with np.errstate(invalid="ignore"):
                return {"rate": weights[:, kind & right].sum(axis=1) / weights[:, kind].sum(axis=1)}

        drawn = replicate(rate, np.arange(60).astype(str), 100)["rate"]
        expected = score_interval(right[kind].mean(), drawn, 0.95, kind.sum())
        assert getattr(row, name) == pytest.approx(right[kind].mean())
        bounds = [getattr(row, f"{name}_{end}") for end in ("lower", "upper")]
        assert bounds == pytest.approx([float(bound) for bound in expected])


def test_net_benefit_is_between_treating_all_benign_and_finding_all_malignant(scored):
    table = decision_curve_table(predictions(*scored), 100, 0.95)
    assert (table["lower"] <= table["model"] + 1e-9).all()
    assert (table["model"] <= table["upper"] + 1e-9).all()
    assert (table["upper"] <= 1).all()
    assert (table["lower"] < table["model"])[table["model"] < 0].all(), "it may be worse than nothing"
    assert (table["lower"] >= -DECISION_THRESHOLDS / (1 - DECISION_THRESHOLDS)).all()
    for row in table.iloc[::10].itertuples():
        truth, score = scored
        called = score >= row.threshold
        odds = row.threshold / (1 - row.threshold)
        assert row.model == pytest.approx(((called & truth).sum() - odds * (called & ~truth).sum()) / 60)
