import io
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.dataset.pixels import PixelStore
from stages.evaluation.cases import choose_cases
from stages.figures.attention import draw_gradcam
from stages.figures.confusion import draw_confusion_matrix
from stages.figures.style import SMALL, WIDTH, as_png, describe, new_figure, save_all
from stages.figures.training import draw_training_curves
from stages.plot import draw_pictures, draw_tables

REPOSITORY = Path(__file__).parents[2]
LABELS = {
    "two classes": (2, [0, 1] * 30),
    "none malignant": (2, [0] * 20),
    "seven classes, one absent": (7, [0, 1, 2, 4, 5, 6] * 10),
    "seven classes, one present": (7, [5] * 20),
    "one malignant image": (2, [1]),
    "twenty classes": (20, [*range(20)] * 3),
}


@pytest.fixture(params=LABELS)
def pictures(request, judged, tiny):
    """All pictures of some predictions."""
    classes, labels = LABELS[request.param]
    predictions, details = judged(labels, classes)
    store = PixelStore(tiny.folder)
    cases = choose_cases(predictions, 0.3, 4)
    heatmaps = np.full((len(cases), 16, 16), 200, np.uint8)
    epochs = np.arange(1.0, 9)
    curves = ("train_loss", "val_loss", "val_calibrated_loss", "val_acc", "learning_rate")
    history = pd.DataFrame(dict.fromkeys(curves, epochs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_pictures(predictions, details, draw_tables(predictions, details), store)
        return drawn | {
            "gradcam": draw_gradcam(predictions, details, cases, heatmaps, store),
            "training_curves": draw_training_curves(
                history.assign(epoch=range(1, 9)), details, {"epochs": [7], "validation_folds": []}
            ),
        }


def test_pictures_of_any_predictions_can_be_read_on_a_phone(pictures, texts_of):
    """Titled, with n, as wide as they should be, no text small, cut off or over another."""
    for name, figure in pictures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            texts = texts_of(figure)
        assert figure.texts[0].get_weight() == "bold"
        assert any("n = " in text.get_text() for text in texts), name
        assert figure.get_figwidth() == WIDTH
        assert min(text.get_size() for text in texts) >= SMALL, name
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
        for text, box in boxes:
            assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= 0, (name, text)
        for (text, box), (other, another) in itertools.combinations(boxes, 2):
            assert not box.padded(-2).overlaps(another.padded(-2)), (name, text, other)


def test_a_title_takes_no_room_from_the_axes():
    figure, axes = new_figure(3)
    figure.draw_without_rendering()
    before = axes.get_window_extent().height
    describe(figure, "Title", "a long explanation " * 30)
    figure.draw_without_rendering()
    assert axes.get_window_extent().height == pytest.approx(before, abs=1)


def test_the_same_figure_gives_the_same_bytes_without_a_date_or_a_version(judged, tmp_path):
    one, again = (as_png(draw_confusion_matrix(*judged([0, 1] * 10, 2))) for _ in range(2))
    assert one == again
    with Image.open(io.BytesIO(one)) as picture:
        assert set(picture.info) <= {"dpi"}
        assert picture.width == 900
        assert picture.convert("L").getextrema() == (0, 255), "neither empty nor without background"


def test_pictures_that_are_drawn_side_by_side_are_those_that_are_drawn_alone(tmp_path):
    pictures = {}
    for name in ("one", "two", "three"):
        pictures[name], axes = new_figure(3)
        axes.set_title(name)
    save_all(pictures, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "three.png", "two.png"]
    for name, figure in pictures.items():
        assert (tmp_path / f"{name}.png").read_bytes() == as_png(figure)


def test_a_user_s_matplotlibrc_does_not_change_a_picture(tmp_path):
    drawing = (
        "figure, axes = new_figure(3); axes.plot([1, 2]); describe(figure, 'Title', 'n = 2'); png = as_png(figure)"
    )
    here = {"new_figure": new_figure, "describe": describe, "as_png": as_png}
    exec(drawing, here)
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\nsavefig.dpi: 40\nlines.linewidth: 9\n")
    program = (
        "from pathlib import Path; from stages.figures.style import as_png, describe, new_figure;"
        "import matplotlib as mpl;"
        f"assert Path(mpl.matplotlib_fname()).resolve().parent == Path.cwd(); {drawing};"
        "Path('there.png').write_bytes(png)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MATPLOTLIBRC"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / "there.png").read_bytes() == here["png"]
