import numpy as np
import pytest

from benchmarks.plain import HAM10000, told_apart
from stages.errors import InputError
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, describe_classes, read_predictions
from stages.files import write_csv


@pytest.fixture
def path(predictions_of, tmp_path):
    """A table of predictions of two classes."""
    write_csv(tmp_path / "predictions.csv", predictions_of([0, 1, 0, 1, 0], 2).table)
    return tmp_path / "predictions.csv"


@pytest.mark.parametrize("classes", [2, 7])
def test_what_is_read_is_what_was_written(predictions_of, tmp_path, classes):
    labels = [number % classes for number in range(20)]
    written = predictions_of(labels, classes)
    write_csv(tmp_path / "predictions.csv", written.table)
    described = describe_classes(told_apart(classes), HAM10000).get("taxonomy")
    read = read_predictions(tmp_path / "predictions.csv", described)
    assert read.classes == written.classes
    assert list(read.labels) == labels
    assert np.array_equal(read.probabilities, written.probabilities)
    assert read.table.equals(written.table)
    now, later = (compute_metrics(each.probabilities, each.labels, each.classes) for each in (written, read))
    assert now == later


def test_malignancy_is_that_of_three_diagnoses(predictions_of):
    predictions = predictions_of(list(range(7)), 7)
    assert list(predictions.is_malignant) == [True, True, False, False, True, False, False]
    expected = predictions.probabilities[:, [0, 1, 4]].sum(axis=1)
    np.testing.assert_allclose(predictions.malignant_probability, expected)


def test_malignancy_is_the_second_of_two_classes(predictions_of):
    predictions = predictions_of([0, 1, 1], 2)
    assert list(predictions.is_malignant) == [False, True, True]
    assert np.array_equal(predictions.malignant_probability, predictions.probabilities[:, 1])


def test_seven_diagnoses_are_read_as_benign_or_malignant(predictions_of):
    seven = predictions_of(list(range(7)), 7, split="val")
    two = seven.benign_or_malignant
    assert two.classes == told_apart(2)
    assert list(two.labels) == [1, 1, 0, 0, 1, 0, 0]
    assert np.array_equal(two.malignant_probability, seven.malignant_probability), "rounded, it might cross a threshold"
    np.testing.assert_allclose(two.probabilities[:, 0], seven.probabilities[:, [2, 3, 5, 6]].sum(axis=1), atol=3e-6)
    assert two.table[["image_id", "lesion_id", "split"]].equals(seven.table[["image_id", "lesion_id", "split"]])
    assert two.benign_or_malignant is two


def test_a_split_has_its_rows_only(predictions_of):
    table = predictions_of([0, 1, 0, 1], 2).table
    table["split"] = ["val", "test", "test", "val"]
    of_test = Predictions(table, told_apart(2)).of("test")
    assert list(of_test.table["image_id"]) == ["I001", "I002"]
    assert list(of_test.labels) == [1, 0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label", "diagnosis", "lacks the column label"),
        ("image_id", "id", "lacks the column image_id"),
        ("probability_", "p_", "probabilities are of no classes"),
        ("probability_benign", "probability_harmless", "probabilities are of harmless, malignant"),
        (
            "probability_benign,probability_malignant",
            "probability_malignant,probability_benign",
            "of malignant, benign",
        ),
        ("test,malignant", "test,melanoma", "a label is none of benign, malignant"),
        ("test,malignant", "test,", "a label is none of"),
        ("0.", "1.", "not at least 0 with the sum 1"),
        ("0.", "-0.", "not at least 0 with the sum 1"),
        ("0.", "abc0.", "not at least 0 with the sum 1"),
    ],
)
def test_a_changed_table_is_refused_with_its_name_and_the_reason(path, old, new, message):
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError) as caught:
        read_predictions(path, None)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "", "inf"])
def test_a_probability_that_is_no_finite_number_is_refused(path, value):
    lines = path.read_text().splitlines()
    lines[2] = ",".join([*lines[2].split(",")[:-1], value])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"predictions\.csv: "):
        read_predictions(path, None)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_missing_or_damaged_table_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.csv .*`dvc repro`"):
        read_predictions(path, None)
