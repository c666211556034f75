import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.plain import HAM10000
from stages import evaluate, validation
from stages.classifier.calibration import Calibration, FittedOn, read_calibration, save_calibration
from stages.commands import predict, validate
from stages.config import load_config
from stages.errors import InputError
from stages.evaluation.details import read_details
from stages.evaluation.predictions import read_predictions
from stages.evaluation.recalibration import draw_part
from stages.files import DETAILS, MODELS, PREDICTIONS, PREPARED, PUBLISHED, SPLIT, read_csv, write_json
from stages.reporting import rounded_percent
from tests.conftest import QUICK, TinyDataset
from tests.figures.findings import DRAWN
from tests.test_plot import COLUMNS

pytestmark = pytest.mark.usefixtures("quick_pictures")
CALIBRATION = Calibration(True, 1.5, 0.3, 0.9, 0.4)


def fill(dataset):
    """Make it one of other lesions in all diagnoses, with images of the colours that the model knows."""
    random = np.random.default_rng(3)
    for number, row in enumerate(dataset.rows):
        row |= {"image_id": f"X{number:03d}", "lesion_id": f"XL{number // 2:03d}"}
        row["dx"] = tuple(HAM10000)[number // 2 % 7]
        colour = (145, 115, 105) if HAM10000[row["dx"]].malignant else (105, 115, 145)
        pixels = np.clip(np.array(colour) + random.integers(-60, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(dataset.folder / f"{row['image_id']}.png")
    dataset.write_table()
    return dataset


@pytest.fixture
def external(workspace, dataset):
    """The working directory with a calibrated model, and beside it a dataset of other lesions in all diagnoses."""
    save_calibration(CALIBRATION)
    return fill(dataset)


@pytest.fixture
def hospital(workspace, params):
    """The working directory with an evaluated model as Git has it, and a dataset of 70 other lesions."""
    params({key: json.dumps(value) for key, value in (QUICK | {"evaluation.bootstrap_replicates": 100}).items()})
    evaluate.main()
    for path in (DETAILS, PREDICTIONS):
        PUBLISHED[path].parent.mkdir(exist_ok=True)
        shutil.copy(path, PUBLISHED[path])
    return fill(TinyDataset(workspace / "hospital", 140))


def validated(dataset, *options: str):
    validate.main([str(dataset.folder), "--output", "external", *options])
    return read_predictions(dataset.folder.parent / "external/predictions.csv", None)


def test_it_writes_what_evaluate_writes_with_nothing_fitted(external, workspace, capsys):
    before = (MODELS / "calibration.json").read_bytes()
    predictions = validated(external)
    assert list(predictions.table["image_id"]) == external.ids
    assert set(predictions.table["split"]) == {"test"}
    details = json.loads((workspace / "external/details.json").read_text())
    headline = json.loads((workspace / "external/evaluation.json").read_text())
    assert details["calibration"]["temperature"] == 1.5
    assert details["test"]["operating_points"]["target_sensitivity"]["threshold"] == 0.3
    assert (details["test"]["images"], details["test"]["lesions"]) == (12, 6)
    assert headline == {name: number["value"] for name, number in details["test"]["metrics"].items()}
    assert headline["auroc"] > 0.9, "red is malignant here too"
    assert (MODELS / "calibration.json").read_bytes() == before
    plots = workspace / "external/plots"
    # Nothing was trained, so all but the course of training.
    assert {path.name for path in plots.glob("tables/*.csv")} == {f"{name}.csv" for name in COLUMNS} - {"training.csv"}
    assert {path.stem for path in (plots / "pictures").glob("*.png")} == set(DRAWN) - {
        "training_curves",
        "augmentation",
    }
    page = unescape((plots / "report.html").read_text(encoding="utf-8"))
    assert "External validation" in page
    verdict, said = details["verdict"], capsys.readouterr()
    sentences = [promise["sentence"] for promise in verdict["promises"]] + verdict["remarks"] + [verdict["summary"]]
    assert max(map(page.index, sentences)) < page.index(">Headline</h2>")
    assert said.out.splitlines()[-1] == verdict["summary"]
    assert all(sentence in said.out for sentence in sentences)
    assert (workspace / "external/verdict.txt").read_text(encoding="utf-8").endswith(f"\n{verdict['summary']}\n")
    assert sorted(path.name for path in (workspace / "external").iterdir()) == [
        "details.json",
        "evaluation.json",
        "plots",
        "predictions.csv",
        "verdict.txt",
    ]
    assert "warning" not in said.err


def test_the_decision_is_the_one_that_is_stored_with_the_model(external, workspace, capsys):
    save_calibration(replace(CALIBRATION, costs=((0.0, 1.0), (1e6, 0.0))))  # nothing is worth missing a malignant one
    predictions = validated(external)
    called = predictions.probabilities[:, 1] * 1e6 > predictions.probabilities[:, 0]
    right, more = called == predictions.is_malignant, int((called & ~predictions.is_malignant).sum())
    details = json.loads((workspace / "external/details.json").read_text())
    assert details["test"]["confusion_matrix"] == [[6 - more, more], [0, 6]]
    headline = json.loads((workspace / "external/evaluation.json").read_text())
    assert headline["decided_accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert headline["decided_accuracy"] < headline["accuracy"]
    assert "decided_balanced_accuracy: 0." in capsys.readouterr().out
    page = (workspace / "external/plots/report.html").read_text(encoding="utf-8")
    assert "Confusion matrix: images, by the class of the lowest expected cost" in page
    predicted = read_csv(workspace / "external/plots/tables/confusion_matrix.csv", [])["predicted"]
    assert list(predicted == "malignant") == list(called)


def test_it_warns_of_images_and_lesions_that_the_model_was_trained_on(external, workspace, capsys):
    split = read_csv(SPLIT, []).set_index("image_id")
    train, val, test = (split.index[split["split"] == name][0] for name in ("train", "val", "test"))
    for row, known in zip(external.rows[::2], (train, val, test)):
        (external.folder / f"{row['image_id']}.png").rename(external.folder / f"{known}.png")
        row["image_id"] = known
    external.rows[6]["lesion_id"] = external.rows[7]["lesion_id"] = split.loc[train, "lesion_id"]
    external.write_table()
    validated(external)
    warning = capsys.readouterr().err
    assert "2 images that the model was trained or calibrated on" in warning
    assert train in warning
    assert val in warning
    assert test not in warning
    assert split.loc[train, "lesion_id"] in warning
    assert "2 images that the model was trained" in (workspace / "external/verdict.txt").read_text(encoding="utf-8")
    details = json.loads((workspace / "external/details.json").read_text())
    # Those of the training and of the validation image, whatever lesion the external table says the latter is of.
    assert details["leakage"]["lesions_in_more_than_one_split"] == 2


def test_it_warns_of_copies_of_images_that_the_model_was_trained_on(external, workspace, capsys):
    """A copy under another id, mirrored."""
    split = read_csv(SPLIT, [])
    number = int(np.flatnonzero(split["split"] == "train")[0])
    pixels = np.load(PREPARED / "pixels-00000.npy")[number]
    name = external.ids[0]
    Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).save(external.folder / f"{name}.png")
    validated(external)
    warning = capsys.readouterr().err
    assert (
        f"1 copy of an image that the model was trained or calibrated on: {name} = {split['image_id'][number]}\n"
        in warning
    )


def test_it_says_so_where_it_cannot_know_what_the_model_was_trained_on(external, capsys):
    SPLIT.unlink()
    validated(external)
    assert "cannot be checked" in capsys.readouterr().err


def test_another_model_is_not_held_against_the_split_of_this_one(external, workspace, capsys):
    shutil.copytree(MODELS, workspace / "theirs")
    validated(external, "--models", "theirs")
    assert "warning: which images theirs was trained on is not known here" in capsys.readouterr().err
    assert json.loads((workspace / "external/details.json").read_text())["leakage"] is None


def test_columns_and_labels_of_another_table_are_named_by_options(external, params, capsys):
    """What params.yaml says of the training data does not count here."""
    text = (external.folder / "HAM10000_metadata.csv").read_text()
    (external.folder / "HAM10000_metadata.csv").unlink()
    header, *rows = text.replace(",nv,", ",Naevus = nv,").replace(",akiec,", ",scar,").splitlines()
    (external.folder / "own.csv").write_text("\n".join([header.replace("dx,", "label,"), *rows]) + "\n")
    params({key: json.dumps(value) for key, value in QUICK.items()} | {"data.columns": "{dx: diagnosis}"})
    predictions = validated(external, "--columns", "dx=label", "--classes", "Naevus = nv=nv", "scar=")
    assert len(predictions.table) == 12 - sum(row["dx"] == "akiec" for row in external.rows)
    assert "- own.csv: left out 2 images that are to be left out: 'scar' 2" in capsys.readouterr().out.splitlines()[-6:]


def test_the_verdict_holds_the_model_against_its_own_test_images(hospital, workspace):
    validated(hospital)
    details, own = (read_details(folder / DETAILS.name) for folder in (workspace / "external", workspace / "metrics"))
    promises = {promise["name"]: promise for promise in details["verdict"]["promises"]}
    assert promises["auroc"]["promised"] == own["test"]["metrics"]["auroc"]["value"]
    for name in ("auroc", "sensitivity_at_threshold"):
        assert promises[name]["found"] == details["test"]["metrics"][name]
    assert promises["sensitivity_at_threshold"]["promised"] == own["calibration"]["target_sensitivity"]
    share = own["test"]["malignant_lesions"] / own["test"]["lesions"]
    assert f"{rounded_percent(share)} of the model's own test lesions." in details["verdict"]["remarks"][0]
    # Those of a model that was trained since are another's.
    save_calibration(CALIBRATION)
    _, details, *_ = validation.validate_model(load_config(), hospital.folder, workspace / "scratch", MODELS, {}, {})
    sentences = [promise["sentence"] for promise in details["verdict"]["promises"]]
    assert "is not known (metrics/details.json is of another model)" in sentences[1]


def test_recalibration_is_judged_on_the_rest_and_kept_beside_the_models_own(hospital, workspace, capsys):
    before = (MODELS / "calibration.json").read_bytes()
    predictions = validated(hospital, "--recalibrate", "0.4")
    said = capsys.readouterr().out
    assert (MODELS / "calibration.json").read_bytes() == before
    file = workspace / "external/calibration.json"
    details, new = read_details(workspace / "external/details.json"), read_calibration(file, MODELS)
    recalibration, malignant = details["recalibration"], details["test"]["malignant_lesions"]
    assert new.fitted_on == FittedOn("hospital", 56, 28, round(0.4 * malignant))
    assert (recalibration["lesions"], recalibration["malignant_lesions"]) == (42, malignant - round(0.4 * malignant))
    assert details["calibration"]["temperature"] != new.temperature
    assert said.splitlines()[-1] == recalibration["after"]["verdict"]["summary"]
    page = unescape((workspace / "external/plots/report.html").read_text(encoding="utf-8"))
    for when in ("before", "after"):
        assert all(it["sentence"] in said for it in recalibration[when]["verdict"]["promises"])
        assert recalibration[when]["verdict"]["summary"] in page

    part = draw_part(predictions.lesions, predictions.is_malignant, 0.4)
    (workspace / "external").rename(workspace / "first")
    again = validated(hospital, "--calibration", "first/calibration.json")
    assert read_details(workspace / "external/details.json")["calibration"]["fitted_on"]["dataset"] == "hospital"
    assert "was fitted on 28 lesions of hospital, 12 of them malignant; do not judge" in capsys.readouterr().out
    for each, when, threshold in (
        (predictions, "before", details["calibration"]["threshold"]),
        (again, "after", new.threshold),
    ):
        rest = each.where(~part)
        found = (rest.malignant_probability >= threshold)[rest.is_malignant].mean()
        assert recalibration[when]["metrics"]["sensitivity_at_threshold"]["value"] == pytest.approx(found, abs=1e-6)
    predict.main([str(hospital.folder), "--calibration", "first/calibration.json", "--output", "out.csv"])
    assert "fitted on 28 lesions of hospital" in capsys.readouterr().err
    table = read_csv(Path("out.csv"), []).sort_values("file")
    assert table["malignant_probability"].to_numpy() == pytest.approx(
        again.table.sort_values("image_id")["probability_malignant"].to_numpy(), abs=1e-6
    )


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "nan", "half"])
def test_a_part_that_is_none_is_refused(external, fraction, capsys):
    with pytest.raises(SystemExit):
        validated(external, f"--recalibrate={fraction}")
    assert f"--recalibrate: invalid fraction value: '{fraction}'" in capsys.readouterr().err


def test_a_part_of_too_few_lesions_is_refused_and_nothing_left(external, workspace):
    with pytest.raises(InputError, match="malignant lesions and leaves"):
        validated(external, "--recalibrate", "0.3")
    assert not list(workspace.glob("*external*"))


def test_a_calibration_of_another_model_is_refused(external, workspace):
    save_calibration(CALIBRATION, MODELS, workspace / "theirs.json")
    content = json.loads((workspace / "theirs.json").read_text())
    for wrong, said in (
        (content | {"weights_sha256": "0"}, "it was not fitted for the weights in models/model.safetensors"),
        (content | {"bias": [0.5]}, "--calibration theirs.json: bias is of 1 classes; the model has 2; name a file"),
        (content | {"bias": "no"}, "bias is 'no'; it must be a list"),
    ):
        write_json(workspace / "theirs.json", wrong)
        with pytest.raises(InputError, match=said):
            validated(external, "--calibration", "theirs.json")
    with pytest.raises(
        InputError, match=r"--calibration nowhere\.json: .* name a file that `validate --recalibrate` made"
    ):
        validated(external, "--calibration", "nowhere.json")


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ("image,label\nX000,mel\n", (), "hold the diagnosis; name it in --columns, as dx=label; its columns are"),
        ("file,dx\nX000,mel\n", ("--columns", "image_id=nofile"), "table.csv: --columns image_id= is 'nofile', which"),
        ("photo,gender\nX000,male\n", (), "hold image_id; name it in --columns, as image_id=file"),
        ("image_id,kind\nX000,mel\n", (), "or --columns must name yours, as lesion_id= for one that is not there"),
        ("image_id,dx\nX000,mel\n", ("--columns", "kind=dx"), "--columns kind= is not a column of ours"),
        ("image_id,dx\nX000,mel\n", ("--classes", "mole=nev"), "--classes maps 'mole' to 'nev'; .* or nothing"),
    ],
)  # fmt: skip
def test_a_mistake_in_columns_or_labels_names_the_option_that_mends_it(external, workspace, table, options, said):
    folder = workspace / "theirs"
    folder.mkdir()
    (folder / "table.csv").write_text(table)
    with pytest.raises(InputError, match=said) as caught:
        validate.main([str(folder), "--output", "external", *options])
    assert "data." not in str(caught.value)


def test_a_model_of_synthetic_images_says_so_wherever_it_judges(external, capsys):
    write_json(MODELS / "model.json", json.loads((MODELS / "model.json").read_text()) | {"synthetic": True})
    validated(external)
    said = "the model was trained on synthetic images: it knows nothing about skin"
    assert capsys.readouterr().err.splitlines()[-1] == f"warning: {said}"
    assert said in Path("external/verdict.txt").read_text(encoding="utf-8")
    page = unescape(Path("external/plots/report.html").read_text(encoding="utf-8"))
    assert "Those that this classifier was trained on were drawn by a program" in page
    predict.main([str(external.folder / "X000.png")])
    assert f"warning: {said}" in capsys.readouterr().err


def test_an_option_without_a_value_is_refused(external, capsys):
    with pytest.raises(SystemExit):
        validated(external, "--classes", "scar")
    assert "'scar' is not a pair NAME=VALUE" in capsys.readouterr().err


def test_a_result_is_never_overwritten(external, workspace):
    (workspace / "external").mkdir()
    with pytest.raises(InputError, match=r"--output is 'external', which exists"):
        validated(external)


def test_a_result_inside_of_a_file_is_refused(external, workspace):
    with pytest.raises(InputError, match=r"params\.yaml is a file, not a folder"):
        validate.main([str(external.folder), "--output", "params.yaml/new/external"])


def test_a_mistake_in_the_dataset_leaves_nothing_behind(external, workspace):
    (external.folder / f"{external.ids[3]}.png").unlink()
    with pytest.raises(InputError, match=f"{external.ids[3]}: no image file of this name"):
        validated(external)
    assert not list(workspace.glob("*external*"))


def test_a_model_without_a_calibration_is_refused(external):
    (MODELS / "calibration.json").unlink()
    with pytest.raises(InputError, match=r"models/calibration.json does not exist"):
        validated(external)
    shutil.rmtree(MODELS)
    with pytest.raises(InputError, match=r"models/model.json does not exist"):
        validated(external)
