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


def shown(figure):
    """The numbers of the images in a figure, which their first pixels hold, and the texts at them."""
    axes = figure.axes[0]
    texts = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in axes.texts]
    return [int(image.get_array()[0, 0, 0]) for image in axes.images], list(zip(texts[::2], texts[1::2]))


def test_samples_show_their_image_with_confidence_and_truth_from_the_most_confident_on(predictions, store):
    numbers, texts = shown(draw_samples(predictions, store))
    confidence = predictions.probabilities.max(axis=1)
    assert numbers == list(np.argsort(-confidence))
    verdicts = set()
    for number, (text, image_id) in zip(numbers, texts):
        guess, verdict = text.split("\n")
        truth = predictions.table["label"][number]
        assert image_id == f"I{number:03d}"
        assert guess == f"{predictions.classes.names[predictions.predicted[number]]} {confidence[number]:.0%}".replace(
            "%", " %"
        )
        assert verdict == ("right" if guess.startswith(truth) else f"true: {truth}")
        verdicts.add(verdict)
    assert len(verdicts) == 3, "some right, some wrong of either class"


def test_mistakes_are_mistakes_the_most_confident_first(predictions, store):
    numbers, texts = shown(draw_mistakes(predictions, store))
    wrong = predictions.predicted != predictions.labels
    confidence = predictions.probabilities.max(axis=1)
    assert wrong[numbers].all()
    assert numbers[0] == np.where(wrong, confidence, 0).argmax()
    assert (np.diff(confidence[numbers]) <= 0).all()
    assert all("true: " in text for text, _ in texts)


def test_images_do_not_overlap_and_stay_in_the_picture(predictions, store):
    axes = draw_samples(predictions, store).axes[0]
    extents = [image.get_extent() for image in axes.images]
    for left, right, bottom, top in extents:
        assert 0 < left < right < 6
        assert 0 < top < bottom < axes.get_ylim()[0]
        assert right - left == pytest.approx(bottom - top)
    assert len({(round(left, 3), round(top, 3)) for left, _, _, top in extents}) == len(extents) == 10


def test_a_model_without_mistakes_has_a_picture_that_says_so(predictions_of, store, words_of):
    predictions = predictions_of([0, 1] * 5, 2)
    predictions.table["label"] = [predictions.classes.names[number] for number in predictions.predicted]
    assert "no image was mistaken" in words_of(draw_mistakes(predictions, store))
