"""Networks that take age, sex and localization, from training to prediction; on images that say nothing."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages.classifier.calibration import save_calibration
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.commands import predict
from stages.dataset.pixels import MANIFEST, PixelStore, shard_path
from stages.errors import InputError
from stages.evaluate import evaluate_model
from stages.evaluation.details import read_details
from stages.files import CHECKPOINTS, MODELS, PREPARED, SPLIT, TRAINING_METRICS, read_csv, write_csv, write_json
from stages.training.fit import train_model
from stages.validation import validate_model

pytestmark = pytest.mark.xdist_group("metadata")
CPU = torch.device("cpu")
EVALUATION = {"evaluation.bootstrap_replicates": 100, "evaluation.gradcam_cases": 1}


@pytest.fixture(scope="module")
def told(tiny, tmp_path_factory):
    """The tiny dataset with grey images, malignant lesions in the face and benign ones on the back."""
    folder = tmp_path_factory.mktemp("told")
    store = PixelStore(tiny.folder)
    (folder / PREPARED).mkdir(parents=True)
    for path in tiny.folder.iterdir():
        (folder / PREPARED / path.name).write_bytes(path.read_bytes())
    malignant = np.array([store.taxonomy[dx].malignant for dx in store.manifest["dx"]])
    table = store.manifest.assign(localization=np.where(malignant, "face", "back"))
    table.loc[0, ["sex", "localization"]] = "unknown"
    write_csv(folder / PREPARED / MANIFEST, table.assign(age=table["age"].mask(table.index == 1)))
    np.save(shard_path(folder / PREPARED, 0), np.full((70, 16, 16, 3), 128, np.uint8))
    write_csv(folder / SPLIT, read_csv(tiny.split, []))
    return folder


@pytest.fixture(scope="module", params=["late", "fused"])
def model(request, told, quick, tmp_path_factory):
    """The folder of a model of that dataset, its configuration, and what `evaluate` says of it."""
    config = quick(
        **EVALUATION,
        **{"model.metadata": request.param, "training.max_epochs": 10, "training.learning_rate": 0.03},
        **({"model.ensemble": 2, "model.ensemble_over": "folds"} if request.param == "late" else {}),
    )
    folder = tmp_path_factory.mktemp("model")
    places = (folder / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
    train_model(config, told / PREPARED, told / SPLIT, *places)
    evaluation = evaluate_model(config, folder / MODELS, told / PREPARED, told / SPLIT)
    save_calibration(evaluation.calibration, folder / MODELS)
    return folder / MODELS, evaluation


def test_a_site_that_only_the_fold_left_out_has_is_unknown_to_that_network(told, quick, tmp_path):
    table = read_csv(told / PREPARED / MANIFEST, [])
    (tmp_path / PREPARED).mkdir(parents=True)
    write_csv(
        tmp_path / PREPARED / MANIFEST, table.assign(localization=table["localization"].mask(table.index == 2, "ear"))
    )
    for path in (told / PREPARED).iterdir():
        if path.name != MANIFEST:
            (tmp_path / PREPARED / path.name).symlink_to(path)
    changes = {"model.metadata": "fused", "model.ensemble": 2, "model.ensemble_over": "folds", "training.max_epochs": 1}
    places = (tmp_path / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
    train_model(quick(**changes), tmp_path / PREPARED, told / SPLIT, *places)
    network, description = load_model(tmp_path / MODELS)
    ear, unknown = (description.metadata.numbers.index(("localization", it)) for it in ("ear", "unknown"))
    # The image is in the fold that the first validates.
    weights = [member.backbone.metadata.hidden[0].weight for member in network.members]
    assert [torch.equal(of[:, ear], of[:, unknown]) for of in weights] == [True, False]


@pytest.fixture
def photos(told, tmp_path, monkeypatch):
    """The dataset's images as files, in the working directory, and what it says of them."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    store = PixelStore(told / PREPARED)
    for image_id, pixels in zip(store.manifest["image_id"], store.read(np.arange(70))):
        Image.fromarray(pixels).save(f"photos/{image_id}.png")
    return store.manifest


@pytest.fixture
def run(model, capsys):
    """A function that predicts the photos; their probability of malignancy by file, and what was said."""

    def start(*options):
        predict.main(["photos", "--models", str(model[0]), "--threads", "1", *options])
        output = capsys.readouterr()
        table = pd.read_csv(io.StringIO(output.out))
        return table.set_index("file")["malignant_probability"], output.err

    return start


def test_what_the_image_does_not_say_is_learnt_from_the_metadata(model):
    _, evaluation = model
    details = evaluation.details
    assert details["test"]["metrics"]["auroc"]["value"] > 0.95
    alone = details["baselines"]["image_alone"]
    assert alone["metrics"]["auroc"]["value"] == 0.5
    for name, number in alone["metadata_add"].items():
        ours, theirs = details["test"]["metrics"][name]["value"], alone["metrics"][name]["value"]
        assert theirs is None or number["value"] == pytest.approx(ours - theirs), name


def test_what_is_said_of_the_image_alone_is_of_the_described_form(model, tmp_path):
    details = {**model[1].details, "leakage": None}
    write_json(tmp_path / "details.json", details)
    assert read_details(tmp_path / "details.json")["baselines"].keys() == details["baselines"].keys()


def test_validate_takes_the_dataset_s_own_metadata(model, quick, dataset, tmp_path):
    for number, row in enumerate(dataset.rows):
        row["localization"] = ("Face", "back", "knee")[number // 2 % 3]
        Image.new("RGB", (16, 16), (128,) * 3).save(dataset.folder / f"{row['image_id']}.png")
    dataset.write_table()
    said, config = [], quick(**EVALUATION)
    predictions, *_ = validate_model(config, dataset.folder, tmp_path / "prepared", model[0], {}, {}, say=said.append)
    face, back, knee = (predictions.malignant_probability[start::6] for start in (0, 2, 4))
    assert face == pytest.approx(face[0], abs=1e-6)
    assert face[0] > 0.5 > back[0]
    assert knee[0] not in (face[0], back[0])
    assert "the model was trained on no sex 'female', localization 'knee': taken as unknown" in said


def test_of_unknown_metadata_a_network_says_what_it_says_of_the_image_alone(model, told):
    network, description = load_model(model[0])
    store = PixelStore(told / PREPARED)
    pixels = [torch.from_numpy(store.read(np.arange(70)))]
    nothing = store.manifest.assign(age=np.nan, sex="unknown", localization="knee")
    unknown = predict_probabilities(network, pixels, CPU, True, description.metadata.encode(nothing))
    assert np.array_equal(predict_probabilities(network, pixels, CPU, True), unknown)
    # Whatever the batches, each image has its own.
    known = description.metadata.encode(store.manifest)
    whole = predict_probabilities(network, pixels, CPU, True, known)
    parts = predict_probabilities(network, pixels[0].split(9), CPU, True, known)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert not np.allclose(whole, unknown, atol=0.05)


def test_predict_gives_what_evaluate_gave_from_a_table_in_any_order_and_spelling(model, photos, run):
    table = photos.sample(frac=1, random_state=0)
    table = table[["image_id", "age", "sex", "localization", "dx"]].rename(columns={"image_id": "image"})
    table = table.assign(image=table["image"] + ".png", sex=table["sex"].str.upper())
    table.to_csv("table.csv", index=False)
    found, said = run("--metadata", "table.csv")
    expected = model[1].predictions.table.set_index("image_id")["probability_malignant"]
    for image_id, probability in expected.items():
        assert found[f"photos/{image_id}.png"] == pytest.approx(probability, abs=1e-5)
    assert "--metadata" not in said


def test_predict_takes_what_no_row_tells_for_unknown_and_says_so(photos, run):
    alone, said = run()
    assert "the model also takes age, sex and localization: name their table with --metadata" in said
    photos["file"] = "photos/" + photos["image_id"] + ".png"
    columns = ["file", "age", "sex", "localization"]
    photos[columns].to_csv("table.csv", index=False)
    whole, _ = run("--metadata", "table.csv")
    other = (
        photos[columns]
        .iloc[:2]
        .assign(file=["elsewhere.png", photos["file"][69]], age=np.nan, sex="", localization="knee")
    )
    pd.concat([photos[columns].iloc[:35], other]).to_csv("table.csv", index=False)
    found, said = run("--metadata", "table.csv")
    assert "--metadata: 34 of 70 images have no row: nothing is known of them" in said
    assert "--metadata: 1 row is of no image here" in said
    assert "the model was trained on no localization 'knee': taken as unknown" in said
    told = found.index.isin(photos["file"][:35])
    np.testing.assert_allclose(found[told], whole[told], atol=1e-6)
    np.testing.assert_allclose(found[~told], alone[~told], atol=1e-6)
    assert (alone[told] - whole[told]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "table.csv cannot be read (No such file or directory)"),
        ("image,age,sex\nI001,old,male\nI002,130,male\n", "row 2: age is 'old'; it must be years from 0 to 120"),
        ("image,localization\nI001,=1+1\n", "table.csv row 2: localization is '=1+1'; it must be plain words"),
        ("image,age\nI001,30\nI001,40\n", "table.csv row 3: 'I001' has other values in row 2"),
        ("image,age\nI001,30,40\n", "table.csv row 2: 3 fields; the header has 2"),
        ("photo,age\nI001,30\n", "no column is known to hold image_id"),
        ("image,dx\nI001,mel\n", "no column is known to hold age, sex or localization; its columns are image, dx"),
        ("image,age\nI003,30\n", "one row is of several images, photos/I003.png and photos/deep/I003.jpg"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_place(model, photos, table, problem):
    Path("photos/deep").mkdir()
    Path("photos/deep/I003.jpg").write_bytes(b"no image")
    if table is not None:
        Path("table.csv").write_text(table)
    with pytest.raises(InputError) as caught:
        predict.main(["photos", "--models", str(model[0]), "--metadata", "table.csv", "--output", "out.csv"])
    assert problem in str(caught.value)
    assert not Path("out.csv").exists()


def test_own_names_of_columns_are_given_as_for_validate(photos, run):
    photos[["image_id", "localization"]].set_axis(["photo", "where"], axis=1).to_csv("table.csv", index=False)
    found, _ = run("--metadata", "table.csv", "--columns", "image_id=photo", "localization=where")
    photos[["image_id", "localization"]].to_csv("table.csv", index=False)
    again, _ = run("--metadata", "table.csv")
    assert found.equals(again)


def test_a_model_of_images_alone_refuses_a_table(photos, workspace):
    Path("table.csv").write_text("image,age\nI001,30\n")
    arguments = ["photos", "--models", str(workspace / MODELS), "--metadata", "table.csv"]
    with pytest.raises(InputError, match=r"--metadata: the model in .* takes the image alone; leave the option out"):
        predict.main(arguments)


def test_a_model_says_what_it_takes_and_one_of_images_alone_does_not_speak_of_it(model, workspace):
    about = json.loads((model[0] / "model.json").read_text())["metadata"]
    assert about.pop("fusion") in ("late", "fused")
    assert about == {"sex": ["male"], "localization": ["back", "face"]}
    assert "metadata" not in json.loads((workspace / MODELS / "model.json").read_text())
