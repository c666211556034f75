import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from benchmarks.plain import HAM10000, told_apart
from stages.dataset.encoding import COLUMNS
from stages.dataset.taxonomy import numbers_of
from stages.evaluation.baselines import assess_baselines, predict_from_metadata
from stages.evaluation.metrics import compute_metrics
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.subgroups import subgroup_table


def patients(images: int, seed: int, tells: bool = True) -> pd.DataFrame:
    """Rows of the manifest, where age tells of the diagnosis if `tells`."""
    random = np.random.default_rng(seed)
    age = random.integers(20, 90, images).astype(float)
    dx = random.choice(list(HAM10000), images)
    if tells:
        dx = np.where(random.random(images) < age / 100, "mel", "nv")
    return pd.DataFrame(
        {
            "dx": dx,
            "age": age,
            "sex": random.choice(["female", "male"], images),
            "localization": random.choice(["back", "face", "hand"], images),
            "dataset": "rosendahl",
            # It tells everything, and must not be used.
            "dx_type": np.where(dx == "mel", "histo", "consensus"),
        }
    )


def predict(images: pd.DataFrame, classes: int) -> Predictions:
    """Predictions that are right nine times in ten."""
    names = told_apart(classes).names
    labels = [dx if classes == 7 else names[HAM10000[dx].malignant] for dx in images["dx"]]
    told = np.array([names.index(label) for label in labels])
    told[::10] = (told[::10] + 1) % classes
    probabilities = np.full((len(images), classes), 0.3 / classes) + 0.7 * np.eye(classes)[told]
    probabilities += np.random.default_rng(0).random(probabilities.shape) / 50
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ids = pd.DataFrame({"image_id": [f"I{n}" for n in images.index], "lesion_id": [f"L{n}" for n in images.index]})
    return Predictions(predictions_table(ids, "test", labels, probabilities, told_apart(classes)), told_apart(classes))


def labels_of(images: pd.DataFrame, classes: int) -> np.ndarray:
    return numbers_of(images["dx"], HAM10000, told_apart(classes))


def judged(test: pd.DataFrame, train: pd.DataFrame, classes: int = 2) -> dict:
    return assess_baselines(predict(test, classes), test, train, labels_of(train, classes), 200, 0.95)


@pytest.mark.parametrize("classes", [2, 7])
def test_the_majority_class_is_that_of_the_training_images(classes):
    train = patients(300, 0, tells=False)
    train.loc[:100, "dx"] = "bkl"
    test = patients(100, 1, tells=False)
    majority = judged(test, train, classes)["majority_class"]
    assert majority["class"] == ("benign" if classes == 2 else "bkl")
    share = np.mean([not HAM10000[dx].malignant if classes == 2 else dx == "bkl" for dx in test["dx"]])
    assert majority["metrics"]["accuracy"]["value"] == pytest.approx(share)
    assert majority["metrics"]["balanced_accuracy"]["value"] == pytest.approx(1 / classes)
    name = "auroc" if classes == 2 else "macro_auroc"
    assert majority["metrics"][name] == {"value": 0.5, "interval": [0.5, 0.5]}


def test_the_metadata_baseline_is_a_logistic_regression_on_age_band_sex_and_localization():
    train, test = patients(3000, 0), patients(400, 1)
    metadata = judged(test, train)["metadata"]
    assert metadata["columns"] == ["age", "sex", "localization"]

    def design(rows):
        bands = np.digitize(rows["age"], [30, 45, 60, 75])
        columns = [bands == band for band in range(1, 5)]
        columns += [rows["sex"] == "male", rows["localization"] == "face", rows["localization"] == "hand"]
        return sm.add_constant(np.stack(columns, axis=1).astype(float), has_constant="add")

    model = sm.Logit((train["dx"] == "mel").astype(float), design(train)).fit(disp=False)
    guessed, truth = model.predict(design(test)), test["dx"] == "mel"
    # scikit-learn's regression is slightly regularised, statsmodels' is not.
    assert metadata["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, guessed), abs=0.005)
    assert metadata["metrics"]["accuracy"]["value"] == pytest.approx(accuracy_score(truth, guessed > 0.5), abs=0.01)
    assert 0.6 < metadata["metrics"]["auroc"]["value"] < 0.9


@pytest.mark.parametrize("classes", [2, 7])
def test_the_regression_is_that_of_scikit_learn(classes):
    train, test = patients(600, 0, tells=classes == 2), patients(100, 1)
    labels = numbers_of(train["dx"], HAM10000, told_apart(classes))
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000, tol=1e-9))
    model.fit(subgroup_table(train)[COLUMNS], labels)
    expected = model.predict_proba(subgroup_table(test)[COLUMNS])
    np.testing.assert_allclose(predict_from_metadata(train, labels, test, classes), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 7])
def test_what_the_image_adds_is_the_difference_to_the_metadata(classes):
    train, test = patients(600, 0, tells=False), patients(200, 1, tells=False)
    metadata = judged(test, train, classes)["metadata"]
    predictions = predict(test, classes)
    ours = compute_metrics(predictions.probabilities, predictions.labels, predictions.classes)["metrics"]
    assert set(metadata["image_adds"]) == set(metadata["metrics"]) == set(ours)
    for name, number in metadata["image_adds"].items():
        assert number["value"] == pytest.approx(ours[name] - metadata["metrics"][name]["value"]), name
        low, high = number["interval"]
        assert low <= number["value"] <= high, name
    assert metadata["image_adds"]["accuracy"]["interval"][0] > 0.1, "the classifier is right nine times in ten"


def test_a_classifier_that_says_what_the_metadata_say_adds_nothing_with_certainty():
    train, test = patients(600, 0), patients(100, 1)
    predictions = predict(test, 2)
    band = np.digitize(test["age"], [30, 45, 60, 75]) / 5
    table = predictions.table.assign(probability_malignant=band, probability_benign=1 - band)
    for column in ("sex", "localization"):
        train[column], test[column] = "unknown", "unknown"
    predictions = Predictions(table, predictions.classes)
    added = assess_baselines(predictions, test, train, labels_of(train, 2), 100, 0.95)["metadata"]["image_adds"]
    assert added["auroc"] == {"value": 0, "interval": [0, 0]}


def test_groups_that_training_did_not_have_are_no_obstacle():
    train, test = patients(300, 0), patients(100, 1)
    test.loc[:10, ["sex", "localization", "age"]] = ["unknown", "scalp", np.nan]
    assert judged(test, train)["metadata"]["metrics"]["auroc"]["value"] > 0.5


@pytest.mark.parametrize("classes", [2, 7])
def test_training_images_of_a_few_classes_only_are_no_obstacle(classes):
    test = patients(100, 1, tells=False)
    train = patients(300, 0)
    metadata = judged(test, train, classes)["metadata"]
    assert 0 < metadata["metrics"]["accuracy"]["value"] < 1
    alone = judged(test, train[train["dx"] == "nv"], classes)
    assert alone["metadata"]["metrics"] == alone["majority_class"]["metrics"]
