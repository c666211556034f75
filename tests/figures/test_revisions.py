import itertools

import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import told_apart
from stages.figures.confusion import draw_changed_confusion
from stages.figures.revisions import draw_curves
from stages.figures.style import SMALL, WIDTH

CURVES = {
    "roc": ["fpr", "tpr"],
    "precision_recall": ["recall", "precision"],
    "reliability": ["predicted", "observed"],
}


@pytest.mark.parametrize("name", CURVES)
def test_both_curves_are_drawn_and_named_whatever_a_branch_is_called(name, words_of):
    x, y = CURVES[name]
    rising = np.linspace(0, 1, 5)
    table = pd.DataFrame({x: rising, y: rising, "lower": 0.0, "upper": 1.0})
    figure = draw_curves(name, {"base: $x_$": table, "new: 50%": table.assign(**{y: rising**2})}, 0.95)
    words = words_of(figure)
    assert figure.get_figwidth() == WIDTH
    assert "95 % intervals" in words
    assert "base: $x_$" in words
    assert "new: 50%" in words
    drawn = [line for line in figure.axes[0].lines if line.get_linestyle() in ("-", "--")]
    assert [line.get_ydata()[2] for line in drawn] == [0.5, 0.25]


def test_bins_that_only_the_other_calibration_has_are_left_out():
    table = pd.DataFrame({name: [0.2, np.nan] for name in ("predicted", "observed", "lower", "upper")})
    figure = draw_curves("reliability", {"base: a": table, "new: b": table}, 0.95)
    assert all(len(line.get_xdata()) == 1 for line in figure.axes[0].lines if line.get_marker() == "o")


def test_the_confusion_matrix_counts_both_revisions(texts_of):
    base = pd.DataFrame({"actual": ["benign"] * 4, "predicted": ["benign"] * 3 + ["malignant"]})
    new = base.assign(predicted="benign")
    figure = draw_changed_confusion(base, new, ["benign", "malignant"])
    texts = [text.get_text() for text in texts_of(figure)]
    assert any(text.startswith("3 → 4\n75") for text in texts)
    assert any(text.startswith("1 → 0\n25") for text in texts)
    gain = figure.axes[0].images[0].get_array()
    # What is right and got more, and what is wrong and got less, is better.
    np.testing.assert_allclose(gain, [[0.25, 0.25], [0, 0]])
    assert min(text.get_size() for text in texts_of(figure)) >= SMALL


def test_the_confusion_matrix_of_twenty_classes_writes_the_larger_changes(texts_of):
    classes = list(told_apart(20).names)
    base = pd.DataFrame({"actual": np.repeat(classes, 20), "predicted": classes * 20})
    new = base.assign(predicted=base["predicted"].where(base.index > 3, classes[0]))
    figure = draw_changed_confusion(base, new, classes)
    texts = texts_of(figure)
    assert {text.get_text() for text in texts} >= {"5", "15", *classes}
    assert min(text.get_size() for text in texts) >= SMALL
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.padded(-2).overlaps(other.padded(-2)) for one, other in itertools.combinations(boxes, 2))
