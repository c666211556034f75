"""How far two versions of an output are apart: the numbers in it, whatever kind of file it is."""

import base64
import csv
import io
import json
import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

WHITE = 255  # of a pixel
_PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Unlike(Exception):
    """Two files differ in something else than numbers; the message says in what."""


def largest_difference(path: str, one: bytes, other: bytes) -> float:
    """The largest difference between a number in one version of a file and the same number in the other.

    That of two numbers is absolute if both lie within ±1, and else relative to the larger; that of two pixels is a
    fraction of the way from black to white.

    Args:
        path: of the file; its suffix says what it holds.
        one: its content in one version.
        other: and in the other.

    Raises:
        Unlike: they differ in something else than numbers, or one of them is damaged.
    """
    compare = _COMPARE.get(PurePosixPath(path).suffix)
    if compare is None:
        raise Unlike("another content")
    try:
        return compare(one, other)
    except Unlike:
        raise
    except Exception as error:  # each reader has errors of its own
        raise Unlike(f"cannot be read ({' '.join(str(error).split())})") from None


def _arrays(one: np.ndarray, other: np.ndarray) -> float:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise Unlike(f"{one.dtype} {one.shape} is {other.dtype} {other.shape}")
    if not one.size:
        return 0.0
    if one.dtype == np.uint8:  # pixels
        return float(np.abs(one.astype(np.int16) - other).max() / WHITE)
    if not np.issubdtype(one.dtype, np.number):
        if (one != other).any():
            raise Unlike("another content")
        return 0.0
    one, other = one.astype(np.float64), other.astype(np.float64)
    apart = (one != other) & ~(np.isnan(one) & np.isnan(other))
    one, other = one[apart], other[apart]
    if not (np.isfinite(one) & np.isfinite(other)).all():
        raise Unlike("a number is not finite in one of them only")
    return float((np.abs(one - other) / np.maximum(1, np.maximum(np.abs(one), np.abs(other)))).max(initial=0))


def _numbers(one: float, other: float) -> float:
    return _arrays(np.array([one], np.float64), np.array([other], np.float64))


def _values(one: Any, other: Any, place: str = "") -> float:
    """Of two values as JSON has them."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_values(one[key], other[key], f"{place}.{key}" if place else key) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((_values(*pair, f"{place}[{number}]") for number, pair in enumerate(zip(one, other))), default=0.0)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)):
        return _numbers(one, other)
    if type(one) is not type(other) or one != other:
        raise Unlike(f"another {place or 'content'}")
    return 0.0


def _json(one: bytes, other: bytes) -> float:
    return _values(json.loads(one), json.loads(other))


def _table(one: bytes, other: bytes, delimiter: str) -> float:
    tables = [list(csv.reader(io.StringIO(content.decode("utf-8")), delimiter=delimiter)) for content in (one, other)]
    if [len(row) for row in tables[0]] != [len(row) for row in tables[1]]:
        raise Unlike(f"{len(tables[0])} lines are {len(tables[1])}, or have other columns")
    largest = 0.0
    for number, (row, again) in enumerate(zip(*tables), start=1):
        for cell, changed in zip(row, again):
            if cell != changed:
                try:
                    numbers = float(cell), float(changed)
                except ValueError:
                    raise Unlike(f"another text in line {number}") from None
                largest = max(largest, _numbers(*numbers))
    return largest


def _tensors(one: bytes, other: bytes) -> float:
    first, second = safetensors.numpy.load(one), safetensors.numpy.load(other)
    if first.keys() != second.keys():
        raise Unlike("other tensors")
    return max((_arrays(first[name], second[name]) for name in first), default=0.0)


def _array(one: bytes, other: bytes) -> float:
    return _arrays(*(np.load(io.BytesIO(content), allow_pickle=False) for content in (one, other)))


def _picture(one: bytes, other: bytes) -> float:
    return _arrays(*(np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")) for content in (one, other)))


def _text(one: bytes, other: bytes) -> float:
    """Of two texts: the numbers, and the pictures that an HTML page holds."""
    texts = [content.decode("utf-8") for content in (one, other)]
    pictures = [[base64.b64decode(found) for found in _PICTURE.findall(text)] for text in texts]
    texts = [_PICTURE.sub("", text) for text in texts]
    numbers = [[float(found) for found in _NUMBER.findall(text)] for text in texts]
    if _NUMBER.sub("", texts[0]) != _NUMBER.sub("", texts[1]) or len(pictures[0]) != len(pictures[1]):
        raise Unlike("another text")
    return max([_numbers(*pair) for pair in zip(*numbers)] + [_picture(*pair) for pair in zip(*pictures)], default=0.0)


_COMPARE = {
    ".csv": lambda one, other: _table(one, other, ","),
    ".html": _text,
    ".json": _json,
    ".md": _text,
    ".npy": _array,
    ".png": _picture,
    ".safetensors": _tensors,
    ".tsv": lambda one, other: _table(one, other, "\t"),
}
