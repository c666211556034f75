import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import HAM10000
from stages.dataset import pixels
from stages.dataset.pixels import (
    MANIFEST,
    MANIFEST_COLUMNS,
    PixelStore,
    add_places,
    create_shard,
    shard_path,
    write_manifest,
    write_pixels,
)
from stages.errors import InputError
from stages.files import write_csv


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eleven prepared images in shards of four; every pixel of an image is its number."""
    monkeypatch.setattr(pixels, "IMAGES_PER_SHARD", 4)
    columns = {name: ["x"] * 11 for name in MANIFEST_COLUMNS if name not in ("shard", "row")}
    table = pd.DataFrame(columns | {"image_id": [f"I{number}" for number in range(11)], "dx": "nv", "age": 5.0})
    manifest = add_places(table)
    write_manifest(tmp_path, manifest, HAM10000)
    for shard, rows in manifest.groupby("shard"):
        content = np.stack([np.full((16, 16, 3), number, np.uint8) for number in rows.index])
        np.save(shard_path(tmp_path, shard), content)
    return tmp_path


def test_places_fill_one_shard_after_the_other_in_the_table_s_order(folder):
    store = PixelStore(folder)
    assert list(store.manifest["shard"]) == [0] * 4 + [1] * 4 + [2] * 3
    assert list(store.manifest["row"]) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize("count", [1, 256])
def test_a_shard_is_the_file_that_numpy_would_write(tmp_path, count):
    content = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    create_shard(tmp_path / "one.npy", count, 16)
    for first in range(0, count, 100):
        write_pixels(tmp_path / "one.npy", first, content[first : first + 100])
    np.save(tmp_path / "other.npy", content)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "other.npy").read_bytes()


@pytest.mark.parametrize("indices", [[0], [10, 0, 5], [3, 4], [7, 7, 1, 7], list(range(10, -1, -1)), []])
def test_images_are_read_in_the_order_asked_for_from_any_shards(folder, indices):
    store = PixelStore(folder)
    images = store.read(np.array(indices, int))
    assert store.image_size == 16
    assert images.shape == (len(indices), 16, 16, 3)
    assert images.dtype == np.uint8
    assert [image.min() for image in images] == indices
    assert [image.max() for image in images] == indices


def test_an_image_that_is_read_can_be_changed_without_changing_the_store(folder):
    store = PixelStore(folder)
    store.read(np.array([2]))[:] = 99
    assert store.read(np.array([2])).max() == 2


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((4, 16, 16, 3), np.float32),
        np.zeros((3, 16, 16, 3), np.uint8),
        np.zeros((4, 16, 8, 3), np.uint8),
        np.zeros((4, 16, 16), np.uint8),
        np.zeros((4, 16, 16, 1), np.uint8),
        np.zeros(4, np.uint8),
        np.array(4, np.uint8),
    ],
    ids=lambda content: f"{content.dtype} {content.shape}",
)
def test_a_shard_with_other_content_is_refused_with_its_name(folder, content):
    np.save(shard_path(folder, 1), content)
    with pytest.raises(InputError) as caught:
        PixelStore(folder)
    assert str(caught.value).startswith(f"{shard_path(folder, 1)} holds {content.dtype}")
    assert "dvc repro" in str(caught.value)


def test_a_shard_of_objects_is_not_unpickled(folder):
    np.save(shard_path(folder, 1), np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"pixels-00001\.npy cannot be read"):
        PixelStore(folder)


@pytest.mark.parametrize("length", [None, 0, 50, 500])
def test_a_missing_or_cut_off_shard_is_refused_with_its_name(folder, length):
    path = shard_path(folder, 2)
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError) as caught:
        PixelStore(folder)
    assert str(caught.value).startswith(f"{path} cannot be read")


def test_a_folder_that_was_not_prepared_is_refused_with_how_to_do_it(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.csv does not exist; run `dvc repro`"):
        PixelStore(tmp_path)


def test_a_shard_in_another_order_is_refused_for_its_bytes_would_show_other_images(folder):
    path = shard_path(folder, 1)
    np.save(path, np.asfortranarray(np.load(path)))
    with pytest.raises(InputError, match=r"pixels-00001.npy holds uint8 .*one after the other"):
        PixelStore(folder)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("shard", lambda column: column[::-1], "shard and row do not count the images"),
        ("row", lambda column: column.where(column != 3, 2), "shard and row do not count the images"),
        ("shard", lambda column: column.astype(float), "shard and row do not count the images"),
        ("image_id", lambda column: column.where(column != "I3", "I2"), "an image_id is duplicated"),
        ("image_id", lambda column: column.where(column != "I3"), "an image has no image_id or lesion_id"),
        ("dx", lambda column: column.where(column.index != 3, "naevus"), "dx is not always one of akiec"),
        ("age", lambda column: column.astype(str).where(column.index != 3, "old"), "age is not always a number"),
    ],
)
def test_a_manifest_that_prepare_did_not_write_is_refused(folder, column, values, expected):
    table = PixelStore(folder).manifest
    write_csv(folder / MANIFEST, table.assign(**{column: list(values(table[column]))}))
    with pytest.raises(InputError, match=f"manifest.csv: .*{expected}.*; run `dvc repro` to regenerate it"):
        PixelStore(folder)
