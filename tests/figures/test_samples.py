import numpy as np
import pytest

from stages.dataset.pixels import PixelStore
from stages.figures.samples import draw_mistakes, draw_samples


@pytest.fixture
def store(tiny):
    return PixelStore(tiny.folder)


@pytest.fixture
def predictions(predictions_of):
    """Ten images, of which some are predicted rightly and some of either class are not."""
    predictions = predictions_of([0, 1] * 5, 2)
    predictions.table["label"] = ["malignant"] * 5 + ["benign"] * 5
    return predictions


@pytest.fixture
def judge():
    """A function that gives of metrics/details.json what is needed here."""
    return lambda threshold: {"calibration": {"threshold": threshold}}


def shown(figure):
    """The numbers of the images in a figure, which their first pixels hold, and the texts at them."""
    axes = figure.axes[0]
    texts = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in axes.texts]
    return [int(image.get_array()[0, 0, 0]) for image in axes.images], list(zip(texts[::2], texts[1::2]))


def test_samples_show_their_image_with_confidence_and_truth_from_the_most_confident_on(judge, predictions, store):
    numbers, texts = shown(draw_samples(predictions, judge(0.5), store))
    confidence = predictions.probabilities.max(axis=1)
    assert numbers == list(np.argsort(-confidence))
    verdicts = set()
    for number, (text, image_id) in zip(numbers, texts):
        guess, verdict = text.split("\n")
        truth = predictions.table["label"][number]
        assert image_id == f"I{number:03d}"
        called, malignant = predictions.classes.names[predictions.predicted[number]], predictions.malignant_probability
        assert guess == f"{called}, P {malignant[number]:.0%}".replace("%", " %")
        assert verdict == ("right" if guess.startswith(truth) else f"true: {truth}")
        verdicts.add(verdict)
    assert len(verdicts) == 3, "some right, some wrong of either class"


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_mistakes_of_two_classes_are_those_at_the_threshold(judge, predictions, store, threshold):
    predictions.table["lesion_id"] = predictions.table["image_id"]  # one of a lesion is shown
    _, texts = shown(draw_mistakes(predictions, judge(threshold), store))
    called = predictions.malignant_probability >= threshold
    assert {image_id for _, image_id in texts} == {*predictions.table["image_id"][called != predictions.is_malignant]}
    assert {text.split(",")[0] for text, _ in texts} <= {"malignant", "benign"}


def test_mistakes_are_mistakes_the_most_confident_first(judge, predictions_of, store):
    predictions = predictions_of([0, 1, 2, 3, 4, 5, 6, 0, 1, 2], 7)
    predictions.table["label"] = predictions.table["label"].to_numpy()[::-1]
    numbers, texts = shown(draw_mistakes(predictions, judge(0.5), store))
    wrong = predictions.predicted != predictions.labels
    confidence = predictions.probabilities.max(axis=1)
    assert wrong[numbers].all()
    assert numbers[0] == np.where(wrong, confidence, 0).argmax()
    assert (np.diff(confidence[numbers]) <= 0).all()
    assert all("true: " in text for text, _ in texts)


def test_images_do_not_overlap_and_stay_in_the_picture(judge, predictions, store):
    axes = draw_samples(predictions, judge(0.5), store).axes[0]
    extents = [image.get_extent() for image in axes.images]
    for left, right, bottom, top in extents:
        assert 0 < left < right < 6
        assert 0 < top < bottom < axes.get_ylim()[0]
        assert right - left == pytest.approx(bottom - top)
    assert len({(round(left, 3), round(top, 3)) for left, _, _, top in extents}) == len(extents) == 10


def test_a_model_without_mistakes_has_a_picture_that_says_so(judge, predictions_of, store, words_of):
    predictions = predictions_of([0, 1] * 5, 2)
    predictions.table["label"] = [predictions.classes.names[number] for number in predictions.predicted]
    assert "no image was mistaken" in words_of(draw_mistakes(predictions, judge(0.5), store))
