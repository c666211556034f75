import copy

import numpy as np
import pytest
import torch

from stages.classifier.calibration import Calibration
from stages.classifier.inference import dihedral_views, predict_calibrated, predict_probabilities
from stages.classifier.networks import build_network
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError

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


def predict(network, images, size, test_time_augmentation=False):
    batches = (batch.images for batch in Batches(images, size, CPU))
    return predict_probabilities(network, batches, CPU, test_time_augmentation)


@pytest.fixture
def pictures():
    """5 images without any symmetry."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("test_time_augmentation", [False, True])
def test_every_image_has_probabilities_that_sum_to_1(network, images, test_time_augmentation):
    probabilities = predict(network, images, 16, test_time_augmentation)
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


@pytest.mark.parametrize("test_time_augmentation", [False, True])
def test_predictions_are_not_random(network, images, test_time_augmentation):
    first, second = (predict(network, images, 16, test_time_augmentation) for _ in range(2))
    assert np.array_equal(first, second)


def orientations(image: np.ndarray) -> list[np.ndarray]:
    """An image of shape (size, size, 3) and its seven other flips and quarter turns, by their coordinates."""
    columns = image.swapaxes(0, 1)
    return [each[::down, ::right] for each in (image, columns) for down in (1, -1) for right in (1, -1)]


def test_the_views_are_the_eight_orientations_of_an_image(pictures):
    views = [view.permute(0, 2, 3, 1).numpy() for view in dihedral_views(pictures.permute(0, 3, 1, 2))]
    assert np.array_equal(views[0], pictures.numpy())
    for number, picture in enumerate(pictures.numpy()):
        assert {view[number].tobytes() for view in views} == {each.tobytes() for each in orientations(picture)}
        assert len({view[number].tobytes() for view in views}) == 8


def test_test_time_augmentation_gives_the_mean_over_the_views(network, pictures):
    found = predict_probabilities(network, [pictures], CPU, True)
    for number, picture in enumerate(pictures.numpy()):
        each = [torch.from_numpy(np.ascontiguousarray(view))[None] for view in orientations(picture)]
        alone = np.concatenate([predict_probabilities(network, [view], CPU, False) for view in each])
        assert np.ptp(alone, axis=0).max() > 1e-4, "the network tells the views apart"
        np.testing.assert_allclose(found[number], alone.mean(axis=0), atol=1e-6)


def test_with_test_time_augmentation_an_image_has_the_same_probabilities_however_it_is_turned(network, pictures):
    turned = [np.ascontiguousarray(view) for view in orientations(pictures[0].numpy())]
    found = predict_probabilities(network, [torch.from_numpy(np.stack(turned))], CPU, True)
    np.testing.assert_allclose(found, found[:1].repeat(8, axis=0), atol=1e-6)
    apart = predict_probabilities(network, [torch.from_numpy(np.stack(turned))], CPU, False)
    assert np.ptp(apart, axis=0).max() > 1e-4


@pytest.mark.parametrize("test_time_augmentation", [False, True])
def test_calibrated_probabilities_are_scaled_by_the_temperature(network, pictures, test_time_augmentation):
    calibration = Calibration(test_time_augmentation, 2.0, 0.5, 0.9, 0.5)
    found = predict_calibrated(network, [pictures[:2], pictures[2:]], CPU, calibration)
    root = predict_probabilities(network, [pictures], CPU, test_time_augmentation) ** 0.5
    np.testing.assert_allclose(found, root / root.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_network_that_diverged_is_refused_with_the_image_and_what_to_do(network, pictures):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.backbone.classifier.bias[3] = torch.nan
    with pytest.raises(InputError, match=r"output for image 1 of 5 is not a number.* training.learning_rate"):
        predict_probabilities(broken, [pictures], CPU, False)
