import numpy as np
import pandas as pd
import pytest
from matplotlib.transforms import Bbox

from stages.dataset.pixels import PixelStore
from stages.figures.attention import draw_gradcam


@pytest.fixture
def draw(judged, tiny):
    """A function that draws cases, of which the columns are given, and the figure's predictions."""
    predictions, details = judged([0, 1] * 20, 2)

    def call(kinds, numbers):
        cases = pd.DataFrame({"case": kinds, "image_id": [f"I{number:03d}" for number in numbers]})
        heatmaps = np.zeros((len(cases), 16, 16), np.uint8)
        heatmaps[:, 8:] = 255
        return draw_gradcam(predictions, details, cases, heatmaps, PixelStore(tiny.folder)), predictions

    return call


def test_every_case_is_shown_twice_the_second_time_with_its_heat(draw):
    numbers = [3, 5, 7, 9, 11, 13, 2]
    figure, _ = draw(["true positive"] * 5 + ["false negative", "false positive"], numbers)
    images = [image.get_array().astype(int) for image in figure.axes[0].images]
    assert len(images) == 2 * len(numbers)
    for number, plain, heated in zip(numbers, images[::2], images[1::2]):
        assert plain[0, 0, 0] == number
        assert (plain[:8] == heated[:8]).all()
        assert (plain[8:] != heated[8:]).any(axis=2).all()
    boxes = [
        Bbox.from_extents(left, top, right, bottom)
        for left, right, bottom, top in (image.get_extent() for image in figure.axes[0].images)
    ]
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes) == 1, f"image {number} and itself alone"


def test_cases_stand_below_the_heading_of_their_kind_with_truth_and_probability(draw):
    figure, predictions = draw(["true positive", "false positive"], [3, 2])
    texts = {
        text.get_text().replace("\N{NO-BREAK SPACE}", " "): text.get_position()[1] for text in figure.axes[0].texts
    }
    true_positives, false_negatives, false_positives = (
        next(y for text, y in texts.items() if text.startswith(start))
        for start in ("True positives", "False negatives", "False positives")
    )
    assert true_positives < texts["I003"] < false_negatives < false_positives < texts["I002"]
    probability = predictions.malignant_probability
    assert true_positives < texts[f"is malignant\nP(malignant) {100 * probability[3]:.0f} %"] < false_negatives
    assert false_positives < texts[f"is benign\nP(malignant) {100 * probability[2]:.0f} %"]
    assert any(text.startswith("False negatives") and text.endswith("none") for text in texts)


def test_the_picture_names_the_grid_of_its_heatmaps(draw, words_of):
    assert "heatmap of 16 × 16 cells" in words_of(draw(["true positive"], [3])[0]).replace("\n", " ")


def test_without_heatmaps_the_picture_says_so(draw, words_of):
    assert "no heatmaps" in words_of(draw([], [])[0])
