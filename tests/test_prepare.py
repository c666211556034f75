import csv
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.plain import PLAIN
from stages import prepare
from stages.dataset import pixels
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.files import PREPARED
from stages.prepare import prepare_dataset

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def decoded_at_once(monkeypatch):
    """So few that the images of a test are work for several processes."""
    monkeypatch.setattr(prepare, "DECODED_AT_ONCE", 5)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


def prepared(dataset, output, num_workers=2, **settings):
    config = replace(PLAIN.data, **{"data_dir": str(dataset.folder), "image_size": 16} | settings)
    return prepare_dataset(config, output, num_workers)


def refusal(dataset, output):
    with pytest.raises(InputError) as caught:
        prepared(dataset, output)
    return str(caught.value)


def lay_out(dataset, layout):
    if layout == "one folder":
        dataset.write_images()
    elif layout == "two folders":
        dataset.write_parts()
    elif layout == "two archives":
        dataset.write_zips()
    elif layout == "archives beside what they unpack to":
        dataset.write_zips()
        dataset.write_parts()
    elif layout == "one archive unpacked, one not":
        dataset.write_zips()
        dataset.write_images("HAM10000_images_part_1", part=slice(0, 7))
    elif layout == "upper-case endings":
        dataset.write_images("images", ending=".JPG")


@pytest.mark.parametrize(
    "layout",
    [
        "two folders",
        "two archives",
        "archives beside what they unpack to",
        "one archive unpacked, one not",
        "upper-case endings",
    ],
)
def test_every_layout_gives_the_same_bytes(dataset, output, tmp_path, bytes_below, layout):
    dataset.write_table()
    lay_out(dataset, "one folder")
    prepared(dataset, output)
    for path in dataset.folder.glob("*.jpg"):
        path.unlink()
    lay_out(dataset, layout)
    prepared(dataset, tmp_path / "again")
    assert bytes_below(tmp_path / "again") == bytes_below(output)
    assert set(bytes_below(output)) == {"manifest.csv", "pixels-00000.npy", "taxonomy.json"}


@pytest.mark.parametrize("table", ["without the dataset column", "with a byte order mark", "without .csv"])
def test_every_form_of_the_table_gives_the_same_bytes(written_dataset, output, tmp_path, bytes_below, table):
    prepared(written_dataset, output)
    (written_dataset.folder / "HAM10000_metadata.csv").unlink()
    if table == "without the dataset column":
        written_dataset.write_table(columns=[name for name in written_dataset.rows[0] if name != "dataset"])
    elif table == "with a byte order mark":
        written_dataset.write_table(encoding="utf-8-sig")
    else:
        written_dataset.write_table("HAM10000_metadata")
    prepared(written_dataset, tmp_path / "again")
    assert bytes_below(tmp_path / "again") == bytes_below(output)


@pytest.mark.parametrize(("kind", "ending"), [("JPEG", ".jpg"), ("JPEG", ".jpeg"), ("PNG", ".png"), ("PNG", ".PNG")])
def test_each_row_of_the_manifest_has_the_pixels_of_its_image(dataset, output, kind, ending):
    dataset.write_table()
    dataset.write_images(kind=kind, ending=ending)
    manifest = prepared(dataset, output, image_size=24)
    store = PixelStore(output)
    assert store.image_size == 24
    assert list(store.manifest["image_id"]) == list(manifest["image_id"]) == dataset.ids
    images = store.read(np.arange(12)).astype(int)
    for number, image in enumerate(images):
        assert np.abs(image - dataset.colour(number)).max() <= 4


def test_the_manifest_has_the_metadata(written_dataset, output):
    written_dataset.rows[0] |= {"age": ""}
    written_dataset.write_table()
    prepared(written_dataset, output)
    manifest = PixelStore(output).manifest
    assert np.isnan(manifest["age"][0])
    assert manifest["age"][1] == 55
    for name in ("lesion_id", "dx", "dx_type", "sex", "localization"):
        assert list(manifest[name]) == [row[name] for row in written_dataset.rows]


@pytest.mark.parametrize("workers", [1, 7, None])
def test_the_number_of_workers_does_not_change_the_bytes(written_dataset, output, tmp_path, bytes_below, workers):
    prepared(written_dataset, output, num_workers=2)
    prepared(written_dataset, tmp_path / "again", num_workers=workers)
    assert bytes_below(tmp_path / "again") == bytes_below(output)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode")
def test_a_process_that_is_killed_while_it_decodes_is_told(written_dataset, output, monkeypatch):
    parent = os.getpid()

    def decode(*_):
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(prepare, "decode_square", decode)
    assert "a process that decodes images was killed" in refusal(written_dataset, output)
    assert not output.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode")
def test_processes_that_decode_end_with_a_stage_that_is_killed(tmp_path):
    code = "import os, time\nfrom stages.forks import forked_processes\n"
    code += "with forked_processes(2, int) as pool:\n    "
    code += "print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)\n    time.sleep(60)"
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    decoding = [psutil.Process(int(pid)) for pid in stage.stdout.readline().split()]
    stage.kill()
    stage.wait()
    _, left = psutil.wait_procs(decoding, timeout=30)
    assert decoding
    assert not left


def test_images_added_at_the_end_leave_the_full_shards_as_they_were(
    written_dataset, output, tmp_path, bytes_below, monkeypatch
):
    monkeypatch.setattr(pixels, "IMAGES_PER_SHARD", 5)
    prepared(written_dataset, output)
    for _ in range(6):
        written_dataset.add()
    written_dataset.write_table()
    written_dataset.write_images()
    prepared(written_dataset, tmp_path / "grown")
    before, after = bytes_below(output), bytes_below(tmp_path / "grown")
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.csv",
        "pixels-00002.npy",
        "pixels-00003.npy",
    }
    assert after["manifest.csv"].startswith(before["manifest.csv"])


def test_a_subsample_needs_only_its_own_images_and_has_whole_lesions(written_dataset, output):
    manifest = prepared(written_dataset, output, subsample_percentage=0.5)
    assert len(manifest) == 6
    assert set(manifest["dx"]) == {"nv", "mel", "bkl"}
    assert set(manifest.groupby("lesion_id").size()) == {2}
    for image_id in set(written_dataset.ids) - set(manifest["image_id"]):
        (written_dataset.folder / f"{image_id}.jpg").unlink()
    assert prepared(written_dataset, output, subsample_percentage=0.5).equals(manifest)


def test_a_smaller_dataset_leaves_no_shard_of_the_larger_one(written_dataset, output, bytes_below, monkeypatch):
    monkeypatch.setattr(pixels, "IMAGES_PER_SHARD", 5)
    prepared(written_dataset, output)
    del written_dataset.rows[4:]
    written_dataset.write_table()
    prepared(written_dataset, output)
    assert set(bytes_below(output)) == {"manifest.csv", "pixels-00000.npy", "taxonomy.json"}


def spoil_everything(dataset, huge_png):
    """Make every mistake that rows, images and archives can have; return what each must be reported with."""
    for _ in range(8):
        dataset.add()
    rows, folder = dataset.rows, dataset.folder
    dataset.write_images()
    rows[0]["dx"] = "naevus"
    rows[1]["age"] = "old"
    rows[2]["lesion_id"] = rows[4]["lesion_id"]
    rows[3]["image_id"] = rows[2]["image_id"]
    with dataset.write_table().open("a") as table:
        table.write("L099,I099,nv\n")
    jpeg = folder / "I006.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-150])
    (folder / "I007.jpg").write_text("image_id,dx\n")
    (folder / "I008.jpg").write_bytes(b"")
    (folder / "I009.jpg").write_bytes(dataset.picture(9, size=(15, 15)))
    (folder / "I010.jpg").unlink()
    (folder / "I010.png").write_bytes(huge_png)
    (folder / "I011.jpg").unlink()
    (folder / "again").mkdir()
    shutil.copy(folder / "I012.jpg", folder / "again" / "I012.jpg")
    (folder / "part.zip").write_bytes(b"PK\x03\x04 and no more")
    return [
        "row 2: unknown diagnosis 'naevus'",
        "row 3: age is 'old'",
        "row 5: image_id I002 is a duplicate of row 4",
        "row 6: lesion L002 is bkl here and mel above",
        "row 22: 3 fields; the header has 8",
        "I006.jpg: is truncated or damaged",
        "I007.jpg: is not a JPEG, PNG, BMP, TIFF or WebP image",
        "I008.jpg: is not a JPEG, PNG, BMP, TIFF or WebP image",
        "I009.jpg: is 15×15 pixels",
        "I010.png: is of an absurd size",
        "I011: no image file of this name",
        "I012.jpg: the same image id as",
        "part.zip: not a readable zip archive",
    ]


def test_all_problems_are_reported_together_and_the_old_output_stays(
    written_dataset, output, tmp_path, bytes_below, png_of
):
    prepared(written_dataset, output)
    before = bytes_below(output)
    expected = spoil_everything(written_dataset, png_of(10**5, 10**5))
    message = refusal(written_dataset, output)
    for problem in expected:
        assert problem in message
    assert str(written_dataset.folder) in message
    assert bytes_below(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "prepared"]


def test_a_problem_leaves_no_output_where_there_was_none(written_dataset, output, tmp_path):
    (written_dataset.folder / "I003.jpg").unlink()
    message = refusal(written_dataset, output)
    assert "has 1 problem:\n  I003: no image file of this name" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_an_image_that_cannot_be_used_is_named_with_its_archive(dataset, output):
    dataset.write_table()
    with zipfile.ZipFile(dataset.folder / "images.zip", "w") as archive:
        for image_id in dataset.ids:
            archive.writestr(f"{image_id}.jpg", b"no image")
    message = refusal(dataset, output)
    assert "has 12 problems:" in message
    assert f"{dataset.folder}/images.zip:I000.jpg: is not a JPEG, PNG, BMP, TIFF or WebP image" in message


def test_a_long_list_of_problems_is_cut(written_dataset, output, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_PROBLEMS_SHOWN", 3)
    for path in written_dataset.folder.glob("*.jpg"):
        path.unlink()
    message = refusal(written_dataset, output)
    assert "has 12 problems:" in message
    assert message.count(": no image file of this name") == 3
    assert message.endswith("… and 9 more; in all 12 × no image file of this name")


def break_the_dataset(dataset, mistake):
    table = dataset.folder / "HAM10000_metadata.csv"
    columns = list(dataset.rows[0])
    if mistake == "column missing":
        dataset.write_table(columns=[name for name in columns if name != "age"])
    elif mistake == "column not known":
        dataset.write_table(columns=[*columns, "weight"])
    elif mistake == "column twice":
        dataset.write_table(columns=[*columns, "dx"])
    elif mistake == "not UTF-8":
        dataset.rows[0]["localization"] = "Fuß"
        dataset.write_table(encoding="latin-1")
    elif mistake == "a spreadsheet":
        table.write_bytes(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xfe" * 20)
    elif mistake == "empty":
        table.write_bytes(b"")
    elif mistake == "header alone":
        dataset.rows.clear()
        dataset.write_table()
    elif mistake == "no table":
        table.unlink()
    elif mistake == "two tables":
        table.rename(dataset.folder / "one.csv")
        dataset.write_table("two.csv")
    elif mistake == "no folder":
        shutil.rmtree(dataset.folder)


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("column missing", "column age is missing; expected are lesion_id, image_id, dx"),
        ("column not known", "column 'weight' is not known; expected are lesion_id, image_id, dx"),
        ("column twice", "column dx is duplicated"),
        ("not UTF-8", "HAM10000_metadata.csv is not a CSV file in UTF-8"),
        ("a spreadsheet", "HAM10000_metadata.csv is not a CSV file in UTF-8"),
        ("empty", "column lesion_id is missing"),
        ("header alone", "HAM10000_metadata.csv: no rows"),
        ("no table", "HAM10000_metadata.csv among several; found no CSV file"),
        ("two tables", "HAM10000_metadata.csv among several; found one.csv, two.csv"),
        ("no folder", "there is no such directory"),
    ],
)
def test_a_dataset_without_a_usable_table_is_refused_and_the_old_output_stays(
    written_dataset, output, bytes_below, mistake, expected
):
    prepared(written_dataset, output)
    before = bytes_below(output)
    break_the_dataset(written_dataset, mistake)
    message = refusal(written_dataset, output)
    assert expected in message
    assert str(written_dataset.folder) in message
    assert bytes_below(output) == before


def test_the_command_ends_with_one_message_and_no_traceback(written_dataset, params, tmp_path):
    (written_dataset.folder / "I003.jpg").write_text("no image")
    written_dataset.rows[7]["dx"] = "naevus"
    written_dataset.write_table()
    params({"data.data_dir": "dataset", "data.image_size": "16"})
    result = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: dataset has 2 problems:\n")
    assert result.stderr.count("error:") == 1
    assert "row 9: unknown diagnosis 'naevus'" in result.stderr
    assert "dataset/I003.jpg: is not a JPEG, PNG, BMP, TIFF or WebP image" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / PREPARED).exists()


def test_the_command_prepares_the_folder_that_the_parameters_name(
    written_dataset, params, tmp_path, monkeypatch, capsys
):
    params({"data.data_dir": "dataset", "data.image_size": "16"})
    monkeypatch.chdir(tmp_path)
    prepare.main()
    assert "prepared 12 images of 6 lesions" in capsys.readouterr().out
    with (tmp_path / PREPARED / "manifest.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image_id"] for row in csv.DictReader(file)] == written_dataset.ids


def hospital(dataset):
    """Write the dataset under column names and labels of its own, with two images of something else."""
    dataset.rows[4]["dx"] = dataset.rows[5]["dx"] = "scar"
    lines = ["file,label,years,gender,remarks"]
    names = {"nv": "Naevus", "mel": "malignant melanoma", "bkl": "0", "scar": "scar"}
    lines += [f'{row["image_id"]}.jpg,{names[row["dx"]]},{row["age"]},{row["sex"]},"a, b"' for row in dataset.rows]
    (dataset.folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    dataset.write_images()
    return {
        "columns": {"image_id": "file", "dx": "label", "age": "years", "sex": "gender"},
        "classes": {"Naevus": "nv", "malignant melanoma": "mel", "0": "bkl", "scar": None},
    }


def test_a_dataset_with_columns_and_labels_of_its_own_is_prepared(dataset, output, capsys):
    manifest = prepared(dataset, output, **hospital(dataset))
    expected = [row for row in dataset.rows if row["dx"] != "scar"]
    assert list(manifest["image_id"]) == [row["image_id"] for row in expected]
    assert list(manifest["lesion_id"]) == list(manifest["image_id"])
    assert list(manifest["dx"]) == [row["dx"] for row in expected]
    assert set(manifest["age"]) == {55.0}
    assert set(manifest["sex"]) == {"female"}
    assert (
        (output / "manifest.csv").read_text().startswith("image_id,lesion_id,dx,dx_type,age,sex,localization,dataset,")
    )
    printed = capsys.readouterr().out
    assert "table.csv: 12 of 12 images have no lesion_id; each counts as a separate lesion" in printed
    assert "table.csv: left out 2 images that are to be left out: 'scar' 2" in printed


def test_the_labels_that_are_not_mapped_are_listed_together(dataset, output):
    settings = hospital(dataset)
    with pytest.raises(InputError) as caught:
        prepared(dataset, output, columns=settings["columns"])
    message = str(caught.value)
    assert "has 4 problems:" in message
    for label in (
        "{Naevus: akiec}",
        "{malignant melanoma: akiec}",
        "{0: akiec}",
        "{scar: null} to leave out the images so",
    ):
        assert label in message
    assert not output.exists()


def test_isic_2019_s_archive_and_tables_are_prepared_as_they_are_published(dataset, output):
    dataset.write_zips()
    labels = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    metadata, truth = ["image,age_approx,anatom_site_general,lesion_id,sex"], [",".join(["image", *labels])]
    for row in dataset.rows:
        metadata.append(f"{row['image_id']},{row['age']},{row['localization']},{row['lesion_id']},{row['sex']}")
        truth.append(",".join([row["image_id"], *(str(float(label.lower() == row["dx"])) for label in labels)]))
    for name, lines in (("Metadata", metadata), ("GroundTruth", truth)):
        (dataset.folder / f"ISIC_2019_Training_{name}.csv").write_text("\n".join(lines) + "\n")
    manifest = prepared(dataset, output)
    for column in ("image_id", "lesion_id", "dx", "sex", "localization"):
        assert list(manifest[column]) == [row[column] for row in dataset.rows]


def test_images_that_no_row_uses_and_files_that_are_none_are_counted_and_named(written_dataset, output, capsys):
    (written_dataset.folder / "notes.txt").touch()
    (written_dataset.folder / "X1.jpg").write_bytes(written_dataset.picture(1))
    prepared(written_dataset, output)
    printed = capsys.readouterr().out
    assert f"passed over 1 file that is no image (1 .txt): {written_dataset.folder}/notes.txt" in printed
    assert "1 of 13 image files are of no row that is used: X1" in printed


def test_a_skin_type_is_in_the_manifest_where_one_is_known(dataset, output):
    lines = ["image_name,diagnosis,fitzpatrick_skin_type"]
    lines += [f"{row['image_id']},{row['dx']},{('', 'IV')[number % 2]}" for number, row in enumerate(dataset.rows)]
    (dataset.folder / "table.csv").write_text("\n".join(lines) + "\n")
    dataset.write_images()
    prepared(dataset, output)
    assert list(PixelStore(output).manifest["skin_type"]) == ["unknown", "IV"] * 6


def test_mistakes_of_very_many_rows_are_counted_by_their_kind(dataset, output, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_PROBLEMS_SHOWN", 2)
    for row in dataset.rows[:5]:
        row["age"] = "old"
    dataset.rows[7]["dx"] = "scar"
    dataset.write_table()
    dataset.write_images()
    expected = "… and 4 more; in all 5 × age must be years from 0 to 120, or empty; 1 × unknown diagnosis"
    assert refusal(dataset, output).endswith(expected)


def test_patients_of_several_diagnoses_stay_whole_in_a_subsample(dataset, output):
    lines = ["image_name,patient_id,diagnosis"]
    lines += [f"{row['image_id']},P{number // 4},{row['dx']}" for number, row in enumerate(dataset.rows)]
    (dataset.folder / "table.csv").write_text("\n".join(lines) + "\n")
    dataset.write_images()
    manifest = prepared(dataset, output, subsample_percentage=0.4)
    assert set(manifest.groupby("lesion_id").size()) == {4}
    assert set(manifest["dx"]) == {"nv", "mel", "bkl"}
