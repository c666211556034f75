import numpy as np
import pytest

from stages.evaluation.curves import precision_recall_with_band, roc_with_band
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions
from stages.figures.confusion import draw_confusion_matrix
from stages.figures.performance import draw_precision_recall, draw_roc

CURVES = {draw_roc: roc_with_band, draw_precision_recall: precision_recall_with_band}


@pytest.fixture
def draw(judge_images):
    """A function that draws a curve of predictions."""
    return lambda function, predictions: function(
        predictions, judge_images(predictions), CURVES[function](predictions, 100, 0.95)
    )


def entries(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


@pytest.mark.parametrize(("function", "key"), [(draw_roc, "auroc"), (draw_precision_recall, "auprc")])
def test_the_area_of_malignancy_is_in_the_legend_with_its_interval(predictions_of, draw, function, key):
    predictions = predictions_of([0, 1] * 20, 2)
    area = compute_metrics(predictions.probabilities, predictions.labels, predictions.classes)["metrics"][key]
    name, value, low, high = entries(draw(function, predictions))[0].replace("(", "").replace(" to ", " ").split()
    assert (name, value) == ("malignant", f"{area:.3f}")
    assert 0 < float(low) < area < float(high.strip(")")) <= 1


@pytest.mark.parametrize("function", CURVES)
def test_the_band_of_malignancy_encloses_its_curve(predictions_of, draw, function):
    axes = draw(function, predictions_of([0, 1] * 20, 2)).axes[0]
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    curve = axes.lines[0].get_xydata()
    assert box.x0 == pytest.approx(0)
    assert box.x1 == pytest.approx(1)
    assert box.y0 < np.median(curve[:, 1]) <= box.y1
    assert np.ptp(curve[:, 0]) == pytest.approx(1)


def test_the_decision_threshold_is_marked_on_the_roc_curve(judged):
    predictions, details = judged([0, 1] * 20, 2)
    axes = draw_roc(predictions, details, roc_with_band(predictions, 100, 0.95)).axes[0]
    (mark,) = [line for line in axes.lines if line.get_label() == "decision threshold 0.300"]
    called = predictions.malignant_probability >= 0.3
    sensitivity, false_alarms = (called[predictions.is_malignant].mean(), called[~predictions.is_malignant].mean())
    assert mark.get_xydata()[0] == pytest.approx([false_alarms, sensitivity], abs=1e-6)


@pytest.mark.parametrize("function", CURVES)
def test_seven_diagnoses_and_malignancy_are_told_apart(predictions_of, draw, function):
    figure = draw(function, predictions_of([*range(7)] * 3, 7))
    names = [entry.split()[0] for entry in entries(figure)]
    assert names[:8] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc", "malignant"]
    assert "(n = 3)" in entries(figure)[0]
    lines = figure.legends[0].get_lines()[:8]
    assert len({line.get_color() for line in lines}) == 8
    dashed = {name for name, line in zip(names, lines) if line.get_linestyle() == "--"}
    assert dashed == {"bkl", "df", "nv", "vasc"}, "benign diagnoses, for those who see no colours"


@pytest.mark.parametrize(
    ("function", "label", "reason"),
    [(draw_roc, 0, "one kind"), (draw_roc, 1, "one kind"), (draw_precision_recall, 0, "no image is malignant")],
)
def test_where_there_is_no_curve_the_picture_says_why(predictions_of, draw, words_of, function, label, reason):
    assert reason in words_of(draw(function, predictions_of([label] * 12, 2))).replace("\n", " ")


def matrices(figure) -> list[dict]:
    """Counts by row and column of each matrix of a figure."""
    return [
        {text.get_position()[::-1]: int(text.get_text().split("\n")[0]) for text in axes.texts} for axes in figure.axes
    ]


def test_the_confusion_matrices_have_the_true_classes_as_rows(judged, judge_images):
    predictions, _ = judged([0, 0, 0, 1], 2)
    malignant = np.array([0.1, 0.8, 0.35, 0.9])
    table = predictions.table.assign(probability_benign=1 - malignant, probability_malignant=malignant)
    predictions = Predictions(table, predictions.classes)
    figure = draw_confusion_matrix(predictions, judge_images(predictions))
    probable, decided = matrices(figure)
    assert probable == {(0, 0): 2, (0, 1): 1, (1, 0): 0, (1, 1): 1}
    assert decided == {(0, 0): 1, (0, 1): 2, (1, 0): 0, (1, 1): 1}, "from 0.3 on an image is called malignant"
    axes = figure.axes[0]
    assert axes.get_ylabel() == "true"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["benign\nn = 3", "malignant\nn = 1"]
    shares = {text.get_position()[::-1]: text.get_text().split("\n")[1] for text in axes.texts}
    assert shares[0, 1] == "33\N{NO-BREAK SPACE}%"


def test_seven_diagnoses_are_also_shown_as_benign_and_malignant(judged):
    predictions, details = judged([*range(7)] * 4, 7)
    diagnoses, decided = matrices(draw_confusion_matrix(predictions, details))
    assert len(diagnoses) == 49
    assert sum(decided[1, column] for column in (0, 1)) == 12, "akiec, bcc and mel"
