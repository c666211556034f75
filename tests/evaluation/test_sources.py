import numpy as np
import pandas as pd
import pytest

from stages.evaluation.sources import PROPERTIES, file_properties, tell_sources, trivial_properties

SOURCES = np.repeat(["a", "b", "c"], [90, 30, 9])
LESIONS = np.array([f"L{number // 2}" for number in range(len(SOURCES))])


def test_what_tells_the_source_is_found_and_what_does_not_is_not():
    random = np.random.default_rng(0)
    noise = random.normal(size=(len(SOURCES), 6))
    telling = np.hstack([noise, random.normal(size=(len(SOURCES), 200))])
    telling[:, 7] += 20 * (SOURCES == "b")
    told = tell_sources({"properties": noise, "features": telling}, SOURCES, LESIONS)
    assert told["sources"] == ["a", "b"], "c has fewer than ten lesions"
    assert told["chance"] == 0.5
    assert told["features"] == 1
    assert told["properties"] == pytest.approx(0.5, abs=0.15)
    assert tell_sources({"features": telling[:90]}, SOURCES[:90], LESIONS[:90]) is None


def test_images_of_a_lesion_are_not_in_two_folds():
    """Each lesion has a place of its own, which tells its source to who has seen the lesion alone."""
    places = np.random.default_rng(0).normal(size=(80, 40))
    sources, lesions = np.repeat(["a", "b"], 80), np.array([f"L{number // 4}" for number in range(160)])
    values = places[np.arange(160) // 4]
    told = tell_sources({"features": values}, sources, lesions)
    assert told["features"] < 0.75


def test_the_files_of_two_sources_differ_in_what_was_done_to_them():
    half = np.arange(120) % 2 == 0
    shape = pd.DataFrame({"width": np.where(half, 600, 400), "height": 450, "bytes": np.where(half, 60_000, 40_000)})
    compression = shape.assign(width=600, bytes=np.where(half, 60_000, 20_000))
    lesions = np.array([f"L{number}" for number in range(120)])
    for files, telling in ((shape, [0, 1]), (compression, [2])):
        properties = file_properties(files)
        assert [column for column in range(3) if np.ptp(properties[:, column]) > 1e-9] == telling
        assert tell_sources({"files": properties}, np.where(half, "a", "b"), lesions)["files"] == 1


def test_trivial_properties_are_what_they_are_called():
    size = 20
    grey = np.full((size, size, 3), 120, np.uint8)
    red, dark, sharp = grey.copy(), grey.copy(), grey.copy()
    red[..., 0] = 200
    dark[:2, :2] = dark[:2, -2:] = dark[-2:, :2] = dark[-2:, -2:] = 0
    sharp[::2] = 130
    of = [dict(zip(PROPERTIES, row)) for row in trivial_properties(np.stack([grey, red, dark, sharp]))]
    assert of[1]["red"] == 200
    assert of[1]["green"] == of[1]["blue"] == of[0]["red"] == 120
    assert of[2]["dark corners"] == 0 < of[0]["dark corners"]
    assert of[0]["sharpness"] == of[0]["contrast"] == 0 < min(of[3]["sharpness"], of[3]["contrast"])
