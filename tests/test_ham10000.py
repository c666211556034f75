"""The real dataset, where it is at hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import HAM10000, PLAIN
from stages.dataset.folds import KNOWN_DUPLICATES
from stages.dataset.images import by_image_id, find_images
from stages.dataset.metadata import read_metadata
from stages.dataset.pixels import PixelStore
from stages.prepare import prepare_dataset
from stages.split import find_leaks, split_dataset


@pytest.fixture(scope="module")
def table(ham10000):
    table, problems, _ = read_metadata(ham10000, HAM10000)
    assert problems == []
    return table


def test_the_whole_table_passes_the_checks_and_each_row_has_its_image(ham10000, table):
    assert len(table) in (8_584, 10_015)
    assert set(table["dx"]) == set(HAM10000)
    images, unreadable, _ = find_images(ham10000)
    files, repeated = by_image_id(images)
    assert unreadable + repeated == []
    assert set(table["image_id"]) <= set(files)


def test_the_split_keeps_lesions_and_known_duplicates_together(table):
    split = split_dataset(table, PLAIN.split)
    no_pairs = pd.DataFrame(columns=["image_id_1", "image_id_2", "split_1", "split_2", "distance"])
    leaks = find_leaks(split, no_pairs)
    assert leaks["lesions_in_more_than_one_split"] == 0
    assert leaks["known_duplicates_apart"] == []
    assert split.groupby("lesion_id")["split"].nunique().max() == 1
    of_image = split.set_index("image_id")["split"].to_dict()
    pairs = [(first, second) for first, second in KNOWN_DUPLICATES if first in of_image and second in of_image]
    assert pairs
    assert all(of_image[first] == of_image[second] for first, second in pairs)
    shares = split.groupby(table["dx"])["fold"].value_counts(normalize=True)
    assert (shares - 1 / 7).abs().max() < 0.03


def test_a_subsample_is_prepared(ham10000, tmp_path):
    config = replace(PLAIN.data, data_dir=str(ham10000), subsample_percentage=0.05, image_size=32)
    manifest = prepare_dataset(config, tmp_path / "prepared", 2)
    assert set(manifest["dx"]) == set(HAM10000)
    assert 300 < len(manifest) < 700
    images = PixelStore(tmp_path / "prepared").read(np.arange(len(manifest)))
    assert images.shape == (len(manifest), 32, 32, 3)
    # Skin is lighter than nothing and redder than blue.
    assert images.mean() > 80
    assert images[..., 0].mean() > images[..., 2].mean()
