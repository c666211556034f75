"""Near-duplicates: pairs of images that are one photograph, found by a perceptual hash, whichever way they are turned.

A bit of the hash says whether one of the lowest frequencies of an image's cosine transform lies above their median.
Mirroring an image changes only the sign of its odd frequencies, and the median is nearly 0: their bits flip. A quarter
turn is a mirror and a transposition, and transposing an image transposes its hash. So one hash per image serves all
eight orientations: measured on HAM10000, it differs from the hash of the turned image in 10 of 576 bits (median).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

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

# All pairs of images are compared up to so many: half a minute of one core; HAM10000 has 17 million. Of more, those
# that agree in a part of the hash (multi-index hashing: Norouzi et al., CVPR 2012): by the pigeonhole principle none of
# up to 35 bits can be missed. Of HAM10000, where every hundredth pair agrees in a part, those are all of 44 pairs up
# to 60 bits, and 71 of the 73 above it.
MOST_COMPARED = 1_000_000_000
_PART = 16  # bits
_PARTS = SIDE * SIDE // _PART
SEARCH_OF_MANY = f"only of images that agree in one of its {_PARTS} parts of {_PART} bits"
_MOST_ALIKE = 10_000  # pairs between two sets of images of one hash each, as blank ones are, that are listed all

_HASHED_AT_ONCE = 64  # images
_COMPARED_AT_ONCE = 64, 1024  # images of either side: what a thread works on stays in its core's cache
_AGREEING_AT_ONCE = 8192  # pairs, likewise


def near_duplicates(
    store: PixelStore, split: pd.Series, threshold: int = LARGEST_DISTANCE, names: Sequence[str] = SPLITS
) -> pd.DataFrame:
    """The pairs of images in different splits, or datasets, that look the same, whichever way they are turned.

    Seconds for HAM10000. Memory grows with the images, by 400 bytes each, and with the pairs that are found. Above
    `MOST_COMPARED` pairs, `describe_search` says which are compared. Of two large sets whose images have the same hash,
    each image is listed with the first one of the other set only.

    Args:
        store: the prepared images.
        split: the split of each image, in the order of the store's manifest.
        threshold: the largest number of differing bits, of SIDE².
        names: the splits, or what else `split` names.

    Returns:
        Columns image_id_1, image_id_2, split_1, split_2 and distance, the closest first. Of two splits, the one that is
        held out from the other comes first: test before val before train.
    """
    ids, hashes = store.manifest["image_id"].to_numpy(), _packed_hashes(store)
    members = {name: np.flatnonzero(split.to_numpy() == name) for name in names}
    tables = []
    for first, second in combinations(reversed(names), 2):
        one, other = members[first], members[second]
        pairs = _close_pairs(hashes[..., one], hashes[..., other], threshold)
        tables.append(_table(ids[one], ids[other], pairs).assign(split_1=first, split_2=second))
    columns = ["image_id_1", "image_id_2", "split_1", "split_2", "distance"]
    return _sorted(pd.concat(tables)).loc[:, columns]


def describe_search(split: pd.Series, names: Sequence[str] = SPLITS) -> str:
    """Which hash `near_duplicates` compares, and of which pairs if not of all."""
    sizes = [int((split == name).sum()) for name in names]
    is_large = any(one * other > MOST_COMPARED for one, other in combinations(sizes, 2))
    return f"{HASH}, {SEARCH_OF_MANY}" if is_large else HASH


def near_duplicates_between(first: PixelStore, second: PixelStore, threshold: int = LARGEST_DISTANCE) -> pd.DataFrame:
    """The pairs of an image of one store and an image of another that look the same, whichever way they are turned.

    Returns:
        Columns image_id_1, image_id_2 and distance, as of `near_duplicates`.
    """
    pairs = _close_pairs(_packed_hashes(first), _packed_hashes(second), threshold)
    return _sorted(_table(first.manifest["image_id"].to_numpy(), second.manifest["image_id"].to_numpy(), pairs))


def hash_images(store: PixelStore) -> np.ndarray:
    """The perceptual hash of every image: bool, shape (n, SIDE, SIDE), from the lowest frequency to the highest.

    That of `imagehash.phash(image, SIDE, highfreq_factor=2)`.
    """
    return np.concatenate(_of_hashes(store, lambda hashes: hashes))


def _packed_hashes(store: PixelStore) -> np.ndarray:
    """What `_packed` makes of the hashes of all images."""
    return np.concatenate(_of_hashes(store, _packed), axis=-1)


def _of_hashes(store: PixelStore, function: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """What a function makes of the hashes of some images, of all images."""
    starts = range(0, len(store.manifest), _HASHED_AT_ONCE)
    workers = max(1, min(os.cpu_count() or 1, len(starts)))
    with forked_processes(workers, _know, store, function) as pool:
        return list(pool.map(_hash_some, starts))


_known: tuple[PixelStore, Callable[[np.ndarray], np.ndarray]]  # of a process, or of its threads


def _know(store: PixelStore, function: Callable[[np.ndarray], np.ndarray]) -> None:
    global _known
    _known = store, function


def _hash_some(start: int) -> np.ndarray:
    store, function = _known
    pixels = store.read(np.arange(start, min(start + _HASHED_AT_ONCE, len(store.manifest))))
    # The lowest half of what 2 · SIDE pixels per side can hold: even small prepared images have that many.
    side = 2 * SIDE
    grey = (Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS) for image in pixels)
    columns = np.asarray(dct(np.stack([np.asarray(image, dtype=float) for image in grey]), axis=1))[:, :SIDE]
    lowest = np.asarray(dct(columns, axis=2))[:, :, :SIDE]
    return function(lowest > np.median(lowest, axis=(1, 2), keepdims=True))


def _close_pairs(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """Which images of `first`, which of `second` and the distance of all close pairs: int64, shape (3, pairs).

    Args:
        first: packed hashes, as of `_packed`.
        second: likewise.
        threshold: the largest distance.
    """
    search = _search_all if first.shape[-1] * second.shape[-1] <= MOST_COMPARED else _search_agreeing
    (one, *one_images), (other, *other_images) = (_distinct(hashes) for hashes in (first, second))
    rows, columns, distances = search(first[..., one], second[..., other], threshold)
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


def _search_all(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """The close pairs among all. Arguments and result as of `_close_pairs`."""
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

    return _in_threads(compare, range(0, first.shape[-1], rows))


def _search_agreeing(first: np.ndarray, second: np.ndarray, threshold: int) -> np.ndarray:
    """The close pairs among those that agree in a part of the hash. Arguments and result as of `_close_pairs`."""
    keys = [_parts(way) for way in (*first, second[0])]
    # The words of a hash side by side, for they are looked up hash by hash.
    *ways, others = (np.ascontiguousarray(way.reshape(-1, way.shape[-1]).T) for way in (*first, second[0]))

    def compare(way_and_part: tuple[int, int]) -> np.ndarray:
        way, part = way_and_part
        sought, known = keys[way][part], keys[2][part]
        order, sizes = np.argsort(known, kind="stable"), np.bincount(known, minlength=2**_PART)
        starts, matches = (np.cumsum(sizes) - sizes)[sought], sizes[sought]
        ends = np.cumsum(matches)
        found = [np.empty((3, 0), np.int64)]
        low = 0
        while low < len(sought):  # so many rows that few enough pairs are at hand
            high = max(low + 1, int(np.searchsorted(ends, ends[low] - matches[low] + _AGREEING_AT_ONCE, "right")))
            row = np.repeat(np.arange(low, high), matches[low:high])
            before = np.repeat(ends[low:high] - matches[low:high], matches[low:high])
            column = order[starts[row] + np.arange(len(row)) + (ends[low] - matches[low]) - before]
            differing = np.bitwise_count(ways[way][row] ^ others[column]).reshape(len(row), 4, -1)
            distance = _mirrored(*differing.sum(axis=2, dtype=np.int16).T)
            close = np.flatnonzero(distance <= threshold)
            found.append(np.stack([row[close], column[close], distance[close]]))
            low = high
        return np.concatenate(found, axis=1)

    found = _in_threads(compare, [(way, part) for way in range(2) for part in range(_PARTS)])
    rows, columns, distances = found[:, np.lexsort(found[::-1])]
    is_new = np.ones(len(rows), bool)  # the same pair agrees in several parts, or turned, and the closest comes first
    is_new[1:] = (np.diff(rows) != 0) | (np.diff(columns) != 0)
    return np.stack([rows, columns, distances])[:, is_new]


def _parts(way: np.ndarray) -> np.ndarray:
    """The hashes of images in parts that mirroring an image does not change: uint16, shape (parts, n).

    It flips a part or leaves it, but that of even rows and columns, which it leaves: of the two, the smaller number.

    Args:
        way: shape (2, 2, words, n), as of `_packed`.
    """
    used = (SIDE // 2) ** 2 // _PART
    parts = np.ascontiguousarray(np.moveaxis(way, -1, 0)).view(np.uint16).reshape(way.shape[-1], 4, -1)[..., :used]
    parts[:, 1:] = np.minimum(parts[:, 1:], ~parts[:, 1:])
    return np.ascontiguousarray(parts.reshape(len(parts), -1).T)


def _in_threads(compare: Callable[[Any], np.ndarray], pieces: Iterable[Any]) -> np.ndarray:
    """What a function finds in all pieces, side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate([np.empty((3, 0), np.int64), *pool.map(compare, pieces)], axis=1)


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
    return _mirrored(*np.bitwise_count(first ^ second).sum(axis=2, dtype=np.int16).reshape(4, -1))


def _mirrored(even: np.ndarray, odd_column: np.ndarray, odd_row: np.ndarray, odd_both: np.ndarray) -> np.ndarray:
    """`_mirrored_distances` from the bits that differ in each of the parts that mirroring flips apart."""
    bits = (SIDE // 2) ** 2
    # Unmirrored; then mirrored, which flips two of the three parts that are odd in something.
    return even + np.min(
        [
            odd_column + odd_row + odd_both,
            odd_column + (bits - odd_row) + (bits - odd_both),
            odd_row + (bits - odd_column) + (bits - odd_both),
            odd_both + (bits - odd_column) + (bits - odd_row),
        ],
        axis=0,
    )


def _table(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> pd.DataFrame:
    rows, columns, distances = pairs
    return pd.DataFrame({"image_id_1": first[rows], "image_id_2": second[columns], "distance": distances})


def _sorted(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.sort_values(["distance", "image_id_1", "image_id_2"], ignore_index=True)
