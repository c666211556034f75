import base64
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from benchmarks.plain import PLAIN
from stages.config import override
from stages.figures.report import MOST_PAIRS, describe_run, write_report
from stages.figures.verdict import judge
from stages.reporting import METRICS
from tests.figures.findings import DRAWN, decided_by_cost, details_of

IMAGES = pd.DataFrame({"image_id": ["I1", "I2"], "lesion_id": ["L1", "L1"]})
VOID = {"meta", "link", "img", "path", "circle", "br"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "every element is closed"
        self.text = re.sub(r"[ \n]+", " ", self.text).strip()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def pictures(tmp_path):
    """A folder with a picture of each name that `plot` draws."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(DRAWN):
        Image.new("RGB", (90, 60 + number), (number, 0, 0)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def report(pictures, tmp_path):
    """A function that writes a report and gives its page; `details` are of 2 classes where none are given."""

    def make(details=None, **options):
        path = tmp_path / "report.html"
        given = {"images": IMAGES, "about": {"Model": "some_net"}} | options
        write_report(path, details or details_of(2), pictures, **given)
        return Page(path)

    return make


def test_a_classifier_that_takes_metadata_is_held_against_itself_without_them(report):
    details = details_of(2)
    found = details["baselines"]["metadata"]
    alone = {"metrics": found["metrics"], "metadata_add": found["image_adds"]}
    page = report(details | {"baselines": details["baselines"] | {"image_alone": alone}})
    assert "“image alone” is the same one where they are unknown" in page.text
    assert "image alone metadata add" in page.text
    assert "image alone" not in report().text


def test_every_picture_is_inside_the_page_once_with_a_text_that_says_what_it_shows(report, pictures):
    shown = report().all("img")
    expected = {path.read_bytes() for path in pictures.iterdir()}
    assert len(shown) == len(expected) == len(DRAWN)
    assert {base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in shown} == expected
    assert all(len(image["alt"]) > 30 for image in shown)
    assert len({image["alt"] for image in shown}) == len(DRAWN)
    assert {image["width"] for image in shown} == {"90"}
    assert sorted(int(image["height"]) for image in shown) == list(range(60, 60 + len(DRAWN)))


def test_pictures_that_are_not_there_are_left_out(report, pictures):
    (pictures / "gradcam.png").unlink()
    (pictures / "notes.txt").touch()
    page = report()
    assert len(page.all("img")) == len(DRAWN) - 1
    assert "Grad-CAM" not in page.text
    for picture in pictures.glob("*.png"):
        picture.unlink()
    page = report()
    assert page.all("img") == []
    assert "Images and training" not in page.text


@pytest.mark.parametrize("classes", [2, 7])
def test_the_page_needs_nothing_but_itself(report, classes, tmp_path):
    page = report(details_of(classes))
    assert page.all("script") == []
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    attributes = [attribute for _, attributes in page.elements for attribute in attributes.items()]
    addresses = [value for name, value in attributes if name in ("src", "href")]
    inside = {f"#{value}" for name, value in attributes if name == "id"}
    assert [address for address in addresses if not address.startswith("data:") and address not in inside] == []
    assert not re.search(r"@import|url\(|https?:", (tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("classes", [2, 7])
def test_every_headline_number_stands_there_with_its_interval(report, classes):
    details = details_of(classes)
    text = report(details).text
    for name, number in details["test"]["metrics"].items():
        low, high = number["interval"]
        assert f"{number['value']:.3f} {low:.3f} to {high:.3f}" in text, name
    assert "Test metrics with 95 % intervals".replace(" %", "\N{NO-BREAK SPACE}%") in text
    assert f"{details['test']['images']} images of {details['test']['lesions']} lesions" in text.replace("\xa0", " ")


def test_the_page_starts_with_what_was_judged_and_what_it_is_worth(report):
    details = details_of(2)
    details["test"]["metrics"]["auroc"] = {"value": 0.512, "interval": [0.39, 0.63]}
    text = report(details).text
    verdict = text.split(" Headline ")[0]
    assert "Model some_net" in verdict
    assert "Does not hold: Malignant is told from benign" in verdict
    assert "AUROC 0.512 0.390 to 0.630" in verdict
    for finding in judge(details):
        assert f"{finding.title} {finding.text}" in verdict, finding


def test_synthetic_images_are_named_at_once(report):
    assert "Synthetic" not in report().text
    drawn, said = IMAGES.assign(image_id=["SYN_1", "SYN_2"]), "Synthetic images. Those that this classifier was {} on"
    for options, what in (
        ({"images": drawn}, "trained and judged"),
        ({"images": drawn, "trained_on_synthetic": False}, "judged"),
        ({"trained_on_synthetic": True}, "trained"),
    ):
        assert said.format(what) in report(**options).text.split("Verdict")[0]


def test_the_numbers_at_the_head_are_of_one_decision_and_say_which(report):
    details = details_of(2)
    head = report(details).text.split("Malignant is told from benign")[0]
    called = f"malignant is said from a probability of {details['calibration']['threshold']:.3f} on"
    assert head.count(called) == 2
    assert "Balanced accuracy" not in head
    details = details_of(7)
    assert "which of 7 diagnoses, by the most probable class" in report(details).text
    decided = report(decided_by_cost(details)).text
    assert "Balanced accuracy 0.211 0.100 to 0.900 which of 7 diagnoses, by the class of the lowest" in decided


def test_one_is_not_written_as_several(report):
    details = details_of(2, (1,))
    assert "1 image of 1 lesion ; 1 image of 1 lesion is malignant" in report(details).text.replace("\xa0", " ")


def test_a_run_is_described_by_its_parameters():
    description = {"image_size": 64, "networks": 1, "architecture": "resnet18", "epochs": [11]}
    words = describe_run(description, PLAIN, IMAGES)
    assert words["Model"] == "resnet18 at 64 × 64 pixels; weights of epoch 12"
    assert "fold 0 tests, fold 1 of 7 chose" in words["Split"]
    assert words["Data"].replace("\xa0", " ") == "data/ham10000 (a user-provided dataset): 2 images of 1 lesion"
    held_out = override(PLAIN, {"split.by": "source", "split.test_source": "isic", "model.pretrained": False})
    words = describe_run(description, held_out, IMAGES)
    assert words["Split"].startswith("all images of isic test")
    assert words["Training"].startswith("from scratch")


def test_the_operating_points_are_stated_at_each_prevalence(report):
    details = details_of(2)
    text = report(details).text.replace("\xa0", " ")
    points = details["test"]["operating_points"].values()
    assert "Threshold " + " ".join(f"{point['threshold']:.3f}" for point in points) in text
    for number, prevalence in enumerate(("2 %", "10 %", "30 %")):
        row = text.split(f"PPV, {prevalence} malignant ")[1].split("NPV")[0]
        expected = [point["at_prevalence"][number]["ppv"]["value"] for point in points]
        assert [float(value) for value in row.split()[::4]] == pytest.approx(expected, abs=5e-4)


def test_a_decision_by_cost_stands_beside_that_for_the_most_probable_class(report):
    details = details_of(7)
    assert "lowest expected cost" not in report(details).text
    text = report(decided_by_cost(details)).text
    accuracy = details["test"]["metrics"]["accuracy"]["value"]
    assert re.search(rf"Accuracy {accuracy:.3f} \d\.\d+ to \d\.\d+ 0\.111 0\.100 to 0\.900 Balanced accuracy", text)
    assert "Confusion matrix: images, by the class of the lowest expected cost" in text
    assert "F1 are those of the class of the lowest expected cost." in text


def test_seven_diagnoses_have_a_table_of_their_own(report):
    details = details_of(7)
    text = report(details).text
    assert "melanoma" in text
    assert f"melanoma {details['test']['classes']['mel']['auroc']:.3f}" in text
    assert "Each diagnosis against the rest" not in report(details_of(2)).text


def test_seven_diagnoses_are_shown_as_benign_or_malignant_too(report):
    details = details_of(7)
    title = "Benign or malignant: test metrics"
    shown = report(details).text.split(title)[-1].split("The same probabilities")[0]
    for name, number in details["test"]["malignancy"]["metrics"].items():
        low, high = number["interval"]
        title_and_meaning = f"{METRICS[name].title} {METRICS[name].meaning}"
        assert f"{title_and_meaning} {number['value']:.3f} {low:.3f} to {high:.3f}" in shown, name
    assert title not in report(details_of(2)).text


def test_a_difference_below_0_has_a_minus_sign(report):
    details = details_of(2)
    details["baselines"]["metadata"]["image_adds"]["auroc"] = {"value": -0.25, "interval": [-0.5, 0.00001]}
    details["baselines"]["metadata"]["image_adds"]["f1"] = {"value": -0.00001, "interval": [-0.00001, 0.5]}
    text = report(details).text
    assert "−0.250 −0.500 to 0.000" in text
    assert "0.000 0.000 to 0.500" in text
    assert "−0.000" not in text


def test_groups_of_few_lesions_are_marked(report):
    details = details_of(2)
    group = details["test"]["subgroups"]["sex"]["groups"][0]
    group["sensitivity"] = {"value": 0.123, "interval": [0.1, 0.2]}
    group["judged"]["sensitivity"] = True
    assert "0.123 " in report(details).text
    group["judged"]["sensitivity"] = False
    assert "0.123† " in report(details).text


def test_the_widest_gap_names_its_groups(report):
    details = details_of(2)
    gaps = details["test"]["subgroups"]["sex"]["worst_gap"]
    gaps["auroc"] = {"highest": "men", "lowest": "women", "difference": {"value": 0.321, "interval": [0.1, 0.5]}}
    assert "0.321 0.100 to 0.500 men over women" in report(details).text
    assert "skin tone: the dataset does not record it" in report(details).text


def test_what_leaks_is_listed(report):
    details = details_of(2)
    assert "I004 test I999 train 5" in report(details).text
    details["leakage"]["known_duplicates_apart"] = [["ISIC_1", "ISIC_2"], ["ISIC_3", "ISIC_4"]]
    assert "Known duplicates in different splits: 2 : ISIC_1 and ISIC_2; ISIC_3 and ISIC_4" in report(details).text
    pair = details["leakage"]["near_duplicates"]["pairs"][0]
    details["leakage"]["near_duplicates"]["pairs"] = [pair] * (MOST_PAIRS + 1)
    text = report(details).text
    assert f"look alike: {MOST_PAIRS + 1}" in text
    assert text.count("I004 test I999") == MOST_PAIRS
    assert f"the first {MOST_PAIRS}" in text


@pytest.mark.parametrize(("classes", "labels"), [(2, (0,) * 20), (7, (5, 5, 4, 4, 0, 0)), (2, (1,))])
def test_an_external_validation_that_lacks_classes_has_its_page(report, classes, labels):
    details = details_of(classes, labels) | {"baselines": None, "leakage": None}
    page = report(details, title="External validation: hospital")
    assert page.all("title")
    assert page.text.startswith("External validation: hospital – skin-lesion classifier External validation: hospital ")
    assert "Not audited" in page.text
    assert "Baselines" not in page.text
    assert "None" not in page.text
    if labels == (0,) * 20:
        assert "Sensitivity at the threshold malignant images that are called malignant – " in page.text


def test_names_that_look_like_html_are_text(report):
    hostile = "<script>alert('x')</script>\"><img src=https://example.org/x onerror=alert(1)>"
    details = details_of(2)
    details["test"]["subgroups"]["sex"]["groups"][0]["name"] = hostile
    details["test"]["not_assessable"] = [hostile]
    details["leakage"]["near_duplicates"]["pairs"][0]["image_ids"][0] = hostile
    details["leakage"]["known_duplicates_apart"] = [[hostile, hostile]]
    details["baselines"]["majority_class"]["class"] = hostile
    page = report(details, title=hostile)
    assert page.all("script") == []
    assert len(page.all("img")) == len(DRAWN)
    assert page.text.count(hostile) == 9


def test_the_same_content_gives_the_same_bytes(pictures, tmp_path):
    for name in ("one.html", "again.html"):
        write_report(tmp_path / name, details_of(7), pictures, IMAGES, {})
    page = (tmp_path / "one.html").read_bytes()
    assert page == (tmp_path / "again.html").read_bytes()
    assert b"\r" not in page
    assert len(page) < 100_000, "beside its pictures the page is small"
