import io
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.plain import HAM10000, told_apart
from stages import prediction
from stages.classifier import weights
from stages.classifier.calibration import Calibration, save_calibration
from stages.classifier.description import TRAINED_ON_SYNTHETIC
from stages.classifier.networks import build_network, last_layers
from stages.classifier.weights import ModelDescription, save_model
from stages.commands.predict import main
from stages.dataset.images import decode_square
from stages.errors import InputError
from stages.evaluate import evaluate_model
from stages.files import PREPARED, SPLIT, read_csv, write_csv
from stages.prediction import OVERLAY_SIDE, OVERLAY_TEXT
from stages.prepare import prepare_dataset

ROOT = Path(__file__).parents[2]
CALIBRATION = Calibration(True, 0.05, 0.4, 0.9, 0.5)  # so low a temperature spreads what random weights say


def picture(number, kind="JPEG"):
    """An image that no other looks like: a coloured blob at a place of its own, on noise."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 80, (36, 48, 3)) + random.integers(0, 90, 3)
    row, column = random.integers(0, 20, 2)
    pixels[row : row + 16, column : column + 20] += random.integers(0, 80, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind, quality=95)
    return file.getvalue()


def save_random_model(folder, calibration=CALIBRATION):
    """Write a model of the seven diagnoses with random weights into `folder`."""
    torch.manual_seed(0)
    network = build_network("baseline_cnn", 7, 16)
    description = ModelDescription(
        "baseline_cnn", 1, list(told_apart(7).names), HAM10000, 16, [0.5] * 3, [0.2] * 3, [0], [1.0], [], 32, 1
    )
    save_model(network, description, folder)
    save_calibration(calibration, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of such a model."""
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder)
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten images in the folder photos of the working directory, which holds nothing else."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    return folder


@pytest.fixture
def run(model, capsys):
    """A function that runs the command and gives the table that it writes."""

    def start(*arguments, problem=None):
        arguments = [*map(str, arguments), "--models", str(model), "--threads", "2"]
        if problem is None:
            main(arguments)
        else:
            with pytest.raises(InputError, match=problem):
                main(arguments)
        out = capsys.readouterr().out
        return pd.read_csv(io.StringIO(out)) if out else None

    return start


def files_of(table):
    return list(table["file"])


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_an_image_gets_the_probabilities_that_evaluate_writes_for_it(workspace, quick, dataset, capsys):
    ids = list(read_csv(SPLIT, [])["image_id"])
    dataset.rows.clear()
    for number in range(len(ids)):
        dataset.add(lesion_id=f"L{number:03d}", dx=("nv", "mel")[number % 2])
    dataset.write_table()
    assert dataset.ids == ids
    for number, image_id in enumerate(ids):
        (dataset.folder / f"{image_id}.jpg").write_bytes(picture(number))
    config = quick(**{"data.data_dir": str(dataset.folder)})
    manifest = prepare_dataset(config.data, PREPARED)
    write_csv(SPLIT, read_csv(SPLIT, []).assign(lesion_id=manifest["lesion_id"]))
    predictions, calibration, *_ = evaluate_model(config)
    save_calibration(calibration)
    capsys.readouterr()

    main([str(dataset.folder), "--threads", "1"])
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    table = table.set_axis([Path(file).stem for file in table["file"]]).loc[predictions.table["image_id"]]
    found = table[["probability_benign", "probability_malignant"]].to_numpy()
    assert found.shape == (28, 2)
    assert len(np.unique(found[:, 0])) > 20
    np.testing.assert_allclose(found, predictions.probabilities, atol=1e-5)
    assert list(table["decision"] == "malignant") == list(predictions.malignant_probability >= calibration.threshold)


def test_the_probability_of_malignancy_is_that_of_the_malignant_diagnoses_together(run, tmp_path, photos, capsys):
    table = run(photos)
    diagnoses = [f"probability_{name}" for name in told_apart(7).names]
    assert list(table) == ["file", *diagnoses, "malignant_probability", "decision", "diagnosis"]
    assert table[diagnoses].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    expected = table[[f"probability_{name}" for name in told_apart(7).malignant]].sum(axis=1)
    np.testing.assert_allclose(table["malignant_probability"], expected, atol=1e-7)
    # Whatever the random network says: some images are above the threshold, and some are not.
    threshold = float(table["malignant_probability"].median())
    save_random_model(tmp_path, replace(CALIBRATION, threshold=threshold))
    main([str(photos), "--models", str(tmp_path), "--threads", "1"])
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table["decision"] == "malignant") == list(table["malignant_probability"] >= threshold)
    assert set(table["decision"]) == {"malignant", "benign"}


def test_the_diagnosis_is_the_most_probable_class_or_that_of_the_lowest_expected_cost(tmp_path, photos, capsys):
    names, tables = told_apart(7).names, []
    costs = 1 - np.eye(7)
    costs[3] *= 1000  # whoever misses a dermatofibroma pays for it
    for chosen in (None, costs.tolist()):
        save_random_model(tmp_path, replace(CALIBRATION, costs=chosen))
        main([str(photos), "--models", str(tmp_path), "--threads", "1"])
        tables.append(pd.read_csv(io.StringIO(capsys.readouterr().out)))
    probabilities = tables[0][[f"probability_{name}" for name in names]].to_numpy()
    assert list(tables[0]["diagnosis"]) == [names[number] for number in probabilities.argmax(axis=1)]
    assert list(tables[1]["diagnosis"]) == [names[number] for number in (probabilities @ costs).argmin(axis=1)]
    assert "df" in set(tables[1]["diagnosis"]) - set(tables[0]["diagnosis"])
    assert tables[0].drop(columns="diagnosis").equals(tables[1].drop(columns="diagnosis"))


def test_an_image_right_at_the_threshold_is_malignant(tmp_path, photos, capsys):
    description = ModelDescription(
        "baseline_cnn", 1, list(told_apart(2).names), HAM10000, 16, [0.5] * 3, [0.2] * 3, [0], [1.0], [], 32, 1
    )
    network = build_network("baseline_cnn", 2, 16)
    for parameter in network.backbone.get_submodule(last_layers(network.backbone)[0]).parameters():
        parameter.detach().zero_()  # no class is more probable than the other
    save_model(network, description, tmp_path / "even")
    for threshold, decision in ((0.5, "malignant"), (0.500001, "benign")):
        save_calibration(Calibration(False, 1.0, threshold, 0.9, 0.5), tmp_path / "even")
        main([str(photos), "--models", str(tmp_path / "even"), "--threads", "1"])
        table = pd.read_csv(io.StringIO(capsys.readouterr().out))
        assert set(table["malignant_probability"]) == {0.5}
        assert set(table["decision"]) == {decision}


def test_batches_and_threads_change_nothing(run, photos):
    whole = run(photos)
    parts = run(photos, "--batch-size", 3, "--threads", 1)
    assert files_of(parts) == files_of(whole) == [f"photos/{number}.jpg" for number in range(10)]
    np.testing.assert_allclose(parts["malignant_probability"], whole["malignant_probability"], atol=1e-6)
    assert whole["malignant_probability"].nunique() == 10
    alone = run(photos / "7.jpg")
    assert alone["malignant_probability"][0] == pytest.approx(whole["malignant_probability"][7], abs=1e-6)


def test_the_file_holds_the_same_bytes_as_standard_output_which_holds_nothing_else(model, photos, capsysbinary):
    arguments = [str(photos), "--models", str(model), "--threads", "1"]
    main(arguments)
    printed = capsysbinary.readouterr()
    main([*arguments, "--output", "table.csv"])
    assert Path("table.csv").read_bytes() == printed.out
    assert printed.out.count(b"\n") == 11
    assert b"predicted 10 images" in printed.err
    assert b"0.4" in printed.err, "the threshold"
    assert capsysbinary.readouterr().out == b""


def test_folders_are_searched_but_not_hidden_ones_and_archives_opened(run, photos):
    for name in (".hidden.jpg", ".cache/a.jpg", "deep/er/B.PNG", "deep/c.jpeg", "deep/notes.txt"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(picture(5))
    with zipfile.ZipFile("more.ZIP", "w") as archive:
        for name in ("part/z.jpg", "a.png", "table.csv", "__MACOSX/part/z.jpg", "part/._z.jpg"):
            archive.writestr(name, picture(6))
    Path("photo").write_bytes(picture(7))
    loose = [f"photos/{number}.jpg" for number in range(10)]
    inside = ["more.ZIP:a.png", "more.ZIP:part/z.jpg"]
    table = run("more.ZIP", photos, "photo")
    assert files_of(table) == [*inside, *loose, "photos/deep/c.jpeg", "photos/deep/er/B.PNG", "photo"]


def test_linked_folders_and_archives_below_a_folder_are_searched_too(run, photos):
    Path("cache").mkdir()
    Path("cache/z.jpg").write_bytes(picture(5))
    Path("data").mkdir()
    Path("data/linked").symlink_to(Path("cache").absolute())
    with zipfile.ZipFile("data/a.zip", "w") as archive:
        archive.writestr("in.jpg", picture(6))
    assert files_of(run("data")) == ["data/linked/z.jpg", "data/a.zip:in.jpg"]


def test_what_is_named_twice_is_predicted_once_but_two_names_of_one_file_are_two_images(run, photos):
    (photos / "again.jpg").symlink_to("3.jpg")
    table = run(photos / "4.jpg", photos, photos.absolute(), photos / ".." / photos / "3.jpg")
    assert files_of(table)[0] == "photos/4.jpg"
    assert sorted(files_of(table)) == [*(f"photos/{number}.jpg" for number in range(10)), "photos/again.jpg"]


def test_unreadable_files_are_listed_with_the_reason_and_the_others_predicted(run, photos):
    (photos / "2.jpg").write_bytes(b"no image")
    (photos / "5.jpg").write_bytes(picture(5)[:300])
    (photos / "6.jpg").unlink()
    (photos / "6.jpg").symlink_to("gone.jpg")
    Path("torn.zip").write_bytes(b"PK")
    problem = (
        r"^4 files cannot be read:\n  torn.zip: not a readable zip archive .*\n  photos/2.jpg: is not a JPEG, .*"
        r"\n  photos/5.jpg: is truncated .*\n  photos/6.jpg: cannot be read .*$"
    )
    table = run(photos, "torn.zip", "--batch-size", 3, problem=problem)
    assert files_of(table) == [f"photos/{number}.jpg" for number in (0, 1, 3, 4, 7, 8, 9)]
    expected = run(*(photos / f"{number}.jpg" for number in (0, 1, 3, 4, 7, 8, 9)))
    np.testing.assert_allclose(table["malignant_probability"], expected["malignant_probability"], atol=1e-6)


def test_linked_folders_and_archives_of_windows_are_predicted_and_other_files_named(model, photos, capsys):
    """As `prepare` and `validate` find them: nothing is passed over in silence."""
    Path("data").mkdir()
    Path("data/linked").symlink_to(photos.absolute())
    Path("data/loop").symlink_to(Path("data").absolute())
    with zipfile.ZipFile("data/more.ZIP", "w") as archive:
        archive.writestr("holiday\\spot.jpg", picture(1))
        archive.writestr("holiday\\notes.txt", "")
    Path("data/photo.heic").touch()
    main(["data", "--models", str(model), "--output", "out.csv"])
    assert len(pd.read_csv("out.csv")) == 11
    said = capsys.readouterr().err
    assert "passed over 2 files that are no images (1 .heic, 1 .txt): data/photo.heic, data/more.ZIP:holiday" in said


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_archive_does_not_stop_the_rest(run, photos, packing):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr("damaged.jpg", picture(1))
        archive.writestr("naïve.jpg", picture(2))
        archive.writestr("sound.jpg", picture(3))
    data = bytearray(file.getvalue())
    start = data.index(b"damaged.jpg") + 20
    data[start : start + 200] = bytes(200)
    start = data.index("naïve.jpg".encode())
    data[start : start + 5] = b"\xff" * 5
    Path("a.zip").write_bytes(data)
    table = run(
        "a.zip", photos / "0.jpg", problem=r"^2 files cannot be read:\n  a.zip:damaged.jpg: .*\n  a.zip:naïve.jpg: "
    )
    assert files_of(table) == ["a.zip:sound.jpg", "photos/0.jpg"]


def test_nothing_is_written_where_no_image_can_be_read(run, photos):
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    assert run(photos, "--output", "table.csv", "--gradcam", "maps", problem="^no image can be read:\n") is None
    assert names(".") == ["photos"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("gone.jpg photos nowhere", "gone.jpg: No such file or directory; nowhere: No such"),
        ("photos empty", "empty holds no JPEG, PNG, BMP, TIFF or WebP file"),
        ("no.zip", "no.zip holds no JPEG, PNG, BMP, TIFF or WebP file"),
        ("/dev/null", "/dev/null is neither a file nor a folder"),
        ("photos --output gone/table.csv", "--output gone/table.csv: the folder gone does not exist; make it first"),
        ("photos --output empty", "empty is not a file"),
        ("photos --output photos/3.jpg", "--output photos/3.jpg is one of the images"),
        ("photos --gradcam no.zip", "--gradcam no.zip is not a folder"),
        ("photos --gradcam photos/../photos", "photos holds images to predict, which overlays may replace"),
        ("photos --output out --gradcam photos/../out", "--output out would replace the folder of --gradcam"),
        ("photos --output out --gradcam out/maps", "--output out would replace the folder of --gradcam out/maps"),
        ("photos --models gone", "--models gone is not a folder"),
        ("photos --columns age=years", "--columns names those of --metadata's table; name that, too"),
        ("photos --metadata gone.csv", "gone.csv cannot be read (No such file or directory)"),
    ],
)
def test_mistakes_are_told_before_any_work_and_leave_everything_as_it_was(
    photos, model, monkeypatch, bytes_below, arguments, problem
):
    Path("empty").mkdir()
    zipfile.ZipFile("no.zip", "w").close()
    before = bytes_below(Path())
    monkeypatch.setattr(weights, "load_model", None)
    arguments = arguments.split()
    with pytest.raises(InputError, match=re.escape(problem)):
        main(arguments if "--models" in arguments else [*arguments, "--models", str(model)])
    assert bytes_below(Path()) == before


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "calibration.json"])
def test_a_model_that_is_not_whole_is_named(photos, model, tmp_path, name):
    for path in model.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=f"{name} does not exist"):
        main([str(photos), "--models", str(tmp_path), "--output", "table.csv"])
    assert not Path("table.csv").exists()


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", "100000"])
@pytest.mark.parametrize("option", ["--batch-size", "--threads"])
def test_an_option_out_of_range_is_refused_with_its_value(photos, capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        main([str(photos), f"{option}={value}"])
    assert caught.value.code == 2
    assert f"{option}: '{value}' must be a whole number from 1 to 1024" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_named(run, photos):
    name = "n" * 250 + ".csv"  # fits, but not with what is put before it while it is written
    run(photos, "--output", name, problem=f"--output {name} cannot be written")
    assert names(".") == ["photos"]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=cmd.jpg", "./=cmd.jpg"),
        ("+1.jpg", "./+1.jpg"),
        ("-2.jpg", "./-2.jpg"),
        ("@a.jpg", "./@a.jpg"),
        ("a=b.jpg", "a=b.jpg"),
        ('a,"b" ü.jpg', 'a,"b" ü.jpg'),
        ("two\nlines\x1b.jpg", r"two\nlines\x1b.jpg"),
        (b"caf\xe9.jpg", r"caf\udce9.jpg"),
    ],
)
def test_no_file_name_becomes_a_formula_or_breaks_its_line(photos, model, capsysbinary, name, cell):
    path = os.fsdecode(name)
    Path(path).write_bytes(picture(0))
    main([f"./{path}", "--models", str(model), "--threads", "1", "--gradcam", "maps"])
    out = capsysbinary.readouterr().out.decode("utf-8")
    assert out.count("\n") == 2
    assert pd.read_csv(io.StringIO(out))["file"][0] == cell
    assert len(names("maps")) == 1


def test_a_large_folder_is_not_decoded_into_memory_at_once(photos, model, monkeypatch):
    for number in range(300):
        (photos / f"more{number}.png").write_bytes(picture(0, "PNG"))
    counts = {"decoded": 0, "used": 0, "most": 0}

    def decode(data, size, *_):
        counts["decoded"] += 1
        counts["most"] = max(counts["most"], counts["decoded"] - counts["used"])
        return np.zeros((size, size, 3), np.uint8)

    def infer(network, batches, *_):
        counts["used"] += sum(map(len, batches))
        return np.full((len(batches[0]), 7), 1 / 7)

    monkeypatch.setattr("stages.prediction.decode_square", decode)
    monkeypatch.setattr("stages.prediction.predict_calibrated", infer)
    main([str(photos), "--models", str(model), "--threads", "2", "--batch-size", "8"])
    assert counts["used"] == 310
    assert counts["most"] <= 24


def test_gradcam_draws_each_image_beside_its_heatmap_under_a_name_of_its_own(run, photos, bytes_below, monkeypatch):
    written, write = [], ImageDraw.ImageDraw.multiline_text

    def note(draw, place, text, *style):
        written.append(text)
        write(draw, place, text, *style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", note)
    (photos / "b").mkdir()
    (photos / "b" / "3.jpg").write_bytes(picture(20))
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("../../3.jpg", picture(21))
        archive.writestr("up\\..\\a=.jpg", picture(22))
    (photos / "4.jpg").write_bytes(b"no image")
    before = bytes_below(photos)
    table = run(photos, "a.zip", "--gradcam", "new/maps", "--batch-size", 4, problem="1 file cannot")
    assert bytes_below(photos) == before
    expected = [f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 7, 8, 9)]
    assert names("new/maps") == sorted([*expected, "3-2.png", "3-3.png", "a_.png"])
    assert dict(zip(table["file"], table["overlay"]))["a.zip:../../3.jpg"] == "new/maps/3-3.png"

    assert all(text.isascii() for text in written), "Pillow's own font has no other letters"
    lines = [*written[0].split("\n"), f"warning: {TRAINED_ON_SYNTHETIC}"]
    font = ImageFont.load_default(OVERLAY_TEXT)
    assert max(map(font.getlength, lines)) < 2 * OVERLAY_SIDE, "no line is cut off"
    assert written[0].startswith(
        f"called {table['decision'][0]}: P(malignant) {table['malignant_probability'][0]:.0%}"[:-1]
    )

    whole = run(*table["file"][:3])
    np.testing.assert_allclose(table["malignant_probability"][:3], whole["malignant_probability"], atol=1e-6)
    changed = 0
    for file, path in zip(table["file"][:9], table["overlay"]):
        with Image.open(path) as drawn:
            pixels = np.asarray(drawn)
        assert pixels.shape == (320 + 45, 640, 3)  # below what was predicted
        assert (pixels[:45] < 128).any()
        assert np.array_equal(pixels[45 + 10 :: 20, 10:320:20], decode_square(Path(file).read_bytes(), 16))
        changed += (pixels[45:, 320:] != pixels[45:, :320]).any()
    assert changed > 0, "evidence of malignancy is drawn where there is some"


def test_gradcam_of_a_network_without_feature_maps_is_refused_and_nothing_written(run, photos, monkeypatch):
    monkeypatch.setattr(prediction, "gradcam_heatmaps", lambda *_, **__: None)
    run(photos, "--gradcam", "maps", "--output", "table.csv", problem="--gradcam: baseline_cnn has no feature maps")
    assert names(".") == ["photos"]


def test_a_mistake_ends_the_command_with_one_line_and_without_waiting_for_torch(photos):
    code = (
        "import runpy, sys; sys.argv[1:] = ['predict', 'gone.jpg']; sys.modules['torch'] = None;"
        "runpy.run_module('stages', run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: gone.jpg: No such file or directory; name images, folders or")
    assert done.stderr.count("\n") == 1


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "python -m stages predict lesion.jpg photos/" in capsys.readouterr().out
