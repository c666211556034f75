import math
import random
from itertools import pairwise

import pandas as pd
import pytest

from stages.dataset.metadata import find_metadata, read_metadata, subsample_lesions
from stages.errors import InputError


def table_of(lesions):
    """A table of so many lesions of each diagnosis, with one to three images each."""
    rows = [
        {"image_id": f"I-{dx}-{lesion}-{image}", "lesion_id": f"L-{dx}-{lesion}", "dx": dx}
        for dx, count in lesions.items()
        for lesion in range(count)
        for image in range(1 + lesion % 3)
    ]
    return pd.DataFrame(rows)


def test_a_table_without_a_mistake_is_read_in_its_order(dataset):
    dataset.rows.reverse()
    table, problems, _ = read_metadata(dataset.write_table())
    assert problems == []
    assert list(table["image_id"]) == dataset.ids
    assert list(table["age"]) == [55.0] * 12
    assert set(table["localization"]) == {"lower extremity"}


def test_empty_cells_are_unknown(dataset):
    dataset.rows[0] |= {"age": "", "sex": "", "dataset": ""}
    table, problems, _ = read_metadata(dataset.write_table())
    assert problems == []
    assert math.isnan(table["age"][0])
    assert table["sex"][0] == table["dataset"][0] == "unknown"


def test_the_dataset_column_may_be_missing_and_the_order_of_the_columns_is_free(dataset):
    columns = ["dx", "image_id", "lesion_id", "localization", "sex", "age", "dx_type"]
    table, problems, _ = read_metadata(dataset.write_table(columns=columns))
    assert problems == []
    pd.testing.assert_frame_equal(table, read_metadata(dataset.write_table())[0])


@pytest.mark.parametrize("name", ["HAM10000_metadata.csv", "HAM10000_metadata", "my_table.csv"])
def test_the_table_is_found_by_its_name_or_as_the_only_one(dataset, name):
    path = dataset.write_table(name)
    assert find_metadata(dataset.folder) == path


def test_other_tables_beside_ham10000_s_do_not_matter(dataset):
    dataset.write_table("other.csv")
    path = dataset.write_table()
    assert find_metadata(dataset.folder) == path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dx": "naevus"}, "unknown diagnosis 'naevus'; dx must be one of akiec, bcc, bkl, df, mel, nv, vasc"),
        ({"dx": "NV"}, "unknown diagnosis 'NV'"),
        ({"dx": ""}, "unknown diagnosis ''"),
        ({"age": "old"}, "age is 'old'; it must be years from 0 to 120, or empty"),
        ({"age": "-5"}, "age is '-5'"),
        ({"age": "200"}, "age is '200'"),
        ({"age": "nan"}, "age is 'nan'"),
        ({"age": "inf"}, "age is 'inf'"),
        ({"image_id": ""}, "image_id is ''"),
        ({"image_id": "../I000"}, "image_id is '../I000'"),
        ({"lesion_id": "a b"}, "lesion_id is 'a b'"),
        ({"sex": "<b>"}, "sex is '<b>'; it must be plain words"),
        ({"image_id": "I000"}, "image_id I000 stands in row 2 already"),
        ({"dx": "mel"}, "lesion L002 is mel here and bkl above"),
    ],
)
def test_a_bad_cell_is_named_with_its_row_and_leaves_the_other_rows_usable(dataset, change, expected):
    dataset.rows[5] |= change
    table, problems, _ = read_metadata(dataset.write_table())
    assert len(problems) == 1
    assert problems[0].startswith(f"HAM10000_metadata.csv row 7: {expected}")
    assert set(dataset.ids[:5] + dataset.ids[6:]) <= set(table["image_id"])


@pytest.mark.parametrize("cells", ["L9,I9,nv,histo,5,male", "L9,I9,nv,histo,5,male,back,unknown,more"])
def test_a_row_with_another_number_of_fields_is_named(dataset, cells):
    path = dataset.write_table()
    path.write_text(path.read_text() + cells + "\n")
    table, problems, _ = read_metadata(path)
    assert problems == [f"HAM10000_metadata.csv row 14: {cells.count(',') + 1} fields; the header has 8"]
    assert len(table) == 12


def test_a_table_of_a_header_alone_has_no_rows(dataset):
    dataset.rows.clear()
    assert read_metadata(dataset.write_table())[1] == ["HAM10000_metadata.csv: no rows; one for each image is needed"]


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.5, 0.9])
def test_a_subsample_has_whole_lesions_and_its_share_of_each_diagnosis(fraction):
    counts = {"nv": 200, "mel": 40, "df": 10, "vasc": 1}
    table = table_of(counts)
    sample = subsample_lesions(table, fraction)
    kept = sample.groupby("dx")["lesion_id"].nunique()
    for dx, count in counts.items():
        assert abs(kept[dx] - max(1, fraction * count)) <= 0.5
    images = table.groupby("lesion_id").size()
    assert all(images[lesion] == count for lesion, count in sample.groupby("lesion_id").size().items())


def test_the_smallest_subsample_has_a_lesion_of_each_diagnosis_and_the_largest_everything():
    table = table_of({"nv": 20, "mel": 5, "df": 1})
    assert subsample_lesions(table, 0.001)["dx"].nunique() == 3
    pd.testing.assert_frame_equal(subsample_lesions(table, 1.0), table)


def test_a_smaller_subsample_is_a_part_of_a_larger_one():
    table = table_of({"nv": 100, "mel": 30, "df": 7})
    samples = [set(subsample_lesions(table, fraction)["image_id"]) for fraction in (0.05, 0.2, 0.21, 0.6, 1.0)]
    assert all(small <= large for small, large in pairwise(samples))


def test_a_subsample_does_not_depend_on_the_order_of_the_rows_but_keeps_it():
    table = table_of({"nv": 60, "mel": 20})
    order = random.Random(0).sample(range(len(table)), len(table))
    shuffled = table.iloc[order].reset_index(drop=True)
    sample = subsample_lesions(shuffled, 0.3)
    assert set(sample["image_id"]) == set(subsample_lesions(table, 0.3)["image_id"])
    assert list(sample["image_id"]) == [i for i in shuffled["image_id"] if i in set(sample["image_id"])]


def test_a_table_with_an_open_quote_is_refused(dataset):
    path = dataset.write_table()
    path.write_text(path.read_text() + '"L9,I9\n')
    with pytest.raises(InputError, match="is not a CSV file"):
        read_metadata(path)
