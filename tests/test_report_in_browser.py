"""The report page in a real browser, without a network: what its readers get to see."""

import shutil

import pandas as pd
import pytest
from PIL import Image

from docs import draw_report
from stages.figures.report import write_report
from stages.files import DETAILS, PICTURES, REPORT, write_json
from tests.figures.findings import DRAWN, details_of

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r requirements-dev.txt")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
pytestmark = pytest.mark.xdist_group("browser")  # one browser serves all tests
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed on this machine."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright.sync_playwright() as manager:
        browser = manager.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and what its browser complained of or asked for on the way."""

    def __init__(self, browser, path, viewport):
        self.context = browser.new_context(viewport=viewport)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())


@pytest.fixture(scope="module", params=[2, 7])
def report(request, tmp_path_factory):
    """The number of classes, what was found, and the report of it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / PICTURES).mkdir(parents=True)
    for name in DRAWN:
        Image.new("RGB", (900, 1000), "#0072b2").save(folder / PICTURES / f"{name}.png")
    details = details_of(request.param)
    details["leakage"]["near_duplicates"]["pairs"][0]["image_ids"] = ["a_very_long_id_of_an_image_" * 3, "I002"]
    images = pd.DataFrame({"image_id": ["SYN_1"], "lesion_id": ["L1"]})
    write_report(folder / REPORT, details, folder / PICTURES, images, {"Model": "net"})
    return request.param, details, folder / REPORT


@pytest.fixture(scope="module", params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def visit(request, browser, report):
    """The report, opened on a phone and on a desktop; tests look at it and leave it as it is."""
    visit = Visit(browser, report[2], request.param)
    yield visit
    visit.context.close()


def test_the_page_loads_without_a_complaint_and_asks_for_nothing_else(visit, report):
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report[2].resolve().as_uri()]
    # Everything on it is seen but tables that are folded, which open at a click.
    assert visit.page.locator("h1, h2, h3, figure, summary").filter(visible=False).count() == 0
    shown = visit.page.locator("table").filter(visible=True)
    before, summary = shown.count(), visit.page.locator("details:not([open]) summary").first
    assert 0 < before < visit.page.locator("table").count()
    summary.click()
    assert shown.count() == before + 1


def test_the_verdict_fills_the_first_screen(visit):
    screen = visit.page.viewport_size["height"]
    assert visit.page.get_by_role("heading", name="Verdict").bounding_box()["y"] < screen / 2
    assert visit.page.locator(".tiles").bounding_box()["y"] < screen
    assert visit.page.locator(".synthetic").is_visible()


def test_what_is_folded_is_printed(visit):
    visit.page.emulate_media(media="print")
    seen = visit.page.locator("table").evaluate_all("tables => tables.map(table => table.checkVisibility())")
    visit.page.emulate_media(media="screen")
    assert len(seen) > 10
    assert all(seen)


def test_the_picture_of_the_readme_ends_with_the_verdict(browser, report, monkeypatch):
    _, details, page = report
    folder = page.parents[1]
    (folder / "docs").mkdir()
    monkeypatch.chdir(folder)
    write_json(DETAILS, details)
    draw_report.draw(browser)
    with Image.open(draw_report.PICTURE) as picture:
        assert picture.width == 1660
        assert 1000 < picture.height < 2500
        assert picture.text["verdict"] == draw_report.says(DETAILS)
        last_rows = picture.convert("L").crop((0, picture.height - 20, picture.width, picture.height))
    assert last_rows.getextrema()[0] > 200, "no line of text is cut off"


def test_every_picture_is_decoded_shown_and_described(visit):
    images = visit.page.locator("img").evaluate_all(
        "images => images.map(image => [image.complete && image.naturalWidth, image.clientWidth, image.alt])"
    )
    assert len(images) == len(DRAWN)
    for natural, shown, alternative in images:
        assert natural == 900
        assert shown > 300
        assert alternative


def test_the_headline_can_be_read_at_once(visit, report):
    classes, details, _ = report
    assert visit.page.get_by_role("heading", level=1).inner_text() == "Evaluation on the test fold"
    headings = visit.page.get_by_role("heading", level=2).all_inner_texts()
    expected = [
        "Verdict",
        "Headline",
        "Decisions",
        "Calibration",
        "Baselines",
        "Subgroups",
        "Leakage",
        "Images and training",
    ]
    assert [heading for heading in headings if heading != "Diagnoses"] == expected
    assert ("Diagnoses" in headings) == (classes == 7)
    # The text as it is shown: what the style hides is not in it.
    shown = " ".join(visit.page.get_by_role("table").first.inner_text().split())
    for name, number in details["test"]["metrics"].items():
        low, high = number["interval"]
        assert f"{number['value']:.3f} {low:.3f} to {high:.3f}" in shown, name


def test_nothing_is_wider_than_the_screen_but_tables_in_their_boxes(visit):
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    boxes = visit.page.locator(".wide").evaluate_all(
        "boxes => boxes.map(box => [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX, box.tabIndex])"
    )
    # A keyboard reaches what has to be scrolled.
    assert {(overflow, tab) for _, overflow, tab in boxes} == {("auto", 0)}
    if width == PHONE["width"]:
        assert any(scrolls for scrolls, _, _ in boxes)


def test_text_is_dark_on_white_and_large_enough(visit):
    colours, sizes = visit.page.evaluate(
        """() => {
            const shown = [...document.querySelectorAll("body *")].filter(
                element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
            );
            const styles = shown.map(element => getComputedStyle(element));
            return [[...new Set(styles.map(style => style.color))], styles.map(style => parseFloat(style.fontSize))];
        }"""
    )
    for colour in colours:
        red, green, blue = (int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 90, colour
    assert min(sizes) >= 12


def test_links_lead_to_their_sections(visit):
    for link in visit.page.get_by_role("navigation").get_by_role("link").all():
        link.click()
        place = visit.page.locator(link.get_attribute("href"))
        assert place.inner_text() == link.inner_text()
        assert -1 <= place.bounding_box()["y"] < visit.page.viewport_size["height"]
