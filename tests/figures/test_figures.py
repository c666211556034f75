import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.dataset.pixels import PixelStore
from stages.evaluation.metrics import compute_metrics
from stages.figures.performance import draw_confusion_matrix, draw_precision_recall, draw_roc
from stages.figures.samples import draw_samples
from stages.figures.style import save
from stages.figures.training import draw_training_curves

REPOSITORY = Path(__file__).parents[2]
LABELS = {
    "two classes": (2, [0, 1] * 10),
    "two classes, none malignant": (2, [0] * 20),
    "two classes, all malignant": (2, [1] * 20),
    "seven classes": (7, list(range(7)) * 3),
    "seven classes, one absent": (7, [0, 1, 2, 4, 5, 6] * 3),
    "seven classes, one present": (7, [5] * 20),
    "one image": (2, [1]),
}
CURVES, OTHERS = [draw_roc, draw_precision_recall], [draw_confusion_matrix, draw_samples]
CASES = [(drawing, name) for drawing in CURVES for name in LABELS]
CASES += [(drawing, name) for drawing in OTHERS for name in ("two classes", "seven classes, one absent", "one image")]


@pytest.fixture
def draw(tiny):
    """A function that calls a drawing function with what it needs."""

    def call(function, predictions):
        return function(predictions, PixelStore(tiny.folder)) if function is draw_samples else function(predictions)

    return call


def history(epochs):
    rate = np.linspace(1, 0.1, epochs)
    losses = {"train_loss": rate, "val_loss": rate[::-1] + 0.1, "val_acc": 1 - rate / 2, "learning_rate": rate * 1e-3}
    return pd.DataFrame({"epoch": range(1, epochs + 1), **losses})


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 600
        assert picture.height >= 400
        assert picture.convert("L").getextrema() == (0, 255), "neither empty nor without background"


@pytest.mark.parametrize(("function", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_picture_is_drawn_of_any_predictions_without_a_warning(predictions_of, draw, function, name, tmp_path):
    classes, labels = LABELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(draw(function, predictions_of(labels, classes)), tmp_path / "one.png")
    assert_picture(tmp_path / "one.png")


@pytest.mark.parametrize("epochs", [1, 30])
def test_training_is_drawn_of_any_number_of_epochs(tmp_path, epochs):
    save(draw_training_curves(history(epochs)), tmp_path / "one.png")
    assert_picture(tmp_path / "one.png")


def test_the_same_figure_gives_the_same_bytes_without_a_date_or_a_version(predictions_of, tmp_path):
    for name in ("one.png", "again.png"):
        save(draw_confusion_matrix(predictions_of([0, 1] * 10, 2)), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert set(picture.info) <= {"dpi"}


def test_training_names_the_epoch_that_was_kept():
    course = history(5)
    course["val_loss"] = [0.9, 0.5, 0.7, 0.4, float("nan")]
    assert "epoch 4 of 5 was kept" in draw_training_curves(course).axes[0].get_title()


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]


def test_the_confusion_matrix_shows_the_counts_with_the_true_classes_as_rows(predictions_of):
    predictions = predictions_of([0, 0, 0, 1], 2)
    predictions.table["probability_benign"] = [0.9, 0.2, 0.3, 0.1]
    predictions.table["probability_malignant"] = [0.1, 0.8, 0.7, 0.9]
    axes = draw_confusion_matrix(predictions).axes[0]
    cells = {text.get_position()[::-1]: text.get_text().split("\n")[0] for text in axes.texts}
    assert cells == {(0, 0): "1", (0, 1): "2", (1, 0): "0", (1, 1): "1"}
    assert axes.get_ylabel() == "true"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["benign", "malignant"]


def test_the_curves_have_their_areas_in_the_legend(predictions_of):
    predictions = predictions_of([0, 1] * 20, 2)
    metrics = compute_metrics(predictions.probabilities, predictions.labels)["metrics"]
    for function, key in ((draw_roc, "auroc"), (draw_precision_recall, "auprc")):
        (entry,) = function(predictions).axes[0].get_legend().get_texts()
        assert entry.get_text() == f"malignant {metrics[key]:.3f} (n = 20)"


def test_seven_diagnoses_and_malignancy_are_told_apart_in_the_curves(predictions_of):
    for function in (draw_roc, draw_precision_recall):
        axes = function(predictions_of(list(range(7)) * 3, 7)).axes[0]
        names = [text.get_text().split()[0] for text in axes.get_legend().get_texts()]
        assert names == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc", "malignant"]
        styles = {(line.get_color(), line.get_linestyle()) for line in axes.get_legend().get_lines()}
        assert len(styles) == 8


def test_samples_show_the_pixels_of_their_image_and_whether_the_prediction_is_right(predictions_of, tiny):
    store = PixelStore(tiny.folder)
    predictions = predictions_of([0, 1] * 5, 2)
    predictions.table["label"] = ["malignant"] * 5 + ["benign"] * 5
    confidence = predictions.probabilities.max(axis=1)
    verdicts = set()
    figure = draw_samples(predictions, store)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 10
    for axes, row in zip(shown, np.argsort(-confidence)):
        assert axes.images[0].get_array()[0, 0, 0] == row, "the first pixel is the number of the image"
        right = predictions.probabilities[row].argmax() == predictions.labels[row]
        verdict = axes.get_title().split("\n")[1]
        assert verdict == "right" if right else verdict.endswith(predictions.table["label"][row])
        verdicts.add(verdict)
    assert len(verdicts) == 3, "some right, some wrong of either class"


def test_a_user_s_matplotlibrc_does_not_change_a_picture(predictions_of, tmp_path):
    save(draw_roc(predictions_of([0, 1] * 10, 2)), tmp_path / "here.png")
    predictions_of([0, 1] * 10, 2).table.to_csv(tmp_path / "predictions.csv", index=False)
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\nsavefig.dpi: 40\nlines.linewidth: 9\n")
    program = (
        "from pathlib import Path; from stages.evaluation.predictions import read_predictions;"
        "from stages.figures.performance import draw_roc; from stages.figures.style import save;"
        "import matplotlib as mpl; assert Path(mpl.matplotlib_fname()).resolve().parent == Path.cwd();"
        "save(draw_roc(read_predictions(Path('predictions.csv'))), Path('there.png'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MATPLOTLIBRC"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert mpl.rcParams["savefig.dpi"] == 150
