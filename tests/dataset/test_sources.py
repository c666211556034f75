"""Several datasets in one folder: found, read with what each says of itself, and told apart."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.plain import PLAIN
from stages.dataset.pixels import PixelStore
from stages.dataset.sources import find_datasets
from stages.errors import InputError
from stages.prepare import prepare_dataset

SETTINGS = "columns: {image_id: file, dx: label}\nclasses: {naevus: nv, 'other': null}\ntrain_only: true\n"


@pytest.fixture
def both(tmp_path):
    """A hospital's table of its own columns and labels beside one of HAM10000's, with an image and a lesion in common.

    The images of a dataset have a colour of their own.
    """
    folder = tmp_path / "both"
    write(
        folder / "archive",
        ["image", "lesion_id", "dx", "dataset"],
        [["A", "L", "nv", "rosendahl"], ["B", "M", "mel", ""]],
    )
    write(folder / "hospital", ["file", "lesion_id", "label", "fitspatrick"], [["A.png", "L", "naevus", "2"]], 200)
    (folder / "hospital/dataset.yaml").write_text(SETTINGS)
    return folder


def write(folder, header, rows, grey=50):
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    for row in rows:
        Image.new("RGB", (20, 20), (grey,) * 3).save(folder / f"{row[0].removesuffix('.png')}.png")


def prepared(folder, output, **settings):
    said = []
    config = replace(PLAIN.data, data_dir=str(folder), image_size=16, **settings)
    prepare_dataset(config, output, 1, say=said.append)
    return PixelStore(output), said


def test_ids_that_meet_are_told_apart_and_each_keeps_its_own_image(both, tmp_path):
    store, said = prepared(both, tmp_path / "out")
    table = store.manifest
    assert list(table["image_id"]) == ["A", "B", "hospital.A"]
    assert list(table["lesion_id"]) == ["L", "M", "hospital.L"]
    assert list(table["dx"]) == ["nv", "mel", "nv"]
    assert list(table["dataset"]) == ["archive", "archive", "hospital"]
    assert list(table["skin_type"]) == ["unknown", "unknown", "II"]
    assert list(store.read(np.arange(3))[:, 0, 0, 0]) == [50, 50, 200]
    assert store.sources == {"archive": {"train_only": False}, "hospital": {"train_only": True}}
    assert said == []


def test_without_settings_a_folder_of_datasets_is_known_by_their_tables(both, tmp_path):
    (both / "hospital/dataset.yaml").unlink()
    assert [path.name for path in find_datasets(both)] == ["archive", "hospital"]
    (both / "README.md").write_text("what this is")
    assert len(find_datasets(both)) == 2
    (both / "table.csv").write_text("image,dx\n")
    assert find_datasets(both) == [both]


def test_parts_of_one_dataset_stay_one(tmp_path):
    for part, image in (("one", "A"), ("two", "B")):
        write(tmp_path / "data" / part, ["image", "lesion_id", "dx"], [[image, "L", "nv"]])
    store, _ = prepared(tmp_path / "data", tmp_path / "out")
    assert list(store.manifest["lesion_id"]) == ["L", "L"]
    assert store.sources == {}


def test_a_dataset_alone_is_read_as_its_settings_say(both, tmp_path):
    (both / "hospital/dataset.yaml").write_text(SETTINGS.replace("true", "false"))
    store, _ = prepared(both / "hospital", tmp_path / "out")
    assert list(store.manifest["image_id"]) == ["A"]
    assert list(store.manifest["dataset"]) == ["unknown"]


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("hospital/dataset.yaml", "train-only: true", r"both/hospital/dataset\.yaml: train-only is unknown; did you"),
        ("hospital/dataset.yaml", "train_only: 1", r"hospital/dataset\.yaml: train_only is 1; it must be true or"),
        ("hospital/dataset.yaml", "columns: {image_id: no}", r"hospital with dataset\.yaml as .*image_id is 'no'"),
        ("hospital/dataset.yaml", "classes: {a: b}", r"hospital with dataset\.yaml as .*data\.classes maps 'a' to 'b'"),
        ("hospital/dataset.yaml", "[", r"hospital/dataset\.yaml: while parsing"),
        ("archive/dataset.yaml", "train_only: true", r"archive/dataset\.yaml: train_only is true, but no other"),
        ("hospital/table.csv", "file,lesion_id,label\nA.png,L,scar\n", "hospital: table.csv row 2: unknown diagnosis"),
        ("hospital/table.csv", "file,lesion_id,label\nC.png,L,naevus\n", "C: no image file of this name"),
        ("hospital/table.csv", "file,lesion_id,label\nhospital.A,L,naevus\nA,L,naevus\n", r"id hospital\.A would"),
        ("my hospital/dataset.yaml", "{}", "holds the dataset 'my hospital'; rename its folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_error_that_names_the_dataset(both, tmp_path, file, content, error):
    (both / file).parent.mkdir(exist_ok=True)
    (both / file).write_text(content)
    with pytest.raises(InputError, match=error):
        prepared(both, tmp_path / "out")
    assert not (tmp_path / "out").exists()
