import base64
import io
import json

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from stages.commands.contents import Unlike, largest_difference


def as_json(value):
    return json.dumps(value).encode()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def page(text, picture):
    return f'<p>{text}</p><img src="data:image/png;base64,{base64.b64encode(picture).decode()}">'.encode()


DARK, LIGHT = [[[0, 0, 0], [10, 10, 10]]], [[[0, 0, 0], [10, 61, 10]]]


@pytest.mark.parametrize(
    ("path", "one", "other", "difference"),
    [
        ("a.json", as_json({"a": [0.25, None], "b": "c"}), as_json({"b": "c", "a": [0.5, None]}), 0.25),
        ("a.json", as_json({"count": 1000}), as_json({"count": 1001}), 1 / 1001),
        ("a.json", as_json([float("inf")]), as_json([float("inf")]), 0),
        ("a.csv", b"id,p\na,0.5\nb,0.25\n", b"id,p\na,0.5\nb,0.5\n", 0.25),
        ("a.tsv", b"step\tloss\n1\t2.0\n", b"step\tloss\n1\t4.0\n", 0.5),
        ("a.npy", npy(np.array([0.5, np.nan])), npy(np.array([0.75, np.nan])), 0.25),
        ("a.npy", npy(np.array([5], np.uint8)), npy(np.array([0], np.uint8)), 5 / 255),
        ("a.safetensors", *(safetensors.numpy.save({"w": np.float32([value])}) for value in (0.5, 0.75)), 0.25),
        ("a.png", png(DARK), png(LIGHT), 51 / 255),
        ("a.md", b"AUROC is 0.50.", b"AUROC is 0.75.", 0.25),
        ("a.html", page("0.5", png(DARK)), page("0.5", png(LIGHT)), 51 / 255),
    ],
)
def test_the_largest_difference_of_numbers(path, one, other, difference):
    assert largest_difference(path, one, other) == pytest.approx(difference)
    assert largest_difference(path, other, one) == pytest.approx(difference)


@pytest.mark.parametrize(
    ("path", "one", "other", "message"),
    [
        ("a.json", as_json({"a": {"b": "x"}}), as_json({"a": {"b": "y"}}), r"another a\.b"),
        ("a.json", as_json({"a": 1}), as_json({"b": 1}), "another content"),
        ("a.json", as_json({"a": 1}), as_json({"a": True}), "another a"),
        ("a.json", as_json([0.0]), as_json([float("nan")]), "not finite"),
        ("a.json", as_json([1]), b"{", "cannot be read"),
        ("a.csv", b"id,p\na,0.5\n", b"id,p\na,0.5\nb,0.5\n", "2 lines are 3"),
        ("a.csv", b"id,p\na,0.5\n", b"id,p\nb,0.5\n", "another text in line 2"),
        ("a.csv", b"id,p\na,0.5\n", b"id,p\na,\n", "another text in line 2"),
        ("a.npy", npy(np.zeros(2)), npy(np.zeros(3)), r"\(2,\) is float64 \(3,\)"),
        ("a.npy", npy(np.zeros(2)), npy(np.zeros(2, np.float32)), "is float32"),
        ("a.npy", npy(np.array(["a"])), npy(np.array(["b"])), "another content"),
        ("a.safetensors", *(safetensors.numpy.save({name: np.zeros(1)}) for name in "ab"), "other tensors"),
        ("a.png", png(DARK), png([DARK[0] * 2]), "is uint8"),
        ("a.md", b"better by 1", b"worse by 1", "another text"),
        ("a.html", page("", png(DARK)), b"<p></p>", "another text"),
        ("a.bin", b"1", b"2", "another content"),
    ],
)
def test_other_differences_are_told(path, one, other, message):
    with pytest.raises(Unlike, match=message):
        largest_difference(path, one, other)
    with pytest.raises(Unlike):
        largest_difference(path, other, one)
