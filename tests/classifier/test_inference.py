import numpy as np
import pytest
import torch

from stages.classifier.inference import predict_probabilities
from stages.classifier.networks import build_network
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    built = build_network("baseline_cnn", 7, 16, dropout_rate=0.5)
    built.train()(torch.rand(8, 3, 16, 16))
    return built


@pytest.fixture(scope="module")
def images(tiny):
    return SplitImages(PixelStore(tiny.folder), "train", tiny.split, 7)


def predict(network, images, size):
    return predict_probabilities(network, Batches(images, size, CPU))


def test_every_image_has_probabilities_that_sum_to_1(network, images):
    probabilities = predict(network, images, 16)
    assert probabilities.shape == (len(images), 7)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_the_batch_size_does_not_change_them(network, images, size):
    np.testing.assert_allclose(predict(network, images, size), predict(network, images, 16), atol=1e-6)


def test_they_are_in_the_order_of_the_images_and_without_dropout(network, images):
    probabilities = predict(network.train(), images, 16)
    for row in (0, 1, 20, len(images) - 1):
        picture = as_float(torch.from_numpy(images.store.read(images.indices[row : row + 1])))
        with torch.inference_mode():
            expected = network.eval()(picture).softmax(dim=1)[0]
        np.testing.assert_allclose(probabilities[row], expected, atol=1e-6)
    assert len(np.unique(probabilities.round(9), axis=0)) == len(images)


def test_predictions_are_not_random(network, images):
    assert np.array_equal(predict(network, images, 16), predict(network, images, 16))
