import shutil

import numpy as np
import pytest

from stages import evaluate
from stages.dataset.taxonomy import class_of
from stages.errors import InputError
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import read_predictions
from stages.files import (
    DETAILS,
    EVALUATION,
    MODELS,
    PREDICTIONS,
    PREPARED,
    SPLIT,
    TRAINING_METRICS,
    read_csv,
    read_json,
)
from stages.train import train_model


@pytest.fixture(params=[2, 7])
def evaluated(request, workspace, quick):
    """The working directory after `evaluate`; the number of classes."""
    if request.param == 7:
        changes = {"model.num_classes": 7, "training.max_epochs": 1}
        train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    return request.param


def test_every_validation_and_test_image_is_predicted_once_and_no_other(evaluated):
    table = read_predictions(PREDICTIONS).table
    split = read_csv(SPLIT, []).set_index("image_id")
    expected = split[split["split"].isin(("val", "test"))]
    assert sorted(table["image_id"]) == sorted(expected.index)
    assert list(table["split"]) == list(split.loc[table["image_id"], "split"])
    assert list(table["lesion_id"]) == list(split.loc[table["image_id"], "lesion_id"])


def test_labels_are_those_of_the_images_and_probabilities_sum_to_1(evaluated):
    predictions = read_predictions(PREDICTIONS)
    dx = read_csv(PREPARED / "manifest.csv", []).set_index("image_id")["dx"]
    labels = [class_of(dx[image_id], evaluated) for image_id in predictions.table["image_id"]]
    assert list(predictions.table["label"]) == labels
    assert predictions.probabilities.shape == (28, evaluated)
    assert predictions.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_the_metrics_are_those_of_the_written_test_predictions(evaluated):
    predictions, details, metrics = read_predictions(PREDICTIONS), read_json(DETAILS), read_json(EVALUATION)
    assert details["classes"] == list(predictions.classes)
    for split in ("val", "test"):
        of_split = predictions.of(split)
        expected = compute_metrics(of_split.probabilities, of_split.labels)
        assert details[split]["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
        assert details[split]["confusion_matrix"] == expected["confusion_matrix"]
        assert set(details[split]["intervals"]) == set(details[split]["metrics"])
        assert details[split]["images"] == len(of_split.table) == 14
        assert details[split]["lesions"] == of_split.table["lesion_id"].nunique()
    assert metrics == details["test"]["metrics"]
    assert details["test"]["lesions"] == 13, "two test images are of one lesion"
    assert len(metrics) <= 15
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_trained_model_tells_red_from_blue(workspace, capsys):
    evaluate.main()
    assert read_json(EVALUATION)["auroc"] > 0.9
    assert f"auroc: {read_json(EVALUATION)['auroc']:.4f}" in capsys.readouterr().out


def test_evaluating_again_gives_the_same_bytes_whatever_the_batch_size(workspace, params):
    def outputs():
        evaluate.main()
        return [path.read_bytes() for path in (PREDICTIONS, EVALUATION, DETAILS)]

    assert outputs() == outputs()
    before = read_predictions(PREDICTIONS).probabilities
    params({"evaluation.batch_size": "64", "training.cpu_threads": "1"})
    evaluate.main()
    np.testing.assert_allclose(read_predictions(PREDICTIONS).probabilities, before, atol=1e-6)


def test_images_of_another_size_than_the_model_was_trained_on_are_refused(workspace):
    description = MODELS / "model.json"
    description.write_text(description.read_text().replace('"image_size": 16', '"image_size": 32'))
    with pytest.raises(InputError, match=r"models is for images of 32 pixels, data/prepared holds 16"):
        evaluate.main()


@pytest.mark.parametrize("place", [MODELS, PREPARED, SPLIT])
def test_a_missing_input_is_named_and_nothing_is_written(workspace, place):
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(InputError, match=f"{place}.*does not exist; `dvc repro` makes it"):
        evaluate.main()
    assert not PREDICTIONS.exists()
    assert not EVALUATION.exists()
