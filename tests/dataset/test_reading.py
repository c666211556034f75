"""Published datasets as they are downloaded, with no editing: small files of their true columns."""

import csv
import time
from pathlib import Path

import pytest

from stages.dataset.metadata import read_metadata
from stages.dataset.taxonomy import read_taxonomy
from stages.errors import InputError

TAXONOMIES = Path(__file__).parents[2] / "data/taxonomies"

# By dataset: its files, the taxonomy, and what is expected of the rows: image, lesion, diagnosis, and other columns.
HAM10000_HEAD = '"lesion_id"\t"image_id"\t"dx"\t"dx_type"\t"age"\t"sex"\t"localization"\t"dataset"\n'
ISIC_2018_HEAD = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
ARCHIVE_HEAD = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_general,anatom_site_special,concomitant_biopsy,"
    "diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4,diagnosis_5,diagnosis_confirm_type,fitzpatrick_skin_type,"
    "image_type,lesion_id,melanocytic,patient_id,sex\n"
)
PAD_HEAD = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,skin_cancer_history,"
    "cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,diameter_1,diameter_2,diagnostic,itch,grew,"
    "hurt,changed,bleed,elevation,img_id,biopsed\n"
)
DERM7PT_HEAD = (
    "case_num,diagnosis,seven_point_score,pigment_network,streaks,pigmentation,regression_structures,dots_and_globules,"
    "blue_whitish_veil,vascular_structures,level_of_diagnostic_difficulty,elevation,location,sex,management,clinic,"
    "derm,case_id,notes\n"
)
DATASETS = {
    "HAM10000 of Dataverse": (
        "ham10000",
        {
            "HAM10000_metadata.tab": HAM10000_HEAD
            + '"HAM_0000118"\t"ISIC_0027419"\t"bkl"\t"histo"\t80.0\t"male"\t"scalp"\t"vidir_modern"\n'
            + '"HAM_0000118"\t"ISIC_0025030"\t"bkl"\t"histo"\t\t"male"\t"scalp"\t"vidir_modern"\n',
            "ISIC2018_Task3_Test_GroundTruth.tab": '"lesion_id"\t"image_id"\n"X"\t"Y"\n',
        },
        [
            ("ISIC_0027419", "HAM_0000118", "bkl", {"age": 80, "dataset": "vidir_modern"}),
            ("ISIC_0025030", "HAM_0000118", "bkl", {"age": None, "localization": "scalp"}),
        ],
    ),
    "HAM10000 of Kaggle": (
        "ham10000",
        {
            "HAM10000_metadata.csv": "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
            "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp\n",
            "hmnist_8_8_L.csv": "pixel0000,label\n169,2\n",
        },
        [("ISIC_0027419", "HAM_0000118", "bkl", {"dx_type": "histo"})],
    ),
    "ISIC 2016, training": (
        "malignancy",
        {"ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "ISIC_0000000,benign\nISIC_0000002,malignant\n"},
        [("ISIC_0000000", "ISIC_0000000", "benign", {}), ("ISIC_0000002", "ISIC_0000002", "malignant", {})],
    ),
    "ISIC 2016, test": (
        "malignancy",
        {"ISBI2016_ISIC_Part3_Test_GroundTruth.csv": "ISIC_0000003,0.0\nISIC_0000012,1.0\n"},
        [("ISIC_0000003", "ISIC_0000003", "benign", {}), ("ISIC_0000012", "ISIC_0000012", "malignant", {})],
    ),
    "ISIC 2017, two parts": (
        "ham10000",
        {
            "ISIC-2017_Training_Data_metadata.csv": "image_id,age_approximate,sex\nISIC_0000000,55,female\n"
            "ISIC_0000002,unknown,unknown\n",
            "ISIC-2017_Training_Part3_GroundTruth.csv": "image_id,melanoma,seborrheic_keratosis\nISIC_0000000,0.0,0.0\n"
            "ISIC_0000002,1.0,0.0\n",
            "ISIC-2017_Validation_Data_metadata.csv": "image_id,age_approximate,sex\nISIC_0001769,25,male\n",
            "ISIC-2017_Validation_Part3_GroundTruth.csv": "image_id,melanoma,seborrheic_keratosis\n"
            "ISIC_0001769,0.0,1.0\n",
        },
        [
            ("ISIC_0000000", "ISIC_0000000", "nv", {"age": 55, "sex": "female"}),
            ("ISIC_0000002", "ISIC_0000002", "mel", {"age": None, "sex": "unknown"}),
            ("ISIC_0001769", "ISIC_0001769", "bkl", {"age": 25}),
        ],
    ),
    "ISIC 2018": (
        "ham10000",
        {
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": ISIC_2018_HEAD
            + "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_0024307,0.0,0.0,0.0,1.0,0.0,0.0,0.0\n"
        },
        [("ISIC_0024306", "ISIC_0024306", "nv", {}), ("ISIC_0024307", "ISIC_0024307", "akiec", {})],
    ),
    "ISIC 2018 with its lesions": (
        "ham10000",
        {
            "ISIC2018_Task3_Training_GroundTruth.csv": ISIC_2018_HEAD + "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n",
            "ISIC2018_Task3_Training_LesionGroupings.csv": "image,lesion_id,diagnosis_confirm_type\n"
            "ISIC_0024306,HAM_0000550,serial imaging showing no change\n",
        },
        [("ISIC_0024306", "HAM_0000550", "nv", {"dx_type": "follow_up"})],
    ),
    "ISIC 2019": (
        "isic2019",
        {
            "ISIC_2019_Training_Metadata.csv": "image,age_approx,anatom_site_general,lesion_id,sex\n"
            "ISIC_0000000,55.0,anterior torso,,female\nISIC_0024306,,,HAM_0000118,\n",
            "ISIC_2019_Training_GroundTruth.csv": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
            "ISIC_0000000,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\nISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n",
        },
        [("ISIC_0000000", "ISIC_0000000", "scc", {"sex": "female"}), ("ISIC_0024306", "HAM_0000118", "nv", {})],
    ),
    "ISIC 2020, as benign and malignant": (
        "malignancy",
        {
            "ISIC_2020_Training_GroundTruth.csv": "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,"
            "diagnosis,benign_malignant,target\nISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0\n"
            "ISIC_0149568,IP_0962375,female,55.0,upper extremity,melanoma,malignant,1\n",
            "ISIC_2020_Training_Duplicates.csv": "image_name_1,image_name_2\nISIC_2637011,ISIC_0015719\n",
        },
        [
            ("ISIC_2637011", "IP_7279968", "benign", {"localization": "head/neck"}),
            ("ISIC_0149568", "IP_0962375", "malignant", {"age": 55}),
        ],
    ),
    "ISIC 2024": (
        "malignancy",
        {
            "train-metadata.csv": "isic_id,target,patient_id,age_approx,sex,anatom_site_general,tbp_lv_location,"
            "attribution,lesion_id,iddx_full,iddx_1,iddx_2,iddx_3,iddx_4,iddx_5,mel_mitotic_index\n"
            'ISIC_0015670,0,IP_1235828,60.0,male,lower extremity,Right Leg,"MSK, New York",,Benign,Benign,,,,,\n'
            "ISIC_0015845,1,IP_8170065,60.0,male,head/neck,Head & Neck,MSK,IL_6727506,Malignant::Melanoma,Malignant,"
            "Malignant melanocytic proliferations (Melanoma),Melanoma in situ,,,\n"
        },
        [
            ("ISIC_0015670", "IP_1235828", "benign", {"age": 60}),
            ("ISIC_0015845", "IP_8170065", "malignant", {"localization": "head/neck"}),
        ],
    ),
    "ISIC 2024, the challenge's own table": (
        "malignancy",
        {"ISIC_2024_Training_GroundTruth.csv": "isic_id,malignant\nISIC_0015670,0.0\nISIC_0015845,1.0\n"},
        [("ISIC_0015670", "ISIC_0015670", "benign", {}), ("ISIC_0015845", "ISIC_0015845", "malignant", {})],
    ),
    "an export of the ISIC archive": (
        "ham10000",
        {
            "ISIC-images/metadata.csv": ARCHIVE_HEAD
            + "ISIC_0024306,ViDIR,CC-BY-NC,45,posterior torso,,False,Benign,Benign melanocytic proliferations,Nevus,,,"
            "serial imaging showing no change,II,dermoscopic,IL_7252831,True,,male\n"
            + "ISIC_0034323,ViDIR,CC-BY-NC,70,,,True,Malignant,Malignant adnexal proliferations - Follicular,"
            'Basal cell carcinoma,"Basal cell carcinoma, Nodular",,histopathology,,dermoscopic,IL_0000001,False,,\n'
        },
        [
            ("ISIC_0024306", "IL_7252831", "nv", {"skin_type": "II", "dx_type": "follow_up"}),
            ("ISIC_0034323", "IL_0000001", "bcc", {"skin_type": "unknown", "dx_type": "histo"}),
        ],
    ),
    "PAD-UFES-20": (
        "pad_ufes_20",
        {
            "metadata.csv": PAD_HEAD
            + "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,FALSE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_1516_1765_530.png,False\n"
            + "PAT_46,881,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,,3.0,NECK,6.0,5.0,BCC,True,"
            "True,False,True,True,True,PAT_46_881_939.png,True\n"
        },
        [
            ("PAT_1516_1765_530", "1765", "nev", {"skin_type": "unknown", "sex": "unknown", "dx_type": "consensus"}),
            ("PAT_46_881_939", "881", "bcc", {"skin_type": "III", "sex": "female", "localization": "NECK"}),
        ],
    ),
    "Derm7pt": (
        "derm7pt",
        {
            "release_v0/meta/meta.csv": DERM7PT_HEAD
            + "1,basal cell carcinoma,0,absent,absent,absent,absent,absent,absent,arborizing,medium,nodular,abdomen,"
            'female,excision,NEL/NEL028.jpg,NEL/NEL025.jpg,,"round, red"\n'
            + "2,melanoma (less than 0.76 mm),1,typical,absent,absent,absent,absent,absent,absent,low,flat,head neck,"
            "male,excision,Acl/Acl003.jpg,Aal/Aal002.jpg,,\n"
            + "3,reed or spitz nevus,1,typical,absent,absent,absent,absent,absent,absent,low,flat,back,male,excision,"
            "Acl/Acl004.jpg,Aal/Aal003.jpg,,\n",
            "release_v0/meta/train_indexes.csv": "indexes\n0\n1\n",
        },
        [
            ("NEL025", "NEL025", "bcc", {"localization": "abdomen", "sex": "female"}),
            ("Aal002", "Aal002", "mel_to_0_76_mm", {"localization": "head neck"}),
            ("Aal003", "Aal003", "reed_spitz_nevus", {"localization": "back"}),
        ],
    ),
}


def taxonomy_of(name):
    return read_taxonomy(TAXONOMIES / f"{name}.yaml")


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("name", DATASETS)
def test_a_published_dataset_is_read_as_it_is_downloaded(tmp_path, name):
    taxonomy, files, expected = DATASETS[name]
    write(tmp_path, files)
    table, problems, _ = read_metadata(tmp_path, taxonomy_of(taxonomy))
    assert problems == []
    assert [tuple(row) for row in table[["image_id", "lesion_id", "dx"]].to_numpy()] == [row[:3] for row in expected]
    for (_, row), (*_, columns) in zip(table.iterrows(), expected):
        for column, value in columns.items():
            assert (row[column] == value) if value is not None else row[column] != row[column], column


def test_skin_types_are_there_only_where_one_is_known(tmp_path):
    _, files, _ = DATASETS["HAM10000 of Kaggle"]
    write(tmp_path, files)
    assert "skin_type" not in read_metadata(tmp_path, taxonomy_of("ham10000"))[0]


def test_tables_that_name_no_image_are_passed_over_and_named(tmp_path):
    taxonomy, files, _ = DATASETS["Derm7pt"]
    write(tmp_path, files)
    notes = read_metadata(tmp_path, taxonomy_of(taxonomy))[2]
    assert notes[0] == "passed over release_v0/meta/train_indexes.csv, which name no image of the dataset"


def test_the_finest_label_that_the_taxonomy_knows_counts(tmp_path):
    """Of a nevus that the archive calls benign, and of a benign lesion that is nothing more."""
    _, files, _ = DATASETS["ISIC 2020, as benign and malignant"]
    write(tmp_path, files)
    table, problems, _ = read_metadata(tmp_path, taxonomy_of("ham10000"))
    assert list(table["dx"]) == ["mel"]
    assert len(problems) == 1
    assert "row 2: unknown diagnosis 'benign'; dx must be one of akiec" in problems[0]
    table, problems, _ = read_metadata(tmp_path, taxonomy_of("ham10000"), classes={"benign": "nv"})
    assert (list(table["dx"]), problems) == (["nv", "mel"], [])


@pytest.mark.parametrize("cell", ["", "unknown", "NA", "N/A", "nan", "None", "NULL", "Unknown"])
def test_one_notion_of_unknown_holds_in_every_optional_column(tmp_path, cell):
    columns = ["patient_id", "lesion_id", "age_approx", "gender", "location", "fitspatrick", "diagnosis_confirm_type"]
    write(tmp_path, {"table.csv": f"image,diagnosis,dataset,{','.join(columns)}\nA,nv,{','.join([cell] * 8)}\n"})
    table, problems, notes = read_metadata(tmp_path, taxonomy_of("ham10000"))
    assert problems == []
    row = table.iloc[0]
    assert row["lesion_id"] == "A"
    assert row["age"] != row["age"]
    assert {row[column] for column in ("sex", "localization", "dx_type", "dataset")} == {"unknown"}
    assert "skin_type" not in table
    assert notes == ["table.csv: 1 of 1 images have no lesion_id; each counts as a separate lesion"]


def test_images_of_a_part_that_is_there_twice_are_refused(tmp_path):
    text = "image_id,melanoma,seborrheic_keratosis\nISIC_0000000,0.0,0.0\n"
    write(tmp_path, {"a.csv": text, "b.csv": text})
    with pytest.raises(InputError, match=r"must hold one CSV table, or .*; found a.csv, b.csv"):
        read_metadata(tmp_path, taxonomy_of("ham10000"))


def test_a_table_of_hundreds_of_thousands_of_rows_is_read_as_fast_as_it_is_parsed(tmp_path):
    """Ten times as long as the parser alone would be a loop over the rows; measured against it, not against a clock."""
    rows = 40_000
    lines = [
        f"ISIC_{number:07d},{number % 2},IP_{number // 50},{number % 90}.0,male,lower extremity,{'x,' * 20}"
        for number in range(rows)
    ]
    header = f"isic_id,target,patient_id,age_approx,sex,anatom_site_general,{','.join(f'tbp_{n}' for n in range(21))}"
    path = tmp_path / "train-metadata.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    start = time.process_time()
    with path.open(newline="") as file:
        parsed = [list(fields) for fields in csv.reader(file)]
    parsing = time.process_time() - start
    taxonomy = taxonomy_of("malignancy")
    start = time.process_time()
    table, problems, _ = read_metadata(tmp_path, taxonomy)
    assert (len(table), problems) == (rows, [])
    assert time.process_time() - start < 10 * parsing + 0.3, len(parsed)
