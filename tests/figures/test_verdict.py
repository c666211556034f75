import pytest

from stages.figures.verdict import judge
from tests.figures.findings import details_of


def estimated(value, low, high):
    return {"value": value, "interval": [low, high]}


MISSING = {"value": None, "interval": None}


def finding(details, title):
    (found,) = [each for each in judge(details) if each.title == title]
    return found


@pytest.mark.parametrize(("classes", "name"), [(2, "auroc"), (7, "malignant_auroc")])
@pytest.mark.parametrize(
    ("auroc", "state", "words"),
    [
        (estimated(0.92, 0.85, 0.97), "good", "better than by chance: AUROC 0.920 (0.850 to 0.970)"),
        (estimated(0.512, 0.39, 0.63), "bad", "Not shown to be told apart: AUROC 0.512 (0.390 to 0.630)"),
        (estimated(0.3, 0.2, 0.4), "bad", "worse than by tossing a coin"),
        (MISSING, "open", "nothing can be said"),
    ],
)
def test_a_model_that_may_guess_looks_like_one(classes, name, auroc, state, words):
    details = details_of(classes)
    details["test"]["metrics"][name] = auroc
    found = finding(details, "Malignant is told from benign")
    assert found.state == state
    assert words in found.text


@pytest.mark.parametrize(
    ("added", "state", "words"),
    [
        (estimated(0.2, 0.1, 0.3), "good", "More than age, sex, localization tell: AUROC higher by 0.200"),
        (estimated(0.1, -0.1, 0.3), "open", "Not shown to be more than age, sex, localization tell"),
        (estimated(-0.1, -0.2, 0.1), "bad", "AUROC changes by −0.100 (−0.200 to 0.100)"),
        (estimated(-0.3, -0.5, -0.1), "bad", "Age, sex, localization alone tell more"),
        (MISSING, "open", "cannot be compared"),
    ],
)
def test_what_the_image_adds_is_said(added, state, words):
    details = details_of(2)
    details["baselines"]["metadata"]["image_adds"]["auroc"] = added
    found = finding(details, "The image tells more than the metadata")
    assert (found.state, words in found.text) == (state, True), found


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (estimated(0.91, 0.81, 0.97), "good"),
        (estimated(0.88, 0.82, 0.93), "good"),
        (estimated(0.91, 0.7, 0.97), "open"),
        (estimated(0.6, 0.5, 0.7), "bad"),
        (MISSING, "open"),
    ],
)
def test_the_promised_sensitivity_is_judged_as_on_another_dataset(found, state):
    details = details_of(2)
    details["calibration"]["target_sensitivity"] = 0.9
    details["test"]["operating_points"]["target_sensitivity"]["sensitivity"] = found
    assert finding(details, "The promised sensitivity is reached").state == state


@pytest.mark.parametrize(("low", "state"), [(0.0, "good"), (0.02, "bad")])
def test_calibration_is_judged_by_what_chance_does(low, state):
    details = details_of(2)
    details["test"]["calibration"]["after"]["ece"] = estimated(0.1, low, 0.2)
    assert finding(details, "Probabilities are calibrated").state == state


def test_leaks_and_shortcuts_are_named():
    details = details_of(2)
    assert finding(details, "No leaks").state == "bad"
    assert "Images that look alike in two splits: 1" in finding(details, "No leaks").text
    details["leakage"]["near_duplicates"]["pairs"] = []
    assert finding(details, "No leaks").state == "good"
    details["leakage"] = None
    assert finding(details, "No leaks").state == "open"
    elsewhere = details | {"verdict": {"promises": []}}
    assert finding(elsewhere, "The images are new to the model").state == "open", "nobody looked"
    leakage = details_of(2)["leakage"]
    found = finding(elsewhere | {"leakage": leakage}, "The images are new to the model")
    assert (found.state, "Images that look alike both here and in what the model" in found.text) == ("bad", True)
    details["sources"] = {"lesions": {}, "cramers_v": 0.5, "lacks": {"isic": ["nv", "bkl"]}, "told": None}
    assert "isic has next to none of nv, bkl" in finding(details, "No shortcuts between sources").text
    details["sources"]["lacks"] = {}
    assert finding(details, "No shortcuts between sources").state == "good"


def test_groups_that_are_too_small_are_counted_and_gaps_named():
    details = details_of(2)
    sex = details["test"]["subgroups"]["sex"]
    for group in sex["groups"]:
        group["judged"] = dict.fromkeys(group["judged"], True)
    sex["groups"][0]["judged"]["auroc"] = False
    assert f"1 of {len(sex['groups'])} by sex" in finding(details, "Groups too small").text
    sex["worst_gap"]["sensitivity"] = {
        "highest": "female", "lowest": "male", "difference": estimated(0.3, 0.1, 0.5),
    }  # fmt: skip
    assert "by sex female over male by 0.300 (0.100 to 0.500)" in finding(details, "Groups").text
