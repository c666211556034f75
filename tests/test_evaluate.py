import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.plain import HAM10000, told_apart
from stages import evaluate
from stages.classifier.calibration import load_calibration
from stages.classifier.inference import predict_calibrated
from stages.classifier.weights import load_model
from stages.dataset.loaders import SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import numbers_of
from stages.errors import InputError
from stages.evaluation.cases import read_cases
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import read_predictions
from stages.files import (
    DETAILS,
    EVALUATION,
    GRADCAM,
    MODELS,
    PREDICTIONS,
    PREPARED,
    SPLIT,
    SPLIT_METRICS,
    TRAINING_METRICS,
    read_csv,
    read_json,
    write_csv,
)
from stages.training.fit import train_model


@pytest.fixture(params=[2, 7])
def evaluated(request, workspace, quick):
    """The working directory after `evaluate`; the number of classes."""
    if request.param == 7:
        changes = {"model.num_classes": 7, "training.max_epochs": 1}
        train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    return request.param


def written_predictions():
    details = read_json(DETAILS)
    return read_predictions(PREDICTIONS, details.get("taxonomy"), details["calibration"]["costs"])


def test_every_validation_and_test_image_is_predicted_once_and_no_other(evaluated):
    table = written_predictions().table
    split = read_csv(SPLIT, []).set_index("image_id")
    expected = split[split["split"].isin(("val", "test"))]
    assert sorted(table["image_id"]) == sorted(expected.index)
    assert list(table["split"]) == list(split.loc[table["image_id"], "split"])
    assert list(table["lesion_id"]) == list(split.loc[table["image_id"], "lesion_id"])


def test_labels_are_those_of_the_images_and_probabilities_sum_to_1(evaluated):
    predictions = written_predictions()
    dx = read_csv(PREPARED / "manifest.csv", []).set_index("image_id")["dx"]
    told = told_apart(evaluated)
    labels = [told.names[number] for number in numbers_of(predictions.table["image_id"].map(dx), HAM10000, told)]
    assert list(predictions.table["label"]) == labels
    assert predictions.probabilities.shape == (28, evaluated)
    assert predictions.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_the_metrics_are_those_of_the_written_test_predictions(evaluated):
    predictions, details, headline = written_predictions(), read_json(DETAILS), read_json(EVALUATION)
    assert details["classes"] == list(predictions.classes.names)
    val, test = predictions.of("val"), predictions.of("test")
    expected = compute_metrics(val.probabilities, val.labels, val.classes)
    assert details["val"]["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert details["val"]["confusion_matrix"] == expected["confusion_matrix"]
    expected = compute_metrics(test.probabilities, test.labels, test.classes)
    assert details["test"]["confusion_matrix"] == expected["confusion_matrix"]
    for name, value in expected["metrics"].items():
        assert headline[name] == pytest.approx(value, abs=1e-6), name
    assert (details["test"]["images"], details["test"]["lesions"]) == (14, 13), "two test images are of one lesion"


def test_the_headline_is_small_and_every_number_of_it_has_an_interval(evaluated):
    headline, described = read_json(EVALUATION), read_json(DETAILS)["test"]["metrics"]
    assert len(headline) <= 15
    assert {"sensitivity_at_threshold", "specificity_at_threshold", "ece", "brier", "nll"} <= set(headline)
    assert headline == {name: number["value"] for name, number in described.items()}
    for name, number in described.items():
        assert len(number["interval"]) == 2, name


def test_a_decision_by_cost_is_stored_with_the_model_and_in_the_headline(workspace, quick, params):
    changes = {"model.num_classes": 7, "training.max_epochs": 1}
    train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    before, usual = written_predictions(), read_json(EVALUATION)
    assert load_calibration(MODELS).costs == tuple(map(tuple, 1 - np.eye(7)))
    names = before.classes.names
    rows = [
        ",".join([name, *("0" if name == other else "99" if name == "df" else "1" for other in names)])
        for name in names
    ]
    (workspace / "costs.csv").write_text("\n".join([",".join(["true", *names]), *rows]))
    params({"evaluation.decision": "costs.csv", "model.num_classes": "7"})
    evaluate.main()
    predictions, headline = written_predictions(), read_json(EVALUATION)
    assert predictions.table.equals(before.table)
    assert np.array(load_calibration(MODELS).costs)[names.index("df"), 0] == 99
    assert "df" in {names[number] for number in predictions.predicted}
    test = predictions.of("test")
    assert headline.pop("decided_accuracy") == pytest.approx((test.predicted == test.labels).mean(), abs=1e-6)
    assert 0 < headline.pop("decided_balanced_accuracy") < 1
    assert headline == {name: value for name, value in usual.items() if name != "macro_sensitivity"}
    params({"evaluation.decision": "costs.txt.csv"})
    with pytest.raises(InputError, match=r"evaluation.decision is 'costs.txt.csv', which cannot be read"):
        evaluate.main()
    assert read_json(EVALUATION)["accuracy"] == usual["accuracy"], "what was there stays"


def test_a_decision_that_makes_no_difference_to_two_classes_is_said(workspace, params, capsys):
    params({"evaluation.decision": "balanced"})
    evaluate.main()
    assert "evaluation.decision=balanced is for models of diagnoses" in capsys.readouterr().out


def test_temperature_and_threshold_come_from_the_validation_images_alone(evaluated, workspace, quick):
    """The same model with other test images has the same calibration."""
    before = read_json(MODELS / "calibration.json")
    predictions = written_predictions()
    val = predictions.of("val")
    malignant = val.malignant_probability[val.is_malignant]
    assert (malignant >= before["threshold"]).mean() >= 0.9
    assert (malignant > before["threshold"] + 1e-6).mean() < 0.9

    split = read_csv(SPLIT, [])
    split["split"] = split["split"].where(split["split"] != "test", "train").where(split["fold"] != 2, "test")
    write_csv(SPLIT, split)
    evaluate.main()
    assert read_json(MODELS / "calibration.json") == before
    assert not set(written_predictions().of("test").table["image_id"]) & set(predictions.table["image_id"])


def test_published_probabilities_are_those_that_predicting_again_gives(evaluated, workspace):
    """Whoever loads the model with its calibration gets what predictions.csv says."""
    network, _ = load_model(MODELS)
    store, table = PixelStore(PREPARED), written_predictions().of("test")
    pixels = torch.from_numpy(store.read(store.indices_of(table.table["image_id"])))
    again = predict_calibrated(network, [pixels], torch.device("cpu"), load_calibration(MODELS))
    np.testing.assert_allclose(table.probabilities, again, atol=1e-6)


def test_a_model_that_tells_red_from_blue_beats_what_the_metadata_say(workspace, capsys):
    evaluate.main()
    details, headline = read_json(DETAILS), read_json(EVALUATION)
    assert headline["auroc"] > 0.9
    assert f"auroc: {headline['auroc']:.3f} (" in capsys.readouterr().out
    # Age, sex and site are the same for all images of the tiny dataset.
    assert details["baselines"]["metadata"]["metrics"]["auroc"]["value"] == pytest.approx(0.5)
    assert details["baselines"]["metadata"]["image_adds"]["auroc"]["value"] == pytest.approx(headline["auroc"] - 0.5)
    assert details["baselines"]["majority_class"]["class"] == "benign"


def test_heatmaps_are_of_test_images_of_each_kind(workspace):
    evaluate.main()
    cases, heatmaps = read_cases(GRADCAM)
    test = written_predictions().of("test").table.set_index("image_id")
    assert heatmaps.shape == (len(cases), 8, 8)
    found = cases[cases["case"] == "true positive"]
    assert 0 < len(found) <= 4
    assert set(test.loc[found["image_id"], "label"]) == {"malignant"}
    assert heatmaps.max() == 255


def test_an_ensemble_over_folds_is_calibrated_as_the_average_that_it_is(workspace, quick):
    """On images that none of its networks was trained on or chosen by."""
    changes = {"model.ensemble": 3, "model.ensemble_over": "folds", "training.max_epochs": 1}
    train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    network, description = load_model(MODELS)
    split, store = read_csv(SPLIT, []), PixelStore(PREPARED)
    predictions, calibration = written_predictions(), load_calibration()
    validated = set(split["image_id"][split["split"] == "val"])
    assert set(predictions.of("val").table["image_id"]) == validated
    assert len(set(description.validation_folds)) == 3
    for fold in description.validation_folds:
        seen = [SplitImages(store, name, SPLIT, 2, fold).table["image_id"] for name in ("train", "val")]
        assert validated.isdisjoint(pd.concat(seen))
    for name in ("val", "test"):
        told = predictions.of(name)
        pixels = torch.from_numpy(store.read(store.indices_of(told.table["image_id"])))
        expected = predict_calibrated(network, [pixels], torch.device("cpu"), calibration)
        np.testing.assert_allclose(told.probabilities, expected, atol=1e-5)


def test_evaluating_again_gives_the_same_bytes_whatever_the_batch_size(workspace, params):
    def outputs():
        evaluate.main()
        return [path.read_bytes() for path in (PREDICTIONS, EVALUATION, DETAILS, MODELS / "calibration.json")]

    assert outputs() == outputs()
    before = written_predictions().probabilities
    params({"evaluation.batch_size": "64", "runtime.cpu_threads": "1"})
    evaluate.main()
    np.testing.assert_allclose(written_predictions().probabilities, before, atol=1e-6)


def test_images_of_another_size_than_the_model_was_trained_on_are_refused(workspace):
    description = MODELS / "model.json"
    description.write_text(description.read_text().replace('"image_size": 16', '"image_size": 32'))
    with pytest.raises(InputError, match=r"models is for images of 32 pixels, data/prepared holds 16"):
        evaluate.main()


@pytest.mark.parametrize("place", [MODELS, PREPARED, SPLIT, SPLIT_METRICS])
def test_a_missing_input_is_named_and_nothing_is_written(workspace, place):
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(InputError, match=f"{place}.*does not exist; run `dvc repro`"):
        evaluate.main()
    assert not PREDICTIONS.exists()
    assert not EVALUATION.exists()
