"""The synthetic sample in data/sample: that it can be drawn again, and that it is what the pipeline expects."""

import csv
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise

import pytest
from PIL import Image

from benchmarks.plain import HAM10000, told_apart
from tests.clone import ROOT

SAMPLE = ROOT / "data/sample"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")


@pytest.fixture(scope="module")
def rows():
    with (SAMPLE / "HAM10000_metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def lesions(rows):
    """The rows of each lesion."""
    by_lesion = defaultdict(list)
    for row in rows:
        by_lesion[row["lesion_id"]].append(row)
    return by_lesion


@pytest.mark.slow
def test_drawing_it_again_gives_the_same_bytes_and_removes_stale_images(tmp_path, bytes_below):
    stale = tmp_path / "sample" / PARTS[0] / "SYN_9999999.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"left from an earlier version")
    script = ROOT / "data/generate_sample.py"
    subprocess.run([sys.executable, script, "--output", tmp_path / "sample"], cwd=tmp_path, check=True)
    made, kept = bytes_below(tmp_path / "sample"), bytes_below(SAMPLE)
    del kept["README.md"]
    assert sorted(made) == sorted(kept)
    assert [name for name in made if made[name] != kept[name]] == []
    assert sum(map(len, kept.values())) <= 4 * 2**20, "small enough for Git"


def test_every_row_has_one_small_image_in_one_of_the_folders(rows):
    image_ids = [row["image_id"] for row in rows]
    files = [path for part in PARTS for path in (SAMPLE / part).iterdir()]
    assert sorted(path.stem for path in files) == sorted(image_ids)
    assert all(image_id.startswith("SYN_") for image_id in image_ids)
    for path in files[::20]:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 96))


def test_lesions_are_counted_and_imbalanced_as_its_readme_says(rows, lesions):
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert "None of this is real" in text
    for dx in HAM10000:
        count = sum(views[0]["dx"] == dx for views in lesions.values())
        assert count >= 20
        assert f"| {dx} | {count} | {sum(row['dx'] == dx for row in rows)} |" in text


def test_a_lesion_has_one_to_four_images_also_in_both_folders_and_one_row_of_facts(lesions):
    assert {len(views) for views in lesions.values()} == {1, 2, 3, 4}
    first = {path.stem for path in (SAMPLE / PARTS[0]).iterdir()}
    assert any(len({row["image_id"] in first for row in views}) == 2 for views in lesions.values())
    for views in lesions.values():
        assert len({tuple(row[column] for column in row if column != "image_id") for row in views}) == 1


def test_values_are_those_of_ham10000_and_some_are_missing(rows):
    values = {column: {row[column] for row in rows} for column in rows[0]}
    assert list(values) == ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    assert values["dx"] == set(HAM10000)
    assert values["dx_type"] == {"histo", "follow_up", "consensus", "confocal"}
    assert values["sex"] == {"male", "female", "unknown"}
    assert values["dataset"] == {"vidir_modern", "rosendahl", "vienna_dias", "vidir_molemax"}
    assert values["age"] <= {""} | {f"{years}.0" for years in range(5, 90, 5)}
    assert 1 <= sum(row["age"] == "" for row in rows) <= 0.1 * len(rows)
    assert {row["dx_type"] for row in rows if row["dx"] in told_apart(7).malignant} == {"histo"}


def test_rows_are_not_sorted_by_diagnosis(rows):
    assert sum(one["dx"] == other["dx"] for one, other in pairwise(rows)) < 0.35 * len(rows)
