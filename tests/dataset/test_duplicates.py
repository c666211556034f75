import io

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from benchmarks.plain import HAM10000
from stages.dataset import duplicates
from stages.dataset.duplicates import (
    HASH,
    LARGEST_DISTANCE,
    SIDE,
    describe_search,
    hash_images,
    near_duplicates,
    near_duplicates_between,
)
from stages.dataset.pixels import PixelStore, add_places, shard_path, write_manifest

SIZE = 64
COLUMNS = ["image_id_1", "image_id_2", "split_1", "split_2", "distance"]
ALL_BITS = SIDE * SIDE
TURNS = [None, *Image.Transpose]


def photograph(number: int) -> Image.Image:
    """A mole in the middle of spotted skin: as all dermoscopic pictures, but no two are of one lesion."""
    random = np.random.default_rng(number)
    skin = np.array((225, 180, 160)) + 25 * random.normal(size=(24, 24, 1))
    picture = Image.fromarray(skin.clip(0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    (x, y), (width, height) = random.integers(-4, 4, 2) + SIZE // 2, random.integers(9, 17, 2)
    ImageDraw.Draw(picture).ellipse((x - width, y - height, x + width, y + height), (105, 65, 45))
    return picture.filter(ImageFilter.GaussianBlur(1))


def recompressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


@pytest.fixture
def store_of(tmp_path):
    """A function that prepares pictures as I000, I001 … and gives their store."""

    def make(pictures: list[Image.Image], name: str = "prepared") -> PixelStore:
        ids = [f"I{number:03d}" for number in range(len(pictures))]
        table = pd.DataFrame({"image_id": ids, "lesion_id": [f"L{image_id}" for image_id in ids]})
        manifest = add_places(
            table.assign(dx="nv", dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown")
        )
        write_manifest(tmp_path / name, manifest, HAM10000)
        for shard, rows in manifest.groupby("shard"):
            np.save(shard_path(tmp_path / name, shard), np.stack([np.asarray(pictures[row]) for row in rows.index]))
        return PixelStore(tmp_path / name)

    return make


@pytest.fixture
def lookalikes(store_of):
    """Forty pictures that resemble one another and are not the same."""
    return store_of([photograph(number) for number in range(40)])


@pytest.fixture
def dealt():
    """A function that deals n images to the splits in turn."""
    return lambda n: pd.Series([("train", "val", "test")[number % 3] for number in range(n)])


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        recompressed,
        lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
        lambda picture: ImageEnhance.Color(picture).enhance(0.5),
        lambda picture: picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (1, 1, SIZE, SIZE)),
        *(lambda picture, turn=turn: picture.transpose(turn) for turn in Image.Transpose),
        lambda picture: recompressed(
            ImageEnhance.Brightness(picture.transpose(Image.Transpose.ROTATE_90)).enhance(1.1)
        ),
    ],
    ids=["same", "recompressed", "brighter", "paler", "cropped", *(turn.name for turn in Image.Transpose), "all"],
)
def test_a_copy_in_another_split_is_found_among_lookalikes(store_of, dealt, change):
    pictures = [photograph(number) for number in range(20)]
    store = store_of([*pictures, change(pictures[6])])  # I006 is in train, its copy in test
    found = near_duplicates(store, dealt(21))
    assert found[COLUMNS[:4]].to_numpy().tolist() == [["I020", "I006", "test", "train"]]


def test_lookalikes_of_other_lesions_are_far_apart(lookalikes, dealt):
    found = near_duplicates(lookalikes, dealt(40))
    assert list(found.columns) == COLUMNS
    assert found.empty
    closest = near_duplicates(lookalikes, dealt(40), ALL_BITS)["distance"].min()
    assert closest > 1.2 * LARGEST_DISTANCE


def test_only_pairs_in_different_splits_are_listed_the_closest_first_and_the_held_out_image_before_the_other(store_of):
    one, other = photograph(0), photograph(1)
    store = store_of([one, other, recompressed(one), one, one, other])
    found = near_duplicates(store, pd.Series(["train", "test", "val", "test", "train", "train"]))
    assert found[COLUMNS[:4]].to_numpy().tolist() == [
        ["I001", "I005", "test", "train"],
        ["I003", "I000", "test", "train"],
        ["I003", "I004", "test", "train"],
        ["I002", "I000", "val", "train"],
        ["I002", "I004", "val", "train"],
        ["I003", "I002", "test", "val"],
    ]
    assert list(found["distance"][:3]) == [0, 0, 0]
    assert found["distance"][3] > 0


def test_the_largest_distance_still_counts(lookalikes, dealt):
    closest = near_duplicates(lookalikes, dealt(40), ALL_BITS).iloc[0]
    assert near_duplicates(lookalikes, dealt(40), closest["distance"] - 1).empty
    assert near_duplicates(lookalikes, dealt(40), closest["distance"]).iloc[0].equals(closest)


def test_a_distance_is_that_of_the_best_of_eight_turned_images(lookalikes):
    pictures = [Image.fromarray(pixels) for pixels in lookalikes.read(np.arange(6))]
    split = pd.Series(["val"] * 3 + ["train"] * 3 + [""] * 34)
    found = near_duplicates(lookalikes, split, ALL_BITS).set_index(["image_id_1", "image_id_2"])["distance"]
    assert len(found) == 9
    for first in range(3):
        turned = [pictures[first] if turn is None else pictures[first].transpose(turn) for turn in TURNS]
        hashes = [imagehash.phash(picture, SIDE, 2) for picture in turned]
        for second in range(3, 6):
            expected = min(one - imagehash.phash(pictures[second], SIDE, 2) for one in hashes)
            # Resizing rounds a turned image otherwise, and the median of its frequencies is not quite 0.
            assert found[f"I{first:03d}", f"I{second:03d}"] == pytest.approx(expected, abs=20)


def test_hashes_are_those_of_the_library_that_defines_them(lookalikes):
    pictures = [Image.fromarray(pixels) for pixels in lookalikes.read(np.arange(40))]
    expected = np.stack([imagehash.phash(picture, SIDE, 2).hash for picture in pictures])
    np.testing.assert_array_equal(hash_images(lookalikes), expected)


def test_distances_are_counted_bit_by_bit(lookalikes, dealt):
    hashes, odd = hash_images(lookalikes), np.arange(SIDE) % 2 == 1
    for pair in near_duplicates(lookalikes, dealt(40), ALL_BITS).sample(50, random_state=0).itertuples():
        first, second = hashes[int(pair.image_id_1[1:])], hashes[int(pair.image_id_2[1:])]
        flips = [np.zeros((SIDE, SIDE), bool), odd ^ np.zeros((SIDE, 1), bool), odd[:, None] ^ np.zeros(SIDE, bool)]
        flips.append(flips[1] ^ flips[2])
        assert pair.distance == min((turned ^ flip ^ second).sum() for turned in (first, first.T) for flip in flips)


def test_close_pairs_are_those_of_an_exhaustive_search():
    """Among random hashes, with copies that differ in more and more bits, some of them turned."""
    random = np.random.default_rng(0)
    first, second = random.random((2, 90, SIDE, SIDE)) < 0.5
    odd = np.arange(SIDE) % 2 == 1
    for number in range(60):
        copy = first[number] ^ (random.permutation(ALL_BITS).reshape(SIDE, SIDE) < 90 + number)
        copy = copy.T if number & 1 else copy
        copy = copy ^ odd if number & 2 else copy
        second[89 - number] = copy ^ odd[:, None] if number & 4 else copy
    flips = [np.zeros((SIDE, SIDE), bool), odd ^ np.zeros((SIDE, 1), bool), odd[:, None] ^ np.zeros(SIDE, bool)]
    flips.append(flips[1] ^ flips[2])
    turned = np.array([way ^ flip for flip in flips for way in (first, first.transpose(0, 2, 1))])
    distances = np.stack([(turned ^ other).sum(axis=(2, 3)).min(axis=0) for other in second], axis=1)
    for threshold in (LARGEST_DISTANCE, 140):
        rows, columns = np.nonzero(distances <= threshold)
        assert len(rows) == threshold - 89
        found = duplicates._close_pairs(duplicates._packed(first), duplicates._packed(second), threshold)
        assert sorted(zip(*found)) == sorted(zip(rows, columns, distances[rows, columns]))


def test_of_many_pairs_those_that_agree_in_a_part_are_found_turned_or_not(monkeypatch):
    """Among 300 random hashes, copies that differ in up to 59 bits, in all eight orientations."""
    random = np.random.default_rng(0)
    first, second = random.random((2, 300, SIDE, SIDE)) < 0.5
    odd = np.arange(SIDE) % 2 == 1
    for number in range(60):
        copy = first[number] ^ (random.permutation(ALL_BITS).reshape(SIDE, SIDE) < number)
        copy = copy.T if number & 1 else copy
        copy = copy ^ odd if number & 2 else copy
        second[299 - number] = copy ^ odd[:, None] if number & 4 else copy
    packed = [duplicates._packed(hashes) for hashes in (first, second)]
    expected = duplicates._close_pairs(*packed, LARGEST_DISTANCE)
    assert sorted(expected[2]) == list(range(60))
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 300 * 300 - 1)
    for at_once in (duplicates._AGREEING_AT_ONCE, 2):
        monkeypatch.setattr(duplicates, "_AGREEING_AT_ONCE", at_once)
        assert sorted(zip(*duplicates._close_pairs(*packed, LARGEST_DISTANCE))) == sorted(zip(*expected))
    # Of pairs that differ in more they are a part, and their distances are the same.
    monkeypatch.undo()
    far = set(zip(*duplicates._close_pairs(*packed, 250)))
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 300 * 300 - 1)
    found = list(zip(*duplicates._close_pairs(*packed, 250)))
    assert len(far) > len(found) == len(set(found)) > 60
    assert set(found) < far


def test_a_search_says_which_pairs_it_compared(monkeypatch):
    split = pd.Series(["test"] * 3 + ["train"] * 4)
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 12)
    assert describe_search(split) == HASH
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 11)
    assert describe_search(split).startswith(f"{HASH}, only of images that agree")


def test_many_images_that_are_all_the_same_are_each_listed_but_not_each_with_each(lookalikes, monkeypatch):
    hashes = duplicates._packed_hashes(lookalikes)
    first, second = hashes[..., [0, 1, 1, 2]], hashes[..., [1, 3, 1, 1, 0]]
    each = [(0, 4), *((row, column) for row in (1, 2) for column in (0, 2, 3))]
    assert sorted(zip(*duplicates._close_pairs(first, second, 0)[:2])) == each
    monkeypatch.setattr(duplicates, "_MOST_ALIKE", 5)
    found = duplicates._close_pairs(first, second, 0)
    assert sorted(zip(*found[:2])) == [(0, 4), (1, 0), (1, 2), (1, 3), (2, 0)]
    assert not found[2].any()


def test_neither_the_size_of_pieces_nor_the_number_of_threads_matters(lookalikes, dealt, monkeypatch):
    usual = near_duplicates(lookalikes, dealt(40), ALL_BITS)
    assert len(usual) == 13 * 13 + 2 * 13 * 14
    monkeypatch.setattr(duplicates, "_COMPARED_AT_ONCE", (3, 5))
    monkeypatch.setattr(duplicates, "_HASHED_AT_ONCE", 7)
    for threads in (1, 5):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        pd.testing.assert_frame_equal(near_duplicates(lookalikes, dealt(40), ALL_BITS), usual)


def test_a_split_may_be_empty(lookalikes):
    for name in ("train", "test"):
        assert near_duplicates(lookalikes, pd.Series([name] * 40)).empty
    assert list(near_duplicates(lookalikes, pd.Series(["train"] * 39 + ["val"]), ALL_BITS)["split_1"]) == ["val"] * 39


def test_two_datasets_prepared_at_different_sizes_are_compared_either_way(lookalikes, store_of):
    large = [photograph(number).resize((100, 100), Image.Resampling.BICUBIC) for number in range(100, 105)]
    copy = photograph(7).transpose(Image.Transpose.TRANSVERSE).resize((100, 100), Image.Resampling.BICUBIC)
    external = store_of([*large, copy], "external")
    found = near_duplicates_between(external, lookalikes)
    assert list(found.columns) == ["image_id_1", "image_id_2", "distance"]
    assert found[["image_id_1", "image_id_2"]].to_numpy().tolist() == [["I005", "I007"]]
    other_way = near_duplicates_between(lookalikes, external)
    assert other_way[["image_id_2", "image_id_1", "distance"]].to_numpy().tolist() == found.to_numpy().tolist()
