"""Draw the picture of the README: the head of plots/report.html, down to the end of its verdict.

    dvc repro
    python -m docs.draw_report

Needs a Chromium, as the tests of the report page do. The picture holds a hash of what its verdict says, so that a test
notices when it is not that of metrics/details.json any more.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from stages.evaluation.details import read_details
from stages.figures.verdict import judge
from stages.files import DETAILS, PUBLISHED, REPORT

PICTURE = Path("docs/report.png")
WIDTH, SCALE = 1000, 1.66  # GitHub shows 830 pixels, on many screens as twice as many


def says(details: Path) -> str:
    """A hash of what the verdict of these results says."""
    content = read_details(details)
    return hashlib.sha256(json.dumps([judge(content), content["test"]["metrics"]]).encode()).hexdigest()


def draw(browser: Any) -> None:
    """Draw the picture with a browser of Playwright."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 1500}, device_scale_factor=SCALE)
    page.goto(REPORT.resolve().as_uri())
    height = page.locator("nav").bounding_box()["y"]
    shot = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
    page.close()
    told = PngImagePlugin.PngInfo()
    told.add_text("verdict", says(DETAILS))
    # Few colours: a third of the bytes.
    Image.open(io.BytesIO(shot)).quantize(128).save(PICTURE, optimize=True, pnginfo=told)


def main() -> None:
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        draw(browser)
        browser.close()
    print(f"drew {PICTURE}; its verdict is that of {PUBLISHED[DETAILS]}")


if __name__ == "__main__":
    main()
