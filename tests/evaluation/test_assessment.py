import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn import metrics as reference

from benchmarks.plain import PLAIN, told_apart
from stages.checks import checked
from stages.classifier.calibration import Calibration, apply_temperature
from stages.errors import InputError
from stages.evaluation.assessment import assess, fit_calibration
from stages.evaluation.comparison import AT_THRESHOLD
from stages.evaluation.details import BinaryAssessment, DiagnosisAssessment
from stages.evaluation.metrics import compute_metrics, headline, headline_numbers
from stages.evaluation.predictions import Predictions, predictions_table
from stages.files import write_json

MALIGNANT = {2: [1], 7: [0, 1, 4]}
CONFIG = replace(PLAIN.evaluation, bootstrap_replicates=200, target_sensitivity=0.8)
CALIBRATION = Calibration(True, 1.5, 0.3, 0.8, 0.45)

pytestmark = pytest.mark.filterwarnings("error")  # an undefined number is None, not a warning


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def random_outputs(classes: int, images: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Uncalibrated probabilities, more right than wrong, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    return softmax(2 * random.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]), labels


def predictions(probabilities: np.ndarray, labels: np.ndarray, lesions: np.ndarray | None = None) -> Predictions:
    """The table of these probabilities; two images a lesion unless given."""
    numbers = np.arange(len(labels))
    lesions = numbers // 2 if lesions is None else lesions
    ids = pd.DataFrame({"image_id": [f"I{n}" for n in numbers], "lesion_id": [f"L{n}" for n in lesions]})
    told = told_apart(probabilities.shape[1])
    names = [told.names[label] for label in labels]
    return Predictions(predictions_table(ids, "test", names, probabilities, told), told)


def manifest(images: int) -> pd.DataFrame:
    numbers = np.arange(images)
    return pd.DataFrame(
        {
            "age": np.where(numbers % 9 == 8, np.nan, numbers * 7 % 90),
            "sex": np.where(numbers % 3, "male", "female"),
            "localization": np.where(numbers % 5, "back", "ear"),
            "dataset": "rosendahl",
            "dx_type": np.where(numbers % 2, "histo", "consensus"),
        }
    )


def assessed(raw, labels, lesions=None, calibration=CALIBRATION, config=CONFIG) -> tuple[Predictions, dict]:
    test = predictions(apply_temperature(raw, calibration.temperature), labels, lesions)
    return test, assess(test, raw, manifest(len(labels)), calibration, config)


def every_number(content, place="test"):
    """Every `{"value", "interval"}` in nested dicts and lists, with its place."""
    if isinstance(content, dict) and set(content) == {"value", "interval"}:
        yield place, content
    elif isinstance(content, dict | list):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from every_number(part, f"{place}.{key}")


@pytest.mark.parametrize("classes", [2, 7])
def test_the_headline_metrics_are_those_of_scikit_learn(classes):
    test, section = assessed(*random_outputs(classes))
    labels, probabilities = test.labels, test.probabilities
    truth, score = np.isin(labels, MALIGNANT[classes]), probabilities[:, MALIGNANT[classes]].sum(axis=1)
    called = score >= CALIBRATION.threshold
    values = {name: number["value"] for name, number in section["metrics"].items()}
    one_hot = probabilities[:, 1] if classes == 2 else probabilities
    expected = compute_metrics(probabilities, labels, told_apart(classes))["metrics"] | {
        "accuracy": reference.accuracy_score(labels, probabilities.argmax(axis=1)),
        "auroc" if classes == 2 else "malignant_auroc": reference.roc_auc_score(truth, score),
        "sensitivity_at_threshold": reference.recall_score(truth, called),
        "specificity_at_threshold": reference.recall_score(~truth, ~called),
        "brier": reference.brier_score_loss(labels, one_hot),
        "nll": reference.log_loss(labels, probabilities),
        "ece": values["ece"],
    }
    assert values == pytest.approx(expected)
    assert len(values) == {2: 13, 7: 14}[classes] <= 15
    assert list(headline(test, 0.3)(np.ones((1, 240)))) == list(values), "what a comparison of two models compares"


def test_seven_diagnoses_are_judged_as_benign_or_malignant_too():
    #          akiec bcc   bkl   df    mel   nv    vasc
    probabilities = np.array([
        [0.30, 0.20, 0.00, 0.00, 0.20, 0.30, 0.00],  # mel, 0.7: found, as another diagnosis
        [0.05, 0.05, 0.00, 0.00, 0.25, 0.65, 0.00],  # mel, 0.35: found from the threshold 0.3 on only
        [0.00, 0.10, 0.00, 0.00, 0.00, 0.90, 0.00],  # bcc, 0.1: missed
        [0.00, 0.00, 0.10, 0.00, 0.20, 0.70, 0.00],  # nv, 0.2
        [0.20, 0.20, 0.30, 0.00, 0.20, 0.10, 0.00],  # bkl, 0.6: its own diagnosis, and yet a false alarm
        [0.00, 0.00, 0.40, 0.60, 0.00, 0.00, 0.00],  # bkl, 0
        [0.00, 0.05, 0.00, 0.00, 0.00, 0.95, 0.00],  # nv, 0.05
        [0.00, 0.00, 0.00, 0.00, 0.15, 0.00, 0.85],  # vasc, 0.15
    ])  # fmt: skip
    test = predictions(probabilities, np.array([4, 4, 1, 5, 2, 2, 5, 6]))
    section = assess(test, probabilities, manifest(8), CALIBRATION, CONFIG)
    assert section["metrics"]["accuracy"]["value"] == 4 / 8
    values = {name: number["value"] for name, number in section["malignancy"]["metrics"].items()}
    malignant, benign = np.array([0.7, 0.35, 0.1]), np.array([0.2, 0.6, 0, 0.05, 0.15])
    assert values == pytest.approx({
        "accuracy": 5 / 8,
        "balanced_accuracy": (1 / 3 + 4 / 5) / 2,
        "sensitivity": 1 / 3,
        "specificity": 4 / 5,
        "precision": 1 / 2,
        "f1": 2 / 5,
        "auroc": (5 + 4 + 2) / 15,  # benign images below each malignant one
        "auprc": (1 / 1 + 2 / 3 + 3 / 6) / 3,
        "sensitivity_at_threshold": 2 / 3,
        "specificity_at_threshold": 4 / 5,
        # No bin holds an image that is right and one that is wrong, so the surpluses of all images add up.
        "ece": (0.3 + 0.65 + 0.9 + 0.2 + 0.6 + 0 + 0.05 + 0.15) / 8,
        "brier": (((1 - malignant) ** 2).sum() + (benign**2).sum()) / 8,
        "nll": -(np.log(malignant).sum() + np.log(1 - benign).sum()) / 8,
    })  # fmt: skip


def test_read_as_benign_or_malignant_seven_diagnoses_are_judged_like_a_model_of_two_classes():
    raw, labels = random_outputs(7)
    seven = predictions(raw, labels)
    score = seven.malignant_probability
    two = predictions(np.stack([1 - score, score], axis=1), seven.is_malignant.astype(int))
    sections = [assess(test, test.probabilities, manifest(240), CALIBRATION, CONFIG) for test in (two, seven)]
    of_two, of_seven = (section["metrics"] for section in sections)
    malignancy = sections[1]["malignancy"]["metrics"]
    assert "malignancy" not in sections[0]
    assert list(malignancy) == list(of_two)
    for name, number in malignancy.items():
        assert [number["value"], *number["interval"]] == pytest.approx(
            [of_two[name]["value"], *of_two[name]["interval"]]
        )
    shared = {"auroc": "malignant_auroc", **{name: name for name in AT_THRESHOLD}}
    assert {name: malignancy[name] for name in shared} == {name: of_seven[other] for name, other in shared.items()}


@pytest.mark.parametrize("classes", [2, 7])
def test_every_number_lies_in_its_interval(classes):
    _, section = assessed(*random_outputs(classes))
    numbers = list(every_number(section))
    assert len(numbers) > 60
    for place, number in numbers:
        low, high = number["interval"]
        assert low <= number["value"] <= high, place
        assert low < high or number["value"] in (0, 1), place


@pytest.mark.parametrize("classes", [2, 7])
def test_a_section_counts_images_lesions_and_mistakes(classes):
    test, section = assessed(*random_outputs(classes))
    assert section["images"] == 240
    assert section["lesions"] == 120
    assert section["malignant_images"] == test.is_malignant.sum()
    assert section["malignant_lesions"] == test.table["lesion_id"][test.is_malignant].nunique()
    wanted = reference.confusion_matrix(test.labels, test.probabilities.argmax(axis=1)).tolist()
    assert section["confusion_matrix"] == wanted
    assert ("classes" in section) == (classes == 7)


@pytest.mark.parametrize("name", ["target_sensitivity", "youden"])
def test_an_operating_point_has_its_rates_and_what_they_mean_at_other_prevalences(name):
    config = replace(CONFIG, prevalences=(0.3, 0.01, 0.3))
    test, section = assessed(*random_outputs(7), config=config)
    point = section["operating_points"][name]
    assert point["threshold"] == {"target_sensitivity": 0.3, "youden": 0.45}[name]
    called = test.malignant_probability >= point["threshold"]
    (tn, fp), (fn, tp) = reference.confusion_matrix(test.is_malignant, called)
    wanted = {
        "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "npv": tn / (tn + fn),
    }  # fmt: skip
    assert {key: point[key]["value"] for key in wanted} == pytest.approx(wanted)
    assert [each["prevalence"] for each in point["at_prevalence"]] == [0.3, 0.01, 0.3]
    sensitivity, specificity = wanted["sensitivity"], wanted["specificity"]
    for each in point["at_prevalence"]:
        share = each["prevalence"]
        found, alarms = sensitivity * share, (1 - specificity) * (1 - share)
        assert each["ppv"]["value"] == pytest.approx(found / (found + alarms))
        clear, missed = specificity * (1 - share), (1 - sensitivity) * share
        assert each["npv"]["value"] == pytest.approx(clear / (clear + missed))
    assert assessed(*random_outputs(7), config=replace(CONFIG, prevalences=()))[1]["operating_points"]


def test_each_rate_is_stated_at_levels_of_the_other():
    test, section = assessed(*random_outputs(2))
    fpr, tpr, _ = reference.roc_curve(test.is_malignant, test.malignant_probability, drop_intermediate=False)
    for level, at in zip((0.8, 0.9, 0.95), section["sensitivity_at_specificity"], strict=True):
        assert at["specificity"] == level
        assert at["sensitivity"]["value"] == pytest.approx(tpr[1 - fpr >= level - 1e-9].max())
    for level, at in zip((0.8, 0.9, 0.95), section["specificity_at_sensitivity"], strict=True):
        assert at["sensitivity"] == level
        assert at["specificity"]["value"] == pytest.approx(1 - fpr[tpr >= level - 1e-9].min())


@pytest.mark.parametrize("classes", [2, 7])
def test_calibration_is_told_before_and_after(classes):
    raw, labels = random_outputs(classes)
    test, section = assessed(raw, labels)
    told = section["calibration"]
    for when, probabilities in (("before", raw), ("after", test.probabilities)):
        assert told[when]["nll"]["value"] == pytest.approx(reference.log_loss(labels, probabilities))
        bins = told["reliability"][when]
        assert sum(each["images"] for each in bins) == 240
        score = probabilities[:, MALIGNANT[classes]].sum(axis=1)
        mean = sum(each["images"] * each["predicted"] for each in bins) / 240
        assert mean == pytest.approx(score.mean())
        observed = sum(each["images"] * each["observed"]["value"] for each in bins) / 240
        assert observed == pytest.approx(test.is_malignant.mean())
        assert sorted(each["predicted"] for each in bins) == [each["predicted"] for each in bins]
    for name in ("ece", "brier", "nll"):
        assert told["after"][name] == section["metrics"][name]


def test_subgroups_are_judged_at_the_decision_threshold():
    _, section = assessed(*random_outputs(2))
    assert list(section["subgroups"]) == ["age", "sex", "localization", "dataset", "dx_type"]
    (everyone,) = section["subgroups"]["dataset"]["groups"]
    assert everyone["sensitivity"] == section["metrics"]["sensitivity_at_threshold"]
    assert everyone["auroc"] == section["metrics"]["auroc"]
    assert sum(group["images"] for group in section["subgroups"]["age"]["groups"]) == 240
    assert any("skin tone" in each for each in section["not_assessable"])


def edge_cases() -> list:
    """Uncalibrated probabilities, labels and lesions where something is missing or extreme."""
    found = []
    for classes in (2, 7):
        raw, labels = random_outputs(classes, 60)
        malignant = np.isin(labels, MALIGNANT[classes])
        right = softmax(100 * np.eye(classes)[labels])
        wrong = softmax(100 * np.eye(classes)[(labels + 1) % classes])
        ties = np.full_like(raw, 1 / classes)
        cases = {
            "one lesion": (raw[malignant], labels[malignant], np.zeros(malignant.sum(), int)),
            "one image": (raw[:1], labels[:1], None),
            "no malignant image": (raw[~malignant], labels[~malignant], None),
            "all malignant": (raw[malignant], labels[malignant], None),
            "one malignant lesion": (raw, np.where(np.arange(60) < 2, MALIGNANT[classes][0], 2 % classes), None),
            "perfect": (right, labels, None),
            "certain": (np.eye(classes)[labels], labels, None),
            "inverted": (wrong, labels, None),
            "all ties": (ties, labels, None),
        }
        found += [pytest.param(classes, *case, id=f"{name}, {classes} classes") for name, case in cases.items()]
    return found


@pytest.mark.parametrize(("classes", "raw", "labels", "lesions"), edge_cases())
def test_where_a_number_is_undefined_it_is_null_and_nothing_fails(classes, raw, labels, lesions, tmp_path):
    kinds = np.unique(np.isin(labels, MALIGNANT[classes]))
    config = replace(CONFIG, bootstrap_replicates=100)
    calibration = CALIBRATION if len(kinds) == 1 else fit_calibration(raw, labels, told_apart(raw.shape[1]), config)
    _, section = assessed(raw, labels, lesions, calibration, config)
    write_json(tmp_path / "details.json", section)  # refuses NaN
    written = json.loads((tmp_path / "details.json").read_text())
    checked(written, BinaryAssessment if classes == 2 else DiagnosisAssessment)
    for place, number in every_number(written):
        assert (number["value"] is None) == (number["interval"] is None), place
    area = section["metrics"]["auroc" if classes == 2 else "malignant_auroc"]
    assert (area["value"] is None) == (len(kinds) == 1)
    assert (section["metrics"]["sensitivity_at_threshold"]["value"] is None) == (True not in kinds)
    assert (section["metrics"]["specificity_at_threshold"]["value"] is None) == (False not in kinds)


@pytest.mark.parametrize("classes", [2, 7])
def test_perfect_predictions_are_told_as_such(classes):
    labels = np.arange(70) % classes
    _, section = assessed(np.eye(classes)[labels], labels)
    values = {name: number["value"] for name, number in section["metrics"].items()}
    assert values == dict.fromkeys(values, 1) | dict.fromkeys(("ece", "brier", "nll"), 0)


@pytest.mark.parametrize("classes", [2, 7])
def test_probabilities_that_are_no_numbers_are_refused(classes):
    broken, labels = random_outputs(classes, 20)
    broken[3, 0] = np.nan
    with pytest.raises(ValueError, match="at least 0 and sum to 1"):
        fit_calibration(broken, labels, told_apart(broken.shape[1]), CONFIG)


# 715: there the sum of three rounded probabilities is below the threshold that their exact sum would give.
@pytest.mark.parametrize("seed", [*range(10), 715])
def test_the_thresholds_hold_what_they_promise_for_the_probabilities_that_are_written(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(7, size=60)
    raw = softmax(2 * random.normal(size=(60, 7)) + np.eye(7)[labels])
    calibration = fit_calibration(raw, labels, told_apart(raw.shape[1]), CONFIG)
    validation = predictions(apply_temperature(raw, calibration.temperature), labels)
    score = validation.malignant_probability[validation.is_malignant]
    assert (score >= calibration.threshold).mean() >= 0.8
    assert (score >= calibration.threshold + 2e-6).mean() < 0.8, "no higher threshold reaches it"


def test_the_average_of_networks_that_agree_mostly_is_calibrated_and_reaches_its_sensitivity():
    """Fitted to a single network's probabilities, the temperature is 1.18, the ECE 0.016 and the sensitivity 0.93."""
    random, sensitivities = np.random.default_rng(0), []

    def average(images: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (random.random(images) < 0.2).astype(int)
        evidence = 3.2 * labels - 3 + 1.5 * random.normal(size=images)
        logits = 1.3 * (evidence + 0.65 * random.normal(size=(5, images)))  # correlated by 0.9
        malignant = (1 / (1 + np.exp(-logits))).mean(axis=0)
        return np.stack([1 - malignant, malignant], axis=1), labels

    for _ in range(20):
        calibration = fit_calibration(*average(1200), told_apart(2), replace(CONFIG, target_sensitivity=0.9))
        raw, labels = average(20_000)
        calibrated = apply_temperature(raw, calibration.temperature)
        test = predictions(calibrated, labels)
        numbers = headline(test, calibration.threshold)(np.ones((1, len(labels))))
        sensitivities.append(numbers["sensitivity_at_threshold"][0])
        assert np.abs(numbers["ece"]).sum() < 0.02
        assert calibration.temperature == pytest.approx(1, abs=0.2)
    assert np.mean(sensitivities) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(("classes", "labels"), [(2, [0, 0, 0]), (2, [1, 1, 1]), (7, [2, 3, 5]), (7, [0, 1, 4])])
def test_validation_images_of_one_kind_are_refused_with_what_to_change(classes, labels):
    with pytest.raises(InputError, match=r"validation images .* choose another split\.val_fold, or add lesions"):
        fit_calibration(np.full((3, classes), 1 / classes), np.array(labels), told_apart(classes), CONFIG)


def test_what_was_fitted_is_kept_with_how_it_was_fitted():
    raw, labels = random_outputs(2)
    for augmented in (True, False):
        config = replace(CONFIG, test_time_augmentation=augmented, target_sensitivity=0.95)
        calibration = fit_calibration(raw, labels, told_apart(raw.shape[1]), config)
        assert calibration.test_time_augmentation is augmented
        assert calibration.target_sensitivity == 0.95
        assert calibration.temperature > 1, "the random outputs are overconfident"
        score = predictions(apply_temperature(raw, calibration.temperature), labels).malignant_probability
        fpr, tpr, thresholds = reference.roc_curve(labels, score, drop_intermediate=False)
        assert calibration.youden_threshold == pytest.approx(thresholds[(tpr - fpr).argmax()], abs=1e-6)


def test_without_a_false_alarm_the_predictive_value_elsewhere_is_as_uncertain_as_the_rates():
    labels = np.arange(60) % 2
    malignant = np.where(labels == 1, 0.9, 0.1)
    malignant[1] = 0.1  # one malignant image is missed
    _, section = assessed(np.stack([1 - malignant, malignant], axis=1), labels)
    point = section["operating_points"]["target_sensitivity"]
    for here in point["at_prevalence"]:
        low, high = here["ppv"]["interval"]
        sensitivity, specificity = (point[name]["interval"][0] for name in ("sensitivity", "specificity"))
        found, alarms = sensitivity * here["prevalence"], (1 - specificity) * (1 - here["prevalence"])
        assert here["ppv"]["value"] == high == 1
        assert low == pytest.approx(found / (found + alarms))
        assert here["npv"]["value"] < 1


def test_a_predictive_value_rests_on_the_lesions_that_are_called_so():
    labels = np.arange(60) % 2
    malignant = np.where(labels == 1, 0.2, 0.1)
    malignant[1:13:2] = 0.9  # 6 malignant images of 6 lesions are found, and nothing else is called malignant
    _, section = assessed(np.stack([1 - malignant, malignant], axis=1), labels, lesions=np.arange(60))
    point = section["operating_points"]["target_sensitivity"]
    assert point["ppv"]["value"] == point["specificity"]["value"] == 1
    assert point["ppv"]["interval"] == pytest.approx([5 / (5 + t.ppf(0.975, 5) ** 2), 1])
    assert point["specificity"]["interval"] == pytest.approx([29 / (29 + t.ppf(0.975, 29) ** 2), 1])


@pytest.mark.parametrize("classes", [2, 7])
def test_decisions_by_cost_stand_beside_those_for_the_most_probable_class(classes):
    raw, labels = random_outputs(classes)
    costs = 1 - np.eye(classes)
    costs[1] *= 20
    plain, usual = assessed(raw, labels)
    test = replace(plain, costs=costs.tolist())
    section = assess(test, raw, manifest(len(labels)), CALIBRATION, CONFIG)
    decided = (test.probabilities @ costs).argmin(axis=1)
    assert (decided != plain.predicted).any()
    average = {"pos_label": 1} if classes == 2 else {"average": "macro"}
    prefix = "" if classes == 2 else "macro_"
    expected = {
        "accuracy": reference.accuracy_score(labels, decided),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, decided),
        f"{prefix}sensitivity": reference.recall_score(labels, decided, **average),
        f"{prefix}precision": reference.precision_score(labels, decided, zero_division=0, **average),
        f"{prefix}f1": reference.f1_score(labels, decided, **average),
    }
    found = {name: number["value"] for name, number in section["decided"].items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found.keys() - expected.keys() == {f"{prefix}specificity"}
    for number in section["decided"].values():
        assert number["interval"][0] < number["value"] <= number["interval"][1]
    assert section["confusion_matrix"] == reference.confusion_matrix(labels, decided).tolist()
    # Each class by the decision in use; nothing else of the section is another.
    changed = {"decided", "confusion_matrix"} | ({"classes"} if classes == 7 else set())
    assert {key for key, part in section.items() if usual.get(key) != part} == changed
    if classes == 7:
        ours, theirs = section["classes"]["bcc"], usual["classes"]["bcc"]
        assert ours["sensitivity"] == reference.recall_score(labels == 1, decided == 1) > theirs["sensitivity"]
        assert (ours["auroc"], ours["auprc"]) == (theirs["auroc"], theirs["auprc"])

    numbers = headline_numbers(section)
    assert headline_numbers(usual) == usual["metrics"] == section["metrics"]
    assert len(numbers) <= 15
    for name in ("accuracy", "balanced_accuracy"):
        assert (numbers[name], numbers[f"decided_{name}"]) == (section["metrics"][name], section["decided"][name])
    checked(json.loads(json.dumps(section)), BinaryAssessment if classes == 2 else DiagnosisAssessment)
