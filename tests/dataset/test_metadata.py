import math
import random
from itertools import pairwise

import pandas as pd
import pytest

from benchmarks.plain import HAM10000
from stages.dataset.metadata import find_tables, read_metadata, subsample_lesions
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


def read(path, columns=None, classes=None):
    return read_metadata(path.parent, HAM10000, columns, classes)


def test_a_table_without_a_mistake_is_read_in_its_order(dataset):
    dataset.rows.reverse()
    table, problems, _ = read(dataset.write_table())
    assert problems == []
    assert list(table["image_id"]) == dataset.ids
    assert list(table["age"]) == [55.0] * 12
    assert set(table["localization"]) == {"lower extremity"}


@pytest.mark.parametrize("cell", ["", "unknown", "NA", "N/A", "nan", "None", "NULL"])
def test_empty_cells_are_unknown(dataset, cell):
    dataset.rows[0] |= {"age": cell, "sex": cell, "dataset": cell}
    table, problems, _ = read(dataset.write_table())
    assert problems == []
    assert math.isnan(table["age"][0])
    assert table["sex"][0] == table["dataset"][0] == "unknown"


def test_an_image_id_may_have_its_ending_and_a_diagnosis_any_case(dataset):
    ids = dataset.ids
    dataset.rows[0] |= {"image_id": f"{ids[0]}.JPG", "dx": "NV"}
    table, problems, _ = read(dataset.write_table())
    assert problems == []
    assert (table["image_id"][0], table["dx"][0]) == (ids[0], "nv")


def test_the_dataset_column_may_be_missing_and_the_order_of_the_columns_is_free(dataset):
    columns = ["dx", "image_id", "lesion_id", "localization", "sex", "age", "dx_type"]
    table, problems, _ = read(dataset.write_table(columns=columns))
    assert problems == []
    pd.testing.assert_frame_equal(table, read(dataset.write_table())[0])


@pytest.mark.parametrize(
    "name", ["HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "my_table.csv", "deep/META.CSV"]
)
def test_the_table_is_found_by_its_name_or_as_the_only_one(dataset, name):
    (dataset.folder / "deep").mkdir()
    path = dataset.write_table(name)
    assert find_tables(dataset.folder) == [path]


def test_other_tables_beside_ham10000_s_do_not_matter(dataset):
    dataset.write_table("other.csv")
    path = dataset.write_table()
    assert find_tables(dataset.folder) == [path]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dx": "naevus"}, "unknown diagnosis 'naevus'; dx must be one of akiec, bcc, bkl, df, mel, nv, vasc"),
        ({"dx": ""}, "unknown diagnosis ''"),
        ({"age": "old"}, "age is 'old'; it must be years from 0 to 120, or empty"),
        ({"age": "-5"}, "age is '-5'"),
        ({"age": "200"}, "age is '200'"),
        ({"age": "inf"}, "age is 'inf'"),
        ({"image_id": ""}, "image_id is ''"),
        ({"image_id": "../I000"}, "image_id is '../I000'"),
        ({"lesion_id": "a b"}, "lesion_id is 'a b'"),
        ({"lesion_id": ""}, "lesion_id is ''"),
        ({"sex": "<b>"}, "sex is '<b>'; it must be plain words"),
        ({"image_id": "I000"}, "image_id I000 is a duplicate of row 2"),
        ({"dx": "mel"}, "lesion L002 is mel here and bkl above"),
    ],
)
def test_a_bad_cell_is_named_with_its_row_and_leaves_the_other_rows_usable(dataset, change, expected):
    dataset.rows[5] |= change
    table, problems, _ = read(dataset.write_table())
    assert len(problems) == 1
    assert problems[0].startswith(f"HAM10000_metadata.csv row 7: {expected}")
    assert set(dataset.ids[:5] + dataset.ids[6:]) <= set(table["image_id"])


@pytest.mark.parametrize("cells", ["L9,I9,nv,histo,5,male", "L9,I9,nv,histo,5,male,back,unknown,more"])
def test_a_row_with_another_number_of_fields_is_named(dataset, cells):
    path = dataset.write_table()
    path.write_text(path.read_text() + cells + "\n")
    table, problems, _ = read(path)
    assert problems == [f"HAM10000_metadata.csv row 14: {cells.count(',') + 1} fields; the header has 8"]
    assert len(table) == 12


def test_a_table_of_a_header_alone_has_no_rows(dataset):
    dataset.rows.clear()
    assert read(dataset.write_table())[1] == ["HAM10000_metadata.csv: no rows; one for each image is needed"]


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
        read(path)


def write(folder, name, text, encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


ISIC_2019 = """image,age_approx,anatom_site_general,lesion_id,sex
ISIC_0000000,55,anterior torso,,female
ISIC_0024306,,head/neck,HAM_0000118,male
ISIC_0024307_downsampled,30.0,,HAM_0000118,
"""
ISIC_2019_TRUTH = """image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK
ISIC_0024306,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0
ISIC_0024307_downsampled,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0
"""
ISIC_2020 = """image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,\
benign_malignant,target
ISIC_1,IP_1,IL_1,male,45,head/neck,nevus,benign,0
ISIC_2,IP_1,IL_2,NA,NA,palms/soles,seborrheic keratosis,benign,0
ISIC_3,IP_2,IL_3,female,50,oral/genital,melanoma,malignant,1
"""


@pytest.fixture
def isic2019(tmp_path):
    """A function that writes the two tables of ISIC 2019; the path of the metadata."""

    def make(metadata=ISIC_2019, truth=ISIC_2019_TRUTH, encoding="utf-8"):
        write(tmp_path / "isic", "ISIC_2019_Training_GroundTruth.csv", truth, encoding)
        path = write(tmp_path / "isic", "ISIC_2019_Training_Metadata.csv", metadata, encoding)
        return path

    return make


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_isic_2019_is_read_from_its_two_tables(isic2019, encoding):
    table, problems, notes = read(isic2019(encoding=encoding))
    assert problems == []
    assert list(table["image_id"]) == ["ISIC_0000000", "ISIC_0024306", "ISIC_0024307_downsampled"]
    assert list(table["dx"]) == ["nv", "akiec", "akiec"]
    assert list(table["lesion_id"]) == ["ISIC_0000000", "HAM_0000118", "HAM_0000118"]
    assert list(table["sex"]) == ["female", "male", "unknown"]
    assert list(table["localization"]) == ["anterior torso", "head/neck", "unknown"]
    assert table["age"][0] == 55
    assert math.isnan(table["age"][1])
    assert set(table["dx_type"]) == set(table["dataset"]) == {"unknown"}
    assert notes == [
        "ISIC_2019_Training_Metadata.csv: 1 of 3 images have no lesion_id; each counts as a separate lesion"
    ]


def test_a_table_of_diagnoses_alone_is_a_dataset(tmp_path):
    path = write(tmp_path / "isic", "ISIC_2019_Training_GroundTruth.csv", ISIC_2019_TRUTH)
    table, problems, _ = read(path)
    assert problems == []
    assert list(table["dx"]) == ["akiec", "akiec", "nv"]
    assert list(table["lesion_id"]) == list(table["image_id"])


def test_isic_2020_is_read_with_its_lesions(tmp_path):
    table, problems, notes = read(write(tmp_path, "ISIC_2020_Training_GroundTruth_v2.csv", ISIC_2020))
    assert problems == notes == []
    assert list(table["image_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert list(table["dx"]) == ["nv", "bkl", "mel"]
    assert list(table["lesion_id"]) == ["IL_1", "IL_2", "IL_3"]
    assert list(table["localization"]) == ["head/neck", "palms/soles", "oral/genital"]
    assert table["sex"][1] == "unknown"
    assert math.isnan(table["age"][1])


@pytest.mark.parametrize("lesions", ["no column", "one empty"])
def test_without_lesions_isic_2020_is_grouped_by_patient_whose_diagnoses_may_differ(tmp_path, lesions):
    text = ISIC_2020.replace(",IL_2,", ",,")
    if lesions == "no column":
        text = "\n".join(
            ",".join(cell for place, cell in enumerate(row.split(",")) if place != 2) for row in text.split("\n")
        )
    table, problems, notes = read(write(tmp_path, "isic.csv", text))
    assert problems == []
    assert list(table["lesion_id"]) == ["IP_1", "IP_1", "IP_2"]
    missing = 3 if lesions == "no column" else 1
    assert notes == [
        f"isic.csv: {missing} of 3 images have no lesion_id, so all are grouped by patient_id: "
        "a patient counts as a lesion"
    ]


def test_a_lesion_stays_whole_where_only_some_of_its_images_name_the_patient(tmp_path):
    header = "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis"
    rows = ["A,IP_1,IL_1", "B,,IL_1", "C,IP_2,IL_1", "D,IP_2,", "E,,IL_2", "F,,"]
    text = "\n".join([header, *(f"{row},male,40,torso,melanoma" for row in rows)]) + "\n"
    table, problems, _ = read(write(tmp_path, "isic.csv", text))
    assert problems == []
    lesions = dict(zip(table["image_id"], table["lesion_id"]))
    assert lesions["A"] == lesions["B"] == lesions["C"]
    assert [lesions[image_id] for image_id in "DEF"] == ["IP_2", "IL_2", "F"]


OWN = "file,label,years,where,remarks\nA1.JPG,Naevus,40,arm,x\nA2.jpg,basal cell carcinoma,,leg,\nA3.png,1,7,toe,\n"
OWN_COLUMNS = {"image_id": "file", "dx": "label", "age": "years"}


def test_a_mapping_names_the_columns_and_the_diagnoses_of_any_table(tmp_path):
    path = write(tmp_path, "own.csv", OWN)
    table, problems, notes = read(path, OWN_COLUMNS, {"Naevus": "nv", "1": None})
    assert problems == []
    assert list(table["image_id"]) == list(table["lesion_id"]) == ["A1", "A2"]
    assert list(table["dx"]) == ["nv", "bcc"]
    assert table["age"][0] == 40
    assert set(table["localization"]) == {"unknown"}, "where is not mapped"
    assert notes == [
        "own.csv: 3 of 3 images have no lesion_id; each counts as a separate lesion",
        "own.csv: left out 1 image that are to be left out: '1' 1",
    ]


def test_a_label_may_be_mapped_in_ham10000_s_table_too_and_the_rest_stays_strict(dataset):
    dataset.rows[4]["dx"] = dataset.rows[5]["dx"] = "naevus"
    dataset.rows[6]["dx"] = dataset.rows[7]["dx"] = "scar"
    dataset.rows[9]["dx"] = "mole"
    table, problems, notes = read(dataset.write_table(), classes={"naevus": "nv", "scar": None})
    assert [problem[:54] for problem in problems] == ["HAM10000_metadata.csv row 11: unknown diagnosis 'mole'"]
    assert list(table["dx"][4:6]) == ["nv", "nv"]
    assert len(table) == 9
    assert notes == ["HAM10000_metadata.csv: left out 2 images that are to be left out: 'scar' 2"]


def test_a_column_of_ham10000_that_is_not_there_can_be_said_to_be_missing(dataset):
    path = dataset.write_table(columns=["image_id", "dx", "dx_type", "age", "sex", "localization"])
    with pytest.raises(InputError, match=r"column lesion_id is missing; .* or data.columns must name yours"):
        read(path)
    table, problems, notes = read(path, {"lesion_id": None})
    assert problems == []
    assert list(table["lesion_id"]) == dataset.ids
    assert len(notes) == 1


def test_a_mapping_comes_before_what_is_known(tmp_path):
    path = write(tmp_path, "isic.csv", ISIC_2020)
    columns = {"dx": "benign_malignant", "lesion_id": None, "patient_id": None, "localization": None}
    table, problems, notes = read(path, columns, {"benign": "nv", "malignant": "mel"})
    assert problems == []
    assert list(table["dx"]) == ["nv", "nv", "mel"]
    assert list(table["lesion_id"]) == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert set(table["localization"]) == {"unknown"}
    assert len(notes) == 1


def test_each_unknown_label_is_one_line_with_what_to_write(isic2019):
    truth = ISIC_2019_TRUTH.replace("1.0,0.0,0.0,0.0,0.0,0.0\n", "0.0,0.0,0.0,0.0,1.0,0.0\n")
    table, problems, _ = read(isic2019(truth=truth))
    assert list(table["dx"]) == ["nv"]
    assert problems == [
        "ISIC_2019_Training_Metadata.csv row 3: unknown diagnosis 'SCC'; dx must be one of akiec, bcc, bkl, df, mel, "
        "nv, vasc: data.classes can say which, as {SCC: akiec}, or {SCC: null} to leave out the images so labelled (2)"
    ]


@pytest.mark.parametrize(
    ("metadata", "truth", "expected"),
    [
        (("HAM_0000118,male", "HAM_0000118,<b>"), None, "Metadata.csv row 3: sex is '<b>'"),
        (("55,", "5 5,"), None, "Metadata.csv row 2: age is '5 5'"),
        (("ISIC_0000000", "../x"), None, "Metadata.csv row 2: '../x' is not in ISIC_2019_Training_GroundTruth.csv"),
        (
            ("ISIC_0000000,55,anterior torso,,female\n", ""),
            None,
            "GroundTruth.csv row 4: 'ISIC_0000000' is not in ISIC",
        ),
        (("ISIC_0000000", "ISIC_0024306"), None, "row 3: image_id ISIC_0024306 is a duplicate of row 2"),
        (None, ("0000000,0.0,1.0", "0000000,1.0,1.0"), "GroundTruth.csv row 4: MEL and NV are 1; exactly one must be"),
        (
            None,
            ("0000000,0.0,1.0", "0000000,0.0,0.0"),
            "GroundTruth.csv row 4: none of MEL, NV, BCC, AK, BKL, DF, VASC",
        ),
        (None, ("0000000,0.0,1.0", "0000000,0.3,0.7"), "row 4: MEL is '0.3', NV is '0.7'; it must be 0 or 1"),
        (None, ("0000000,0.0,1.0", "0000000,,1.0"), "GroundTruth.csv row 4: MEL is ''; it must be 0 or 1"),
        (None, ("ISIC_0000000", "ISIC_0024306"), "GroundTruth.csv row 4: 'ISIC_0024306' is a duplicate of row 2"),
        (None, ("ISIC_0000000,0.0", "ISIC_0000000"), "GroundTruth.csv row 4: 9 fields; the header has 10"),
    ],
)
def test_a_bad_row_of_isic_s_tables_is_named_with_its_file_and_value(isic2019, metadata, truth, expected):
    path = isic2019(
        metadata=ISIC_2019.replace(*metadata) if metadata else ISIC_2019,
        truth=ISIC_2019_TRUTH.replace(*truth) if truth else ISIC_2019_TRUTH,
    )
    _, problems, _ = read(path)
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("ISIC_2019_Training_") for problem in problems)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (OWN, {}, "column lesion_id is missing"),
        (OWN, {"dx": "label"}, "no column is known to hold image_id; name it in data.columns, as {image_id: file}"),
        (OWN, {"image_id": "file"}, "no column is known to hold the diagnosis; name it in data.columns"),
        (OWN, OWN_COLUMNS | {"age": "alter"}, "data.columns.age is 'alter', which is not one of its columns"),
        (OWN, OWN_COLUMNS | {"diagnosis": "label"}, "data.columns.diagnosis is not a column of ours; those are"),
        (OWN, OWN_COLUMNS | {"image_id": None}, "no column is known to hold image_id"),
        (OWN.replace("where", "label"), OWN_COLUMNS, "column label is duplicated"),
        (OWN.replace(",", ";"), OWN_COLUMNS, "its header is 'file;label;years;where;remarks', where commas"),
        (
            ISIC_2020.replace("target", "image"),
            {},
            "image_name and image may both be image_id: say which in data.columns",
        ),
        ("", OWN_COLUMNS, "its header is '', where commas must separate the columns"),
        ("\x00", OWN_COLUMNS, "its header is '\\x00', where commas must separate the columns"),
        ("\x1b,b\n", OWN_COLUMNS, "its columns are '\\x1b', b"),
        (",".join(map(str, range(10**4))), OWN_COLUMNS, "its columns are 0, 1, 2, 3,"),
        ('file,"label', OWN_COLUMNS, "is not a CSV file in UTF-8: unexpected end of data, in line 1"),
    ],
)
def test_a_table_whose_columns_are_not_clear_is_refused(tmp_path, text, columns, expected):
    path = write(tmp_path, "own.csv", text)
    with pytest.raises(InputError) as caught:
        read(path, columns)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value) or expected.startswith("data.columns.diagnosis")


def test_a_table_of_diagnoses_without_its_image_column_is_named(isic2019):
    path = isic2019(truth=ISIC_2019_TRUTH.replace("image,", "picture,"))
    with pytest.raises(InputError, match=r"hold the diagnosis; .*passed over ISIC_2019_Training_GroundTruth.csv"):
        read(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_named_with_its_line(tmp_path, encoding):
    path = write(tmp_path, "own.csv", OWN.replace("toe", "Zehenn\u00e4gel"), encoding)
    with pytest.raises(
        InputError, match=f"own.csv is not a CSV file in UTF-8: .*in line {4 if encoding == 'latin-1' else 1}"
    ):
        read(path, OWN_COLUMNS)


def test_a_diagnosis_that_there_is_not_is_refused(dataset):
    with pytest.raises(InputError, match=r"data.classes maps 'SCC' to 'scc'; it must be one of akiec, .* or null"):
        read(dataset.write_table(), classes={"SCC": "scc"})


def test_tables_that_cannot_be_joined_are_named(tmp_path):
    for name, text in (("a.csv", "image,dx\nI1,nv\n"), ("b.csv", "image,diagnosis\nI1,nv\n"), ("c.csv", "x\n")):
        write(tmp_path, name, text)
    with pytest.raises(InputError, match=r"must hold one CSV table, or .*; found a.csv, b.csv$"):
        read(tmp_path / "a.csv")
