"""Near-duplicates: pairs of images that are one photograph, found by a perceptual hash, whichever way they are turned.

A bit of the hash says whether one of the lowest frequencies of an image's cosine transform lies above their median.
Mirroring an image changes only the sign of its odd frequencies, and the median is nearly 0: their bits flip. A quarter
turn is a mirror and a transposition, and transposing an image transposes its hash. So one hash per image serves all
eight orientations: measured on HAM10000, it differs from the hash of the turned image in 10 of 576 bits (median).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dct

from stages.dataset.folds import SPLITS
from stages.dataset.pixels import PixelStore
from stages.forks import forked_processes

SIDE = 24
HASH = f"phash, {SIDE}×{SIDE} bits"
# Near-duplicates differ in at most this many bits, unrelated images in about half of the 576. On 8,584 images of
# HAM10000 (112 px; 64 and 224 px give nearly the same), in all eight orientations:
# - all of 200 turned copies are found that were recompressed (JPEG, quality 75), brightened by 25 % or cropped by 2 %,
#   half of those cropped by 5 %, hardly one cropped by 10 %;
# - of the pairs of one lesion, 115 are found; the eye takes nearly 30 more, up to 168 bits, for one photograph;
# - of 12 known duplicates, one is a copy and found, one is a cropped copy (128 bits), and ten are new photographs of a
#   lesion (above 200 bits), which no hash of a whole image recognises;
# - of 36.8 million pairs of other lesions none is found. The first has 124 bits; up to 144 there are 12, up to 168 142,
#   none of them a copy: small moles on bare skin have little to distinguish them.
# To find as many pairs of one lesion, phash of 16×16 bits takes 5 wrong ones, other hashes of 16×16 bits over 10,000,
# those of 8×8 bits thousands.
LARGEST_DISTANCE = 120

_MOST_ALIKE = 10_000  # pairs between two sets of images of one hash each, as blank ones are, that are listed all
_HASHED_AT_ONCE = 64  # images
_COMPARED_AT_ONCE = 64, 1024  # images of either side: what a thread works on stays in its core's cache


def near_duplicates(
    store: PixelStore, split: pd.Series, threshold: int = LARGEST_DISTANCE, names: Sequence[str] = SPLITS
) -> pd.DataFrame:
    """The pairs of images in different splits, or datasets, that look the same, whichever way they are turned.

    A core compares 30 million pairs per second: seconds for HAM10000's 17 million. Memory grows with the images, by 400
    bytes each, and with the pairs that are found. Of two large sets whose images have the same hash, each image is
    listed with the first one of the other set only.

    Args:
        store: the prepared images.
        split: the split of each image, in the order of the store's manifest.
        threshold: the largest number of differing bits, of SIDE².
        names: the splits, or what else `split` names.

    Returns:
        Columns image_id_1, image_id_2, split_1, split_2 and distance, the closest first. Of two splits, the one that is
        held out from the other comes first: test before val before train.
    """
    ids, hashes = store.manifest["image_id"].to_numpy(), _hashes_of(store)
    members = {name: np.flatnonzero(split.to_numpy() == name) for name in names}
    tables = []
    for first, second in combinations(reversed(names), 2):
        one, other = members[first], members[second]
        pairs = _pairs_table(ids[one], ids[other], hashes[..., one], hashes[..., other], threshold)
        tables.append(pairs.assign(split_1=first, split_2=second))
    columns = ["image_id_1", "image_id_2", "split_1", "split_2", "distance"]
    return _sorted(pd.concat(tables)).loc[:, columns]


def near_duplicates_between(first: PixelStore, second: PixelStore, threshold: int = LARGEST_DISTANCE) -> pd.DataFrame:
    """The pairs of an image of one store and an image of another that look the same, whichever way they are turned.

    Returns:
        Columns image_id_1, image_id_2 and distance, as of `near_duplicates`.
    """
    one, other = (store.manifest["image_id"].to_numpy() for store in (first, second))
    return _sorted(_pairs_table(one, other, _hashes_of(first), _hashes_of(second), threshold))


def _pairs_table(
    first_ids: np.ndarray, second_ids: np.ndarray, first: np.ndarray, second: np.ndarray, threshold: int
) -> pd.DataFrame:
    rows, columns, distances = _close_pairs(first, second, threshold)
    return pd.DataFrame({"image_id_1": first_ids[rows], "image_id_2": second_ids[columns], "distance": distances})


def _sorted(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.sort_values(["distance", "image_id_1", "image_id_2"], ignore_index=True)


def hash_images(pixels: np.ndarray) -> np.ndarray:
    """The perceptual hash of images: bool, shape (n, SIDE, SIDE), from the lowest frequency to the highest.

    That of `imagehash.phash(image, SIDE, highfreq_factor=2)`.

    Args:
        pixels: uint8, shape (n, size, size, 3), RGB.
    """
    # The lowest half of what 2 · SIDE pixels per side can hold: even small prepared images have that many.
    side = 2 * SIDE
    grey = (Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS) for image in pixels)
    columns = np.asarray(dct(np.stack([np.asarray(image, dtype=float) for image in grey]), axis=1))[:, :SIDE]
    lowest = np.asarray(dct(columns, axis=2))[:, :, :SIDE]
    return lowest > np.median(lowest, axis=(1, 2), keepdims=True)


def _hashes_of(store: PixelStore) -> np.ndarray:
    """The hashes of all images, as of `_packed`."""
    starts = range(0, len(store.manifest), _HASHED_AT_ONCE)
    workers = max(1, min(os.cpu_count() or 1, len(starts)))
    with forked_processes(workers, _know, store) as pool:
        return np.concatenate(list(pool.map(_hash_some, starts)), axis=-1)


_store: PixelStore  # of a process, or of its threads


def _know(store: PixelStore) -> None:
    global _store
    _store = store


def _hash_some(start: int) -> np.ndarray:
    end = min(start + _HASHED_AT_ONCE, len(_store.manifest))
    return _packed(hash_images(_store.read(np.arange(start, end))))


def _close_pairs(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """Which images of `first`, which of `second` and the distance of all close pairs: int64, shape (3, pairs).

    Args:
        first: packed hashes, as of `_packed`.
        second: likewise.
        threshold: the largest distance.
    """
    (one, *one_images), (other, *other_images) = (_distinct(hashes) for hashes in (first, second))
    rows, columns, distances = _compare_all(first[..., one], second[..., other], threshold)
    # Of images that have one hash, each with each; or the first ones with all.
    heights, widths = one_images[1][rows], other_images[1][columns]
    few = heights * widths <= _MOST_ALIKE
    pairs = np.where(few, heights * widths, heights + widths - 1)
    pair = np.repeat(np.arange(len(pairs)), pairs)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    width = widths[pair]
    row = np.where(few[pair], place // width, np.maximum(place - width + 1, 0))
    column = np.where(few[pair], place % width, np.where(place < width, place, 0))
    places = (
        order[starts[numbers[pair]] + place]
        for (starts, _, order), numbers, place in zip((one_images, other_images), (rows, columns), (row, column))
    )
    return np.stack([*places, distances[pair]])


def _distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The images of each hash that there is.

    Args:
        hashes: packed, as of `_packed`.

    Returns:
        By hash the first image, where its images start in an order of all, and how many there are; and that order.
    """
    words = hashes[0].reshape(4 * hashes.shape[3], -1)
    order = np.lexsort(words)
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(words[:, order], axis=1) != 0).any(axis=0)
    starts = np.flatnonzero(is_new)
    return order[starts], starts, np.diff(starts, append=len(order)), order


def _compare_all(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """`_close_pairs` of images that all have hashes of their own."""
    rows, columns = _COMPARED_AT_ONCE

    def compare(start: int) -> np.ndarray:
        ways = first[..., start : start + rows]
        found = [np.empty((3, 0), np.int64)]
        # Memory that is used again: fresh memory would take longer than what is computed in it.
        words, counts = np.empty((rows, columns), np.uint64), np.empty((2, 4, rows, columns), np.uint8)
        for left in range(0, second.shape[-1], columns):
            block = second[0, ..., left : left + columns]
            used = (..., slice(ways.shape[-1]), slice(block.shape[-1]))
            each = zip(ways, counts[used])
            least = np.minimum(*(_least_distances(way, block, words[used], count) for way, count in each))
            row, column = np.nonzero(least <= threshold)
            distance = np.minimum(*(_mirrored_distances(way[..., row], block[..., column]) for way in ways))
            found.append(np.stack([row + start, column + left, distance])[:, distance <= threshold])
        return np.concatenate(found, axis=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(compare, range(0, first.shape[-1], rows))
        return np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)


def _packed(hashes: np.ndarray) -> np.ndarray:
    """The bits of hashes (n, SIDE, SIDE) and of their transposes: uint64, shape (2, 2, 2, words, n).

    Even and odd rows and columns apart, which mirroring flips apart.
    """
    ways = np.stack([hashes, hashes.transpose(0, 2, 1)])
    parts = np.stack([[ways[:, :, row::2, column::2] for column in range(2)] for row in range(2)])
    bits = np.packbits(parts.reshape(2, 2, 2, len(hashes), (SIDE // 2) ** 2), axis=-1)
    padded = np.pad(bits, [*[(0, 0)] * 4, (0, -bits.shape[-1] % 8)])
    return np.ascontiguousarray(padded.view(np.uint64).transpose(2, 0, 1, 4, 3))


def _least_distances(first: np.ndarray, second: np.ndarray, words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What the distances of all pairs are at least, as some of their bits tell: uint8, shape (n, m).

    320 of 576 bits, in 5 of 12 words: of two images that do not look alike, these alone nearly always differ too much.
    Of a part that mirroring flips, as many bits differ as do, or as do not.

    Args:
        first: packed hashes, shape (2, 2, words, n).
        second: likewise, of m.
        words: memory to compute in, uint64, shape (n, m).
        counts: likewise, uint8, shape (4, n, m); holds the result.
    """
    least, odd_column, odd_row, more = counts
    for part, used, count in (((0, 0), 2, least), ((0, 1), 2, odd_column), ((1, 0), 1, odd_row)):
        for word in range(used):
            np.bitwise_xor(first[part][word][:, None], second[part][word], out=words)
            np.bitwise_count(words, out=more if word else count)
            if word:
                count += more
    for bits, count in ((128, odd_column), (64, odd_row)):
        np.subtract(bits, count, out=more)
        least += np.minimum(count, more, out=more)
    return least


def _mirrored_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Differing bits of n pairs of packed hashes, in the best of the four mirrorings of one of them: shape (n,)."""
    differing = np.bitwise_count(first ^ second).sum(axis=2, dtype=np.int16)
    even, odd = differing[0, 0], np.stack([differing[0, 1], differing[1, 0], differing[1, 1]])
    flipped = (SIDE // 2) ** 2 - odd
    # Unmirrored; then mirrored, which flips two of the three parts that are odd in something.
    mirrored = [flipped.sum(axis=0) + odd[part] - flipped[part] for part in range(3)]
    return even + np.min([odd.sum(axis=0), *mirrored], axis=0)
