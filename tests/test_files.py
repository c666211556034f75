import math

import numpy as np
import pandas as pd
import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stages.checks import Float, Text, Whole
from stages.errors import InputError
from stages.files import read_array, read_csv, read_json, replacing, write_csv, write_json


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Person:
    age: Whole
    sex: Text
    height: Float


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(path, text):
    """Make `path` a file, or a folder with a file, that says `text`."""
    if "table" in path.name:
        path.write_text(text)
    else:
        path.mkdir(exist_ok=True)
        (path / "file.txt").write_text(text)


def said(path):
    return (path if "table" in path.name else path / "file.txt").read_text()


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_replacing_puts_the_new_in_the_place_of_the_old(tmp_path, name):
    path = tmp_path / name
    fill(path, "old")
    if path.is_dir():
        (path / "stale.txt").write_text("of an earlier run")
    with replacing(path) as partial:
        fill(partial, "new")
        assert said(path) == "old"
    assert said(path) == "new"
    assert names(tmp_path) == [name]
    assert path.is_file() or names(path) == ["file.txt"]


@pytest.mark.parametrize("name", ["table.csv", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_keeps_the_old_and_leaves_nothing_behind_when_the_block_raises(tmp_path, name, error):
    path = tmp_path / name
    fill(path, "old")

    def fail():
        with replacing(path) as partial:
            fill(partial, "new")
            raise error

    with pytest.raises(error):
        fail()
    assert said(path) == "old"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_replacing_clears_what_a_killed_run_left(tmp_path, name):
    path = tmp_path / name
    with replacing(path) as partial:
        fill(partial, "killed")
        left = partial
    fill(left, "half")
    if left.is_dir():
        (left / "half.txt").write_text("half")
    with replacing(path) as partial:
        assert not partial.exists()
        fill(partial, "new")
    assert said(path) == "new"
    assert names(tmp_path) == [name]
    assert path.is_file() or names(path) == ["file.txt"]


def test_replacing_makes_the_folders_above(tmp_path):
    write_json(tmp_path / "metrics" / "training" / "best.json", {})
    assert read_json(tmp_path / "metrics" / "training" / "best.json") == {}


def test_json_has_the_same_bytes_in_whatever_order_the_content_was_made(tmp_path):
    write_json(tmp_path / "a.json", {"b": (1, 2.0), "a": {"d": "é", "c": None}})
    write_json(tmp_path / "b.json", {"a": {"c": None, "d": "é"}, "b": [1, 2.0]})
    written = (tmp_path / "a.json").read_bytes()
    assert written == (tmp_path / "b.json").read_bytes()
    assert written.decode("utf-8").splitlines()[1] == '  "a": {'
    assert written.endswith(b"}\n")
    assert b"\r" not in written


def test_json_does_not_keep_the_noise_behind_the_sixth_decimal(tmp_path):
    write_json(tmp_path / "a.json", {"a": [np.float64(0.1) + 0.2, 1 / 3]})
    assert read_json(tmp_path / "a.json") == {"a": [0.3, 0.333333]}


def test_json_keeps_a_small_number_of_six_digits(tmp_path):
    """A threshold of 9e-7 that became 0 would call every image malignant."""
    write_json(tmp_path / "a.json", {"threshold": 9.12345e-07, "noise": 1 / 3 * 1e-06})
    assert read_json(tmp_path / "a.json") == {"threshold": 9.12345e-07, "noise": 0.0}


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, number):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": {"b": [number]}})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_csv_has_unix_line_ends_and_a_fixed_number_of_decimals(tmp_path):
    write_csv(tmp_path / "a.csv", pd.DataFrame({"id": ["é"], "p": [1 / 3], "n": [7], "age": [math.nan]}))
    assert (tmp_path / "a.csv").read_bytes() == "id,p,n,age\né,0.33333333,7,\n".encode()


def test_csv_comes_back_as_it_was_written(tmp_path):
    table = pd.DataFrame(
        {
            "image_id": ["007", "1e5", "100000"],
            "lesion_id": ["01", "NA", "nan"],
            "sex": ["male", "null", "unknown"],
            "localization": ["0", "1", "01"],
            "dataset": ["2018", "2019", "2020"],
            "age": [55.0, math.nan, 0.0],
            "shard": [0, 0, 1],
        }
    )
    write_csv(tmp_path / "a.csv", table)
    back = read_csv(tmp_path / "a.csv", list(table.columns))
    pd.testing.assert_frame_equal(back, table)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "is not a table this pipeline wrote"),
        (b"id,p\n1,2\n1,2,3,4\n", "is not a table this pipeline wrote"),
        (b"id,p\n\xff,2\n", "is not a table this pipeline wrote"),
        (b"id,q\n1,2\n", "lacks the column p"),
        ("folder", "is not a table this pipeline wrote"),
    ],
    ids=["missing", "empty", "ragged", "not UTF-8", "column missing", "folder"],
)
def test_a_table_that_cannot_be_read_is_named_with_how_to_make_it(tmp_path, content, expected):
    path = tmp_path / "a.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_csv(path, ["id", "p"])
    assert str(caught.value).startswith(f"{path} {expected}")
    assert "dvc repro" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b'"\xff"', "is not JSON"),
        (b"[" * 100_000, "is not JSON (it is nested too deeply)"),
        ("folder", "is not JSON"),
    ],
    ids=["missing", "empty", "cut off", "not UTF-8", "nested", "folder"],
)
def test_json_that_cannot_be_read_is_named_with_how_to_make_it(tmp_path, content, expected):
    path = tmp_path / "a.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} {expected}")
    assert "dvc repro" in str(caught.value)


def test_json_of_another_type_is_refused_with_every_value_that_is_wrong(tmp_path):
    (tmp_path / "a.json").write_text('{"age": "old", "sex": null, "weight": 70}')
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json", Person)
    start, end = f"{tmp_path / 'a.json'}: ", "; run `dvc repro` to regenerate it"
    assert sorted(str(caught.value).removeprefix(start).removesuffix(end).split("\n  ")) == [
        "age is 'old'; it must be a valid integer",
        "height is missing",
        "sex is None; it must be a valid string",
        "weight is unknown; did you mean height?",
    ]
    (tmp_path / "a.json").write_text('{"age": 3, "sex": "male", "height": 1}')
    assert read_json(tmp_path / "a.json", Person) == Person(3, "male", 1.0)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match=r"the content is \[\]; it must be a mapping with the keys age, sex, height"):
        read_json(tmp_path / "a.json", Person)


def test_a_whole_number_that_no_float_holds_is_infinite(tmp_path):
    (tmp_path / "a.json").write_text(f'{{"a": {"9" * 400}, "b": -{"9" * 5000}, "c": 12345678901234567890}}')
    assert read_json(tmp_path / "a.json") == {"a": math.inf, "b": -math.inf, "c": 12345678901234567890}


@pytest.mark.parametrize(
    "header", ["{", "{[]: 1}", "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", f"{{{'9' * 400}: 1}}"]
)
def test_an_array_with_a_broken_header_is_named_with_how_to_make_it(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    )
    with pytest.raises(InputError, match=r"a.npy is not an array .*; run `dvc repro` to regenerate it"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(10**30,), (2**62,), (True,)])
def test_an_array_that_claims_more_than_there_is_is_refused(tmp_path, shape):
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    )
    with pytest.raises(InputError, match=r"a.npy is not an array"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, target):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.txt").write_text("kept")
    (tmp_path / "out").symlink_to(tmp_path / target)
    with replacing(tmp_path / "out") as partial:
        fill(partial, "new")
    assert said(tmp_path / "out") == "new"
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file.txt").read_text() == "kept"
