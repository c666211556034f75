"""The synthetic sample in data/sample: that it can be made again, and that it is what the pipeline expects."""

import csv
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from stages.commands.generate_sample import COLUMNS, IMAGE_FOLDERS, METADATA_NAME, main
from stages.dataset.taxonomy import DIAGNOSES, MALIGNANT

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
MEBIBYTE = 2**20


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rows():
    with (SAMPLE / METADATA_NAME).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def lesions(rows):
    """The rows of each lesion."""
    by_lesion = defaultdict(list)
    for row in rows:
        by_lesion[row["lesion_id"]].append(row)
    return by_lesion


def test_generating_again_gives_the_same_bytes_and_removes_stale_images(tmp_path):
    stale = tmp_path / IMAGE_FOLDERS[0] / "SYN_9999999.jpg"
    stale.parent.mkdir()
    stale.write_bytes(b"left from an earlier version")
    main(["--output", str(tmp_path)])

    made, kept = contents(tmp_path), contents(SAMPLE)
    assert sorted(made) == sorted(kept)
    assert [name for name in made if made[name] != kept[name]] == []


def test_sample_is_small_enough_for_git():
    assert sum(len(data) for data in contents(SAMPLE).values()) <= 4 * MEBIBYTE


def test_table_has_ham10000s_columns_and_line_ends():
    table = (SAMPLE / METADATA_NAME).read_bytes()
    assert table.startswith(b"lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n")
    assert ",".join(COLUMNS).encode() == table.split(b"\n")[0]
    assert b"\r" not in table


def test_every_row_has_one_image_in_one_of_the_folders(rows):
    image_ids = [row["image_id"] for row in rows]
    stems = [path.stem for folder in IMAGE_FOLDERS for path in (SAMPLE / folder).glob("*.jpg")]
    assert len(image_ids) == len(set(image_ids)) == 600
    assert sorted(stems) == sorted(image_ids)
    assert all(any((SAMPLE / folder).iterdir()) for folder in IMAGE_FOLDERS)


def test_ids_show_that_the_data_is_synthetic(rows):
    assert all(row["image_id"].startswith("SYN_") and row["lesion_id"].startswith("SYN_L") for row in rows)


def test_images_are_4_to_3_colour_jpegs_without_metadata(rows):
    sizes = set()
    for path in sorted(SAMPLE.rglob("*.jpg")):
        with Image.open(path) as image:
            sizes.add((image.format, image.mode, image.size))
            assert not image.getexif()
            assert "comment" not in image.info
    assert sizes == {("JPEG", "RGB", (128, 96))}


def test_lesions_are_counted_and_imbalanced_as_documented(rows, lesions):
    lesion_counts = {dx: sum(views[0]["dx"] == dx for views in lesions.values()) for dx in DIAGNOSES}
    assert len(lesions) == 400
    assert max(lesion_counts, key=lesion_counts.get) == "nv"
    assert min(lesion_counts.values()) >= 20
    assert 0.28 <= sum(row["dx"] == "nv" for row in rows) / len(rows) <= 0.38

    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for dx, count in lesion_counts.items():
        assert f"| {dx} | {count} | {sum(row['dx'] == dx for row in rows)} |" in text


def test_readme_says_that_nothing_is_real():
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert "Synthetic" in text
    assert "None of this is real" in text
    assert "python -m stages generate_sample" in text


def test_everything_but_the_image_is_the_same_for_all_images_of_a_lesion(lesions):
    for views in lesions.values():
        assert len({tuple(row[column] for column in COLUMNS if column != "image_id") for row in views}) == 1


def test_lesions_have_one_to_several_images(lesions):
    assert {len(views) for views in lesions.values()} == {1, 2, 3, 4}


def test_some_lesions_have_images_in_both_folders(lesions):
    first = {path.stem for path in (SAMPLE / IMAGE_FOLDERS[0]).glob("*.jpg")}
    assert any(len({row["image_id"] in first for row in views}) == 2 for views in lesions.values())


def test_values_are_those_of_ham10000_and_some_are_missing(rows):
    values = {column: {row[column] for row in rows} for column in COLUMNS}
    assert values["dx"] == set(DIAGNOSES)
    assert values["dx_type"] == {"histo", "follow_up", "consensus", "confocal"}
    assert values["sex"] == {"male", "female", "unknown"}
    assert values["dataset"] == {"vidir_modern", "rosendahl", "vienna_dias", "vidir_molemax"}
    assert {"back", "lower extremity", "unknown"} <= values["localization"]
    assert values["age"] <= {""} | {f"{years}.0" for years in range(5, 90, 5)}
    assert 1 <= sum(row["age"] == "" for row in rows) <= 0.1 * len(rows)


def test_malignant_diagnoses_are_confirmed_by_histology(rows):
    assert {row["dx_type"] for row in rows if row["dx"] in MALIGNANT} == {"histo"}
    assert "follow_up" in {row["dx_type"] for row in rows if row["dx"] == "nv"}


def test_rows_are_not_sorted_by_diagnosis_or_lesion(rows):
    same_diagnosis = sum(a["dx"] == b["dx"] for a, b in pairwise(rows))
    assert same_diagnosis < 0.35 * len(rows)
    assert [row["lesion_id"] for row in rows] != sorted(row["lesion_id"] for row in rows)
