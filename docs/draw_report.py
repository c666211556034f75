"""Draw the picture of a report that the README shows: report.md as a browser shows it, in the look of GitHub.

    dvc exp run --name from-scratch -S model.pretrained=false && git checkout HEAD . && dvc checkout
    dvc remote add --local -d storage /tmp/storage
    python -m stages report from-scratch workspace
    python docs/draw_report.py report.md docs/report.png

Needs a Chromium, as the tests of the report page do.
"""

import shutil
import sys
from pathlib import Path

from markdown import markdown
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1000, 1376  # pixels: verdict, metrics, parameters and the first curves
STYLE = """
body {font: 14px/1.5 sans-serif; color: #1f2328; margin: 16px}
table {border-collapse: collapse; margin: 0 0 16px}
td, th {border: 1px solid #d1d9e0; padding: 3px 10px; vertical-align: top}
tr:nth-child(even) {background: #f6f8fa}
code {background: #eff1f3; border-radius: 6px; padding: 2px 5px; font-size: 85%}
h3 {margin: 20px 0 10px}
img {width: 100%}
"""


def main(report: Path, picture: Path) -> None:
    page = report.with_suffix(".html")
    body = markdown(report.read_text(encoding="utf-8"), extensions=["tables", "sane_lists"])
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{body}", encoding="utf-8")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.25)
        view.goto(page.resolve().as_uri())
        view.screenshot(path=picture)
        browser.close()
    page.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
