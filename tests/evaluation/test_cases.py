import io

import numpy as np
import pandas as pd
import pytest

from benchmarks.plain import told_apart
from stages.errors import InputError
from stages.evaluation.cases import KINDS, choose_cases, most_confident_mistakes, read_cases, write_cases
from stages.evaluation.predictions import Predictions

TP, FN, FP = KINDS


def table(*rows):
    """Predictions of two classes; a row holds image, lesion, whether it is malignant, and that class's probability."""
    images, lesions, malignant, probability = map(np.array, zip(*rows))
    content = {"image_id": images, "lesion_id": lesions, "split": "test"}
    content["label"] = np.where(malignant, "malignant", "benign")
    content |= {"probability_benign": 1 - probability, "probability_malignant": probability}
    return Predictions(pd.DataFrame(content), told_apart(2))


def chosen(predictions, threshold=0.5, count=10):
    """The images of each case, in their order."""
    cases = choose_cases(predictions, threshold, count)
    assert list(cases.columns) == ["case", "image_id"]
    return {kind: list(rows["image_id"]) for kind, rows in cases.groupby("case", sort=False)}


MIXED = [
    ("a", "A", True, 0.6),
    ("b", "B", True, 0.9),
    ("c", "C", True, 0.3),
    ("d", "D", True, 0.1),
    ("e", "E", False, 0.7),
    ("f", "F", False, 0.8),
    ("g", "G", False, 0.2),
]


def test_each_kind_comes_with_its_clearest_images_first():
    assert chosen(table(*MIXED)) == {
        TP: ["b", "a"],
        FN: ["d", "c"],
        FP: ["f", "e"],
    }
    assert list(choose_cases(table(*MIXED), 0.5, 10)["case"].unique()) == [
        TP,
        FN,
        FP,
    ]
    assert chosen(table(*MIXED), count=1) == {TP: ["b"], FN: ["d"], FP: ["f"]}


def test_the_threshold_decides_and_an_image_at_it_is_called_malignant():
    assert chosen(table(*MIXED), 0.3) == {
        TP: ["b", "a", "c"],
        FN: ["d"],
        FP: ["f", "e"],
    }
    assert chosen(table(*MIXED), 0.75) == {
        TP: ["b"],
        FN: ["d", "c", "a"],
        FP: ["f"],
    }


def test_a_kind_without_images_has_no_rows():
    assert chosen(table(*MIXED), 0.0) == {TP: ["b", "a", "c", "d"], FP: ["f", "e", "g"]}
    assert chosen(table(*MIXED), 1.0) == {FN: ["d", "c", "a", "b"]}
    assert chosen(table(("g", "G", False, 0.2))) == {}
    assert chosen(table(*MIXED), count=0) == {}


def test_of_a_lesion_the_clearest_image_stands_for_it_and_leaves_room_for_others():
    rows = [("a", "A", True, 0.8), ("b", "A", True, 0.9), ("c", "A", True, 0.1), ("d", "B", True, 0.7)]
    # Found in two images and missed in one: a case of each kind.
    assert chosen(table(*rows), count=2) == {TP: ["b", "d"], FN: ["c"]}


def test_images_with_the_same_probability_keep_their_order():
    rows = [(f"{number}", f"L{number}", number % 3 > 0, [0.9, 0.9, 0.1][number % 3]) for number in reversed(range(60))]
    order = [row[0] for row in rows]
    expected = {kind: [name for name in order if int(name) % 3 == rest] for kind, rest in ((TP, 1), (FN, 2), (FP, 0))}
    assert chosen(table(*rows), count=60) == expected


def test_of_seven_classes_the_malignant_ones_count_together(predictions_of):
    predictions = predictions_of([4], 7)  # a melanoma
    predictions.table.loc[:, [f"probability_{name}" for name in told_apart(7).names]] = [0.2, 0.2, 0, 0, 0.2, 0.4, 0]
    assert chosen(predictions, 0.55) == {TP: ["I000"]}
    assert chosen(predictions, 0.65) == {FN: ["I000"]}


def test_mistakes_are_images_of_another_class_than_predicted_the_most_confident_first():
    predictions = table(*MIXED)
    assert list(most_confident_mistakes(predictions, 0.5, 10)) == [3, 5, 2, 4]
    assert list(most_confident_mistakes(predictions, 0.5, 2)) == [3, 5]
    assert list(most_confident_mistakes(predictions, 0.75, 10)) == [3, 5, 2, 0]
    assert list(most_confident_mistakes(table(("g", "G", False, 0.2)), 0.5, 2)) == []


def test_one_mistake_of_a_lesion_is_shown():
    rows = [("a", "A", False, 0.8), ("b", "A", False, 0.9), ("c", "C", False, 0.75), ("d", "D", True, 0.25)]
    assert list(most_confident_mistakes(table(*rows), 0.5, 3)) == [1, 2, 3]  # the last two are equally confident


def test_one_benign_diagnosis_taken_for_another_is_a_mistake(predictions_of):
    predictions = predictions_of([5, 5], 7)  # two nevi of one lesion
    columns = [f"probability_{name}" for name in told_apart(7).names]
    predictions.table.loc[0, columns] = [0, 0, 0.3, 0, 0, 0.7, 0]
    predictions.table.loc[1, columns] = [0, 0, 0.6, 0, 0, 0.4, 0]
    assert list(most_confident_mistakes(predictions, 0.5, 5)) == [1]


# The files


@pytest.fixture
def written(tmp_path):
    """A folder with two cases."""
    cases = pd.DataFrame({"case": [TP, FN], "image_id": ["007", "I1"]})
    heatmaps = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    write_cases(tmp_path / "gradcam", cases, heatmaps)
    return tmp_path / "gradcam", cases, heatmaps


def test_what_is_read_is_what_was_written(written):
    folder, cases, heatmaps = written
    read = read_cases(folder)
    assert read[0].to_dict("list") == cases.to_dict("list")
    assert np.array_equal(read[1], heatmaps)
    write_cases(folder, cases[:0], heatmaps[:0])
    empty = read_cases(folder)
    assert len(empty[0]) == 0
    assert empty[1].shape == (0, 4, 4)


def test_the_same_cases_are_the_same_bytes(written, bytes_below):
    folder, cases, heatmaps = written
    before = bytes_below(folder)
    write_cases(folder, cases, heatmaps)
    assert bytes_below(folder) == before


class Trap:
    """What a pickle makes that runs code as it is read."""

    def __reduce__(self):
        return pytest.fail, ("ran what a file says",)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"garbage",
        npy(np.zeros((2, 4, 4), np.uint8))[:-1],
        npy(np.zeros((3, 4, 4), np.uint8)),
        npy(np.zeros((2, 4, 4))),
        npy(np.zeros((2, 16), np.uint8)),
        npy(np.zeros((2, 4, 3), np.uint8)),
        npy(np.array([Trap(), Trap()])),
    ],
    ids=["missing", "empty", "garbage", "cut off", "of other cases", "floats", "flat", "not square", "objects"],
)
def test_heatmaps_that_are_none_of_these_cases_are_refused_with_their_name(written, content):
    path = written[0] / "heatmaps.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"heatmaps\.npy.*`dvc repro`"):
        read_cases(written[0])
