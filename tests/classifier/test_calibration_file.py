import dataclasses
import json

import numpy as np
import pytest
from scipy.special import softmax

from benchmarks.plain import HAM10000
from stages.classifier.calibration import (
    Calibration,
    apply_temperature,
    as_written,
    cost_matrix,
    decide,
    load_calibration,
    save_calibration,
)
from stages.classifier.description import ModelDescription
from stages.errors import InputError
from stages.files import write_json

FITTED = Calibration(
    test_time_augmentation=True, temperature=1.5, threshold=0.25, target_sensitivity=0.9, youden_threshold=0.125
)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1, 3, 20])
@pytest.mark.parametrize("classes", [2, 7])
def test_scaled_probabilities_are_the_softmax_of_the_divided_logits(classes, temperature):
    logits = 3 * np.random.default_rng(0).normal(size=(50, classes))
    scaled = apply_temperature(softmax(logits, axis=1), temperature)
    np.testing.assert_allclose(scaled, softmax(logits / temperature, axis=1), atol=1e-12)


def test_a_hand_worked_temperature():
    # Odds of 81 : 9 : 1 at the temperature 2 are 9 : 3 : 1.
    np.testing.assert_allclose(apply_temperature(np.array([[81, 9, 1]]) / 91, 2), np.array([[9, 3, 1]]) / 13)


@pytest.mark.parametrize("temperature", [0.05, 1, 20])
def test_certain_predictions_stay_probabilities_without_a_warning(temperature):
    scaled = apply_temperature(np.array([[1.0, 0.0], [0.5, 0.5], [1e-300, 1.0]]), temperature)
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    assert list(scaled.argmax(axis=1)) == [0, 0, 1]


@pytest.mark.parametrize("row", [[np.nan, 0.5], [np.inf, 0.0], [1.5, -0.5], [0.5, 0.4]], ids=str)
def test_what_are_no_probabilities_is_refused(row):
    with pytest.raises(ValueError, match="must be at least 0 and sum to 1"):
        apply_temperature(np.array([[0.5, 0.5], row]), 2)


def test_a_number_is_written_rounded_down_to_six_significant_digits():
    random = np.random.default_rng(0)
    decimal = np.arange(1, 20_000) / 1e6
    numbers = (*decimal, *np.nextafter(decimal, -1), *np.nextafter(decimal, 1), *10 ** random.uniform(-12, 0, 2000))
    for number in map(float, (*numbers, 0, 1)):
        written = as_written(number)
        assert (1 - 1e-5) * number <= written <= number
        assert written == float(f"{written:.6g}")


def test_the_decision_is_that_of_the_lowest_expected_cost():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.0, 0.0, 1.0]])
    # To miss the last class costs 3: in the second row its 0.2 weighs like 0.6.
    costs = np.array([[0, 1, 1], [1, 0, 1], [3, 3, 0]])
    assert list(decide(probabilities, costs)) == [0, 2, 2, 2]
    # Expected costs of the first row: 0.2 · 4 + 0.1, 0.7 · 0.5 + 0.1, 0.7 + 0.2 · 4.
    assert decide(probabilities, np.array([[0, 0.5, 1], [4, 0, 4], [1, 1, 0]]))[0] == 1


@pytest.mark.parametrize("classes", [2, 7, 20])
@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_equal_costs_decide_for_the_most_probable_class_and_of_equal_ones_for_the_first(classes, decimals):
    probabilities = np.random.default_rng(0).dirichlet(np.full(classes, 0.5), 2000).round(decimals)
    expected = probabilities.argmax(axis=1)
    for factor in (1, 1e-9, 3.7, 1e9):
        assert (decide(probabilities, factor * cost_matrix(None, classes)) == expected).all()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("costs", [None, ((0.0, 1.5), (58.2609, 0.0))])
def test_what_is_loaded_is_what_was_saved(tmp_path, weights, costs):
    fitted = dataclasses.replace(FITTED, costs=costs)
    save_calibration(fitted, tmp_path)
    assert load_calibration(tmp_path) == fitted
    save_calibration(FITTED, tmp_path)
    weights.unlink()  # as where a revision's calibration is read alone
    assert load_calibration(tmp_path) == FITTED


@pytest.mark.parametrize("threshold", [9e-7, 1.5e-8, 4.999999e-5, 0.1234567, 0.5])
def test_the_file_calls_the_same_images_malignant(tmp_path, weights, threshold):
    """However small the threshold is: the images at and above it, and none of those well below."""
    scores = threshold * np.array([0.5, 0.99, 1, 1.01, 2])
    save_calibration(dataclasses.replace(FITTED, threshold=as_written(threshold)), tmp_path)
    assert list(scores >= load_calibration(tmp_path).threshold) == [False, False, True, True, True]


def test_a_calibration_of_other_weights_is_refused(tmp_path, weights):
    save_calibration(FITTED, tmp_path)
    weights.write_bytes(b"trained again")
    with pytest.raises(InputError, match=r"was not fitted for the weights in .*; run `dvc repro` to regenerate it"):
        load_calibration(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("test_time_augmentation", 1, "true or false"),
        ("test_time_augmentation", None, "true or false"),
        ("temperature", 1e-320, "greater than or equal to 0.000001"),
        ("temperature", 1e308, "less than or equal to 1000000"),
        ("temperature", True, "a valid number"),
        ("temperature", float("nan"), "a finite number"),
        ("temperature", float("inf"), "a finite number"),
        ("threshold", 1.5, "less than or equal to 1"),
        ("threshold", -0.1, "greater than or equal to 0"),
        ("threshold", "0.5", "a valid number"),
        ("target_sensitivity", None, "a valid number"),
        ("youden_threshold", [0.5], "a valid number"),
        ("costs", [[0.0, 1.0]], "a square matrix"),
        ("costs", 1, "a list"),
    ],
)
def test_a_changed_file_is_refused_with_what_is_right(tmp_path, key, value, expected):
    (tmp_path / "calibration.json").write_text(json.dumps(dataclasses.asdict(FITTED) | {key: value}))
    with pytest.raises(InputError) as caught:
        load_calibration(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'calibration.json'}: {key} is {value!r}; it must be {expected}; run `dvc repro` to regenerate it"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", r"the content is \[\]; it must be a mapping"),
        ("{}", "threshold is missing"),
        (json.dumps(dataclasses.asdict(FITTED) | {"biass": 1}), "biass is unknown; did you mean bias"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, expected):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        load_calibration(tmp_path)


def test_a_missing_file_is_refused_with_what_makes_it(tmp_path):
    with pytest.raises(InputError, match="does not exist; run `dvc repro`"):
        load_calibration(tmp_path)


def test_a_file_of_an_earlier_commit_has_no_costs_and_one_of_other_classes_is_refused(tmp_path):
    outline = ([0.5] * 3, [0.2] * 3, [0], [1.0], [], 32, 1)
    description = ModelDescription("resnet18", 1, list(HAM10000), HAM10000, 16, *outline)
    write_json(tmp_path / "model.json", dataclasses.asdict(description))
    path, content = tmp_path / "calibration.json", dataclasses.asdict(FITTED)
    for costs in ([[0.0, 1.0], [1.0, 0.0]], []):
        path.write_text(json.dumps(content | {"costs": costs}))
        with pytest.raises(InputError, match=rf"costs are of {len(costs)} classes; the model has 7; run `dvc repro`"):
            load_calibration(tmp_path)
    del content["costs"]
    path.write_text(json.dumps(content))
    assert load_calibration(tmp_path).costs is None
