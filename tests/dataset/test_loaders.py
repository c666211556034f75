import shutil

import numpy as np
import pytest
import torch

from benchmarks.plain import HAM10000, PLAIN, told_apart
from stages.dataset.augmentation import PARAMETERS_PER_IMAGE
from stages.dataset.encoding import learn_encoding
from stages.dataset.loaders import Batch, Batches, SamplingConfig, SplitImages
from stages.dataset.pixels import MANIFEST, SOURCES, PixelStore
from stages.dataset.taxonomy import numbers_of
from stages.errors import InputError
from stages.files import read_csv, write_csv, write_json

CPU = torch.device("cpu")
TRAIN = [number for number in range(70) if number % 5 > 1]
VAL = [number for number in range(70) if number % 5 == 1]


@pytest.fixture(scope="module")
def store(tiny):
    return PixelStore(tiny.folder)


@pytest.fixture
def images(store, tiny):
    return lambda split="train", classes=2: SplitImages(store, split, tiny.split, classes)


@pytest.fixture
def with_metadata(store, tiny):
    """A function that gives the images of a split, with metadata from which an image can be told."""

    def make(split="train"):
        images = SplitImages(store, split, tiny.split, 2, encoding=learn_encoding("late", store.manifest))
        images.metadata[:, 0] = images.indices
        return images

    return make


def numbers(batch):
    """Which images a batch holds."""
    return batch.images[:, 0, 0, 0].tolist()


def epoch_of(images, epoch, seed=0, size=8):
    batches = Batches(images, size, CPU, SamplingConfig(seed, PLAIN.data))
    return list(batches.of_epoch(epoch))


def order(batches):
    return [number for batch in batches for number in numbers(batch)]


def test_an_epoch_has_every_training_image_at_most_once_and_no_incomplete_batch(images):
    batches = epoch_of(images(), 0)
    assert [len(batch.images) for batch in batches] == [8] * (len(TRAIN) // 8)
    assert len(set(order(batches))) == 8 * len(batches)
    assert set(order(batches)) <= set(TRAIN)


def test_over_the_epochs_every_training_image_comes_up(images):
    seen = set().union(*(order(epoch_of(images(), epoch)) for epoch in range(4)))
    assert seen == set(TRAIN)


def same(one, other):
    """Whether two batches are."""
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_validation_has_every_image_once_in_the_split_s_order(images):
    batches = Batches(images("val"), 4, CPU)
    assert order(batches) == order(batches) == VAL
    assert [len(batch.images) for batch in batches] == [4, 4, 4, 2]
    assert len(batches) == 4
    assert all(batch.augment_params is None for batch in batches)


def test_the_order_and_the_parameters_depend_on_the_seed_and_the_epoch_alone(with_metadata):
    first = epoch_of(with_metadata(), 3, seed=5)
    again = Batches(with_metadata(), 8, CPU, SamplingConfig(5, PLAIN.data))
    list(again)  # an epoch before must not matter
    for one, other in zip(first, again.of_epoch(3), strict=True):
        assert same(one, other)
    for epoch, seed in ((2, 5), (3, 4), (5, 3)):
        different = epoch_of(with_metadata(), epoch, seed=seed)
        assert order(different) != order(first)
        assert not torch.equal(different[0].augment_params, first[0].augment_params)


def test_epochs_made_ahead_are_those_that_are_made_when_they_are_wanted(with_metadata):
    batches = Batches(with_metadata(), 8, CPU, SamplingConfig(0, PLAIN.data))
    for epoch, start in ((0, 0), (1, 4), (2, 0), (4, 0), (5, 0)):
        loop = batches.of_epoch(epoch, start)
        # As the training loop does, which knows how many there are: it never reaches what follows the last batch.
        seen = [next(loop) for _ in range(len(batches) - start)]
        for one, other in zip(seen, epoch_of(with_metadata(), epoch)[start:], strict=True):
            assert same(one, other)


def test_the_batch_size_does_not_change_the_order_nor_an_image_s_parameters(images):
    small, large = epoch_of(images(), 1, size=7), epoch_of(images(), 1, size=21)
    assert order(small) == order(large)
    assert torch.equal(
        torch.cat([batch.augment_params for batch in small]), torch.cat([batch.augment_params for batch in large])
    )


def test_every_image_is_augmented_in_its_own_way(images):
    params = torch.cat([batch.augment_params for batch in epoch_of(images(), 0)])
    assert params.shape[1] == PARAMETERS_PER_IMAGE
    assert params.dtype == torch.float32
    assert len(params.unique(dim=0)) == len(params)


@pytest.mark.parametrize("classes", [2, 7])
def test_labels_and_pixels_are_those_of_the_image(images, store, classes):
    for batches in (epoch_of(images(classes=classes), 1), Batches(images("test", classes), 3, CPU)):
        for batch in batches:
            assert batch.images.dtype == torch.uint8
            for number, picture, label in zip(numbers(batch), batch.images, batch.labels):
                assert label == numbers_of([store.manifest["dx"][number]], HAM10000, told_apart(classes))
                assert np.array_equal(picture, store.read(np.array([number]))[0])


@pytest.mark.parametrize("sampling", [None, SamplingConfig(0)])
def test_a_batch_larger_than_the_split_holds_all_of_it(images, sampling):
    batches = Batches(images(), 1000, CPU, sampling)
    assert len(batches) == 1
    assert sorted(order(batches)) == TRAIN


def test_the_table_of_a_split_has_its_images(images):
    for split, expected in (("train", TRAIN), ("val", VAL)):
        of_split = images(split)
        assert list(of_split.table["image_id"]) == [f"I{number:03d}" for number in expected]
        assert len(of_split) == len(of_split.labels) == len(expected)


def test_without_augmentation_nothing_is_drawn_and_the_order_is_the_same(images):
    plain = list(Batches(images(), 8, CPU, SamplingConfig(0)))
    assert order(plain) == order(epoch_of(images(), 0))
    assert all(batch.augment_params is None for batch in plain)


def test_balanced_batches_hold_rare_classes_as_often_as_common_ones(images):
    labels = torch.cat([batch.labels for batch in Batches(images(), 42, CPU, SamplingConfig(0))])
    assert labels.float().mean() < 0.45
    batches, drawn = Batches(images(), 42, CPU, SamplingConfig(0, balance=1.0)), []
    for epoch in range(30):
        drawn += [batch.labels for batch in batches.of_epoch(epoch)]
    assert torch.cat(drawn).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_half_the_strength_balances_half_of_the_way(images):
    share = images().labels.float().mean().item()
    batches, drawn = Batches(images(), 42, CPU, SamplingConfig(0, balance=0.5)), []
    for epoch in range(30):
        drawn += [batch.labels for batch in batches.of_epoch(epoch)]
    # Classes of sizes a and b come as √a to √b.
    odds = (share / (1 - share)) ** 0.5
    assert torch.cat(drawn).float().mean().item() == pytest.approx(odds / (1 + odds), abs=0.03)


def told_apart_by_source(tiny, folder, names, is_last):
    """The training images, of which some are of the last of several sources."""
    shutil.copytree(tiny.folder, folder)
    manifest = read_csv(folder / MANIFEST, [])
    write_csv(folder / MANIFEST, manifest.assign(dataset=np.where(is_last, names[-1], names[0])))
    write_json(folder / SOURCES, {name: {"train_only": False} for name in names})
    return SplitImages(PixelStore(folder), "train", tiny.split, 7)


@pytest.fixture
def of_two_sources(tiny, tmp_path):
    """The training images, of which all with odd numbers and the last two diagnoses are of one source."""
    is_small = (np.arange(70) % 2 == 1) & (np.arange(70) % 7 > 4)
    images = told_apart_by_source(tiny, tmp_path / "prepared", ("large", "small"), is_small)
    assert set(images.labels[images.sources == 1].tolist()) == {5, 6}
    return images


def test_classes_balanced_within_sources_leave_each_source_its_share(of_two_sources):
    images = of_two_sources
    assert images.class_counts(within_sources=True)[1, :5].sum() == 0
    assert torch.equal(images.class_counts(within_sources=False)[1], torch.bincount(images.labels))
    batches, drawn = Batches(images, 42, CPU, SamplingConfig(0, balance=1.0, within_sources=True)), []
    for epoch in range(60):
        drawn += list(batches.of_epoch(epoch))
    sources, labels = (torch.cat([getattr(batch, name) for batch in drawn]) for name in ("sources", "labels"))
    for batch in drawn[:3]:
        assert [images.sources[TRAIN.index(number)] for number in numbers(batch)] == batch.sources.tolist()
    assert sources.float().mean().item() == pytest.approx(images.sources.float().mean().item(), abs=0.03)
    for source, classes in ((0, 7), (1, 2)):
        share = torch.bincount(labels[sources == source], minlength=7)[-classes:] / (sources == source).sum()
        torch.testing.assert_close(share, torch.full((classes,), 1 / classes), atol=0.04, rtol=0)


def test_classes_that_no_source_compares_are_named(tiny, tmp_path):
    """Each source has diagnoses of its own, as have two collections of one diagnosis each; a third has none."""
    names = ("large", "none", "small")
    images = told_apart_by_source(tiny, tmp_path / "prepared", names, np.arange(70) % 7 > 4)
    last = ", ".join(images.classes.names[5:])
    with pytest.raises(InputError, match=f"has both of .* and of {last}, so .* to all"):
        images.class_counts(within_sources=True)
    assert images.class_counts(within_sources=False).shape == (3, 7)


def test_repeated_epochs_are_the_first_again(with_metadata):
    batches = Batches(with_metadata(), 8, CPU, SamplingConfig(0, PLAIN.data, repeated=True))
    first = list(batches)
    for one, other in zip(first, batches.of_epoch(7), strict=True):
        assert same(one, other)


def test_several_processes_share_the_images_of_every_step(with_metadata):
    alone = Batches(with_metadata(), 12, CPU, SamplingConfig(0, PLAIN.data))
    shares = [Batches(with_metadata(), 4, CPU, SamplingConfig(0, PLAIN.data), rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [len(alone)] * 3
    for step, parts in zip(alone, zip(*shares), strict=True):
        assert same(step, Batch._make(None if pieces[0] is None else torch.cat(pieces) for pieces in zip(*parts)))


def test_several_processes_validate_every_image_once(images):
    shares = [Batches(images("val"), 4, CPU, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(number for share in shares for number in order(share)) == VAL
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]


def test_the_images_of_a_batch_can_be_named(images):
    batches = Batches(images(), 8, CPU, SamplingConfig(3, PLAIN.data), rank=1, world_size=2)
    for number, batch in enumerate(batches.of_epoch(2)):
        assert batches.image_ids(2, number) == [f"I{image:03d}" for image in numbers(batch)]


def drop_a_row(table):
    return table[1:]


def swap_rows(table):
    return table.iloc[[1, 0, *range(2, len(table))]]


def rename_an_image(table):
    return table.replace({"image_id": {"I003": "I999"}})


@pytest.mark.parametrize("change", [drop_a_row, swap_rows, rename_an_image])
def test_a_split_of_other_images_is_refused(store, tiny, tmp_path, change):
    path = tmp_path / "split.csv"
    write_csv(path, change(read_csv(tiny.split, [])))
    with pytest.raises(InputError, match=r"split\.csv is not of the prepared images; run `dvc repro`"):
        SplitImages(store, "train", path, 2)


def test_an_unknown_split_is_refused_with_its_name(store, tiny, tmp_path):
    path = tmp_path / "split.csv"
    write_csv(path, read_csv(tiny.split, []).replace({"split": {"val": "validation"}}))
    with pytest.raises(InputError, match="unknown split 'validation'; it must be one of train, val, test"):
        SplitImages(store, "train", path, 2)


def test_a_split_without_images_is_refused_with_its_name(store, tiny, tmp_path):
    path = tmp_path / "split.csv"
    write_csv(path, read_csv(tiny.split, []).replace({"split": {"val": "train"}}))
    with pytest.raises(InputError, match=r"split\.csv has no image in the split val"):
        SplitImages(store, "val", path, 2)


def test_metadata_come_with_their_images_and_leave_order_and_augmentation_as_they_are(images, with_metadata):
    for epoch in (0, 1):
        plain, told = epoch_of(images(), epoch), epoch_of(with_metadata(), epoch)
        assert order(plain) == order(told)
        assert all(torch.equal(one.augment_params, other.augment_params) for one, other in zip(plain, told))
        of_images = [row for batch in told for row in batch.metadata[:, 0].tolist()]
        assert {row - number for row, number in zip(of_images, order(told)) if row} == {0}
    assert all(batch.metadata is None for batch in plain)


def test_other_metadata_are_lost_in_each_epoch_and_none_in_validation(with_metadata):
    first, second = (torch.cat([batch.metadata for batch in epoch_of(with_metadata(), epoch)]) for epoch in (1, 2))
    assert 0 < (first[:, 0] == 0).float().mean() < 0.5
    assert set(first[:, 0].tolist()) != set(second[:, 0].tolist())
    batches = list(Batches(with_metadata("val"), 4, CPU))
    assert [row for batch in batches for row in batch.metadata[:, 0].tolist()] == order(batches) == VAL
