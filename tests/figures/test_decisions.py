import numpy as np
import pytest

from stages.evaluation.curves import decision_curve_table, threshold_table
from stages.figures.decisions import draw_decision_curve, draw_thresholds


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label().startswith(label)]
    return line.get_xydata()


def test_the_threshold_in_use_is_marked_in_the_decision_curve(judged):
    predictions, details = judged([0, 1] * 20, 2)
    curve = decision_curve_table(predictions, 100, 0.95)
    axes = draw_decision_curve(predictions, details, curve).axes[0]
    assert set(line_of(axes, "decision threshold 0.3")[:, 0]) == {0.3}
    np.testing.assert_allclose(line_of(axes, "model")[:, 1], curve["model"])
    low, high = axes.get_ylim()
    assert low < 0, "a model that does harm is seen to"
    assert curve["upper"].max() <= high


def test_a_decision_curve_can_be_read_where_one_image_in_a_hundred_is_malignant(judged, words_of):
    predictions, details = judged([1, *[0] * 124] * 2, 2)
    curve = decision_curve_table(predictions, 100, 0.95)
    figure = draw_decision_curve(predictions, details, curve)
    high = figure.axes[0].get_ylim()[1]
    assert curve["upper"].max() <= high <= max(2 * curve["upper"].max(), 0.01)
    assert "here 0.8 % of the images" in words_of(figure).replace("\n", " ")


def test_both_thresholds_are_marked_with_what_they_reach(judged, words_of):
    predictions, details = judged([0, 1] * 20, 2)
    curves = threshold_table(predictions, 100, 0.95)
    figure = draw_thresholds(predictions, details, curves)
    axes = figure.axes[0]
    for name, key, threshold in (("target", "target_sensitivity", 0.3), ("Youden", "youden", 0.45)):
        assert set(line_of(axes, name)[:, 0]) == {threshold}
        point = details["test"]["operating_points"][key]
        # The curve itself says the same at that place.
        at = np.interp(threshold, *line_of(axes, "specificity").T)
        assert at == pytest.approx(point["specificity"]["value"], abs=1e-6)
        low, high = point["sensitivity"]["interval"]
        assert f"sensitivity {point['sensitivity']['value']:.3f} ({low:.3f} to {high:.3f})" in words_of(figure)
