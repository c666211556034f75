import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.plain import HAM10000
from stages.classifier.calibration import Calibration, save_calibration
from stages.commands import validate
from stages.errors import InputError
from stages.evaluation.predictions import read_predictions
from stages.files import MODELS, PREPARED, SPLIT, read_csv
from tests.conftest import QUICK
from tests.figures.findings import DRAWN
from tests.test_plot import COLUMNS

CALIBRATION = Calibration(True, 1.5, 0.3, 0.9, 0.4)


@pytest.fixture
def external(workspace, dataset):
    """The working directory with a calibrated model, and beside it a dataset of other lesions in all diagnoses."""
    save_calibration(CALIBRATION)
    random = np.random.default_rng(3)
    for number, row in enumerate(dataset.rows):
        row |= {"image_id": f"X{number:03d}", "lesion_id": f"XL{number // 2:03d}"}
        row["dx"] = tuple(HAM10000)[number // 2 % 7]
        colour = (145, 115, 105) if HAM10000[row["dx"]].malignant else (105, 115, 145)
        pixels = np.clip(np.array(colour) + random.integers(-60, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(dataset.folder / f"{row['image_id']}.png")
    dataset.write_table()
    return dataset


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
    assert "External validation" in (plots / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (workspace / "external").iterdir()) == [
        "details.json",
        "evaluation.json",
        "plots",
        "predictions.csv",
    ]
    assert "warning" not in capsys.readouterr().err


def test_the_decision_is_the_one_that_is_stored_with_the_model(external, workspace, capsys):
    save_calibration(replace(CALIBRATION, costs=((0.0, 1.0), (1e6, 0.0))))  # nothing is worth missing a malignant one
    predictions = validated(external)
    called = predictions.probabilities[:, 1] * 1e6 > predictions.probabilities[:, 0]
    right, more = called == predictions.is_malignant, int((called & ~predictions.is_malignant).sum())
    details = json.loads((workspace / "external/details.json").read_text())
    assert details["test"]["confusion_matrix"] == [[6 - more, more], [0, 6]]
    headline = json.loads((workspace / "external/evaluation.json").read_text())
    assert headline["decided_accuracy"] == pytest.approx(right.mean(), abs=1e-6) < headline["accuracy"]
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
    assert "'scar'" in capsys.readouterr().out


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
