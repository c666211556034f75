import numpy as np

from stages.figures.overlay import overlay

SKIN = np.full((8, 32, 3), (220, 170, 150), np.uint8)


def test_where_nothing_is_hot_the_image_stays():
    result = overlay(SKIN, np.array([[0, 0, 255, 255]], np.uint8))  # enlarged, and blended between two cells
    assert (result[:, :12] == SKIN[:, :12]).all()
    assert (result[:, 16:] != SKIN[:, 16:]).any(axis=2).all()


def test_the_hotter_the_further_from_the_images_own_colour():
    distances = [
        np.linalg.norm(overlay(SKIN, np.full((8, 32), heat, np.uint8)).astype(float) - SKIN, axis=2).mean()
        for heat in (0, 16, 64, 128, 255)
    ]
    assert (np.diff(distances) > 4).all()
    assert distances[-1] > 60


def test_the_lesion_still_shows_where_it_is_hottest():
    image = SKIN.copy()
    image[2:6, 8:24] = (90, 50, 40)
    result = overlay(image, np.full((8, 32), 255, np.uint8)).astype(int)
    assert result.shape == image.shape
    assert np.abs(result[4, 16] - result[0, 0]).max() > 40
