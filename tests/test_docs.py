"""The documentation: it builds, and every command in it runs, in a clone whose trainings are quick."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from typing import NamedTuple

import pytest
from PIL import Image

from docs.draw_report import PICTURE, says
from stages.__main__ import main
from stages.files import EVALUATION, write_json
from tests.clone import ENVIRONMENT, ROOT, Clone

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```bash\n(?P<code>.*?)```", re.DOTALL)

pytestmark = pytest.mark.xdist_group("docs")


class Block(NamedTuple):
    """Commands of a page, and why they are not run, if they are not."""

    page: str
    code: str
    reason: str | None


def blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, match["code"], match["reason"]) for match in BLOCK.finditer(text)]


BLOCKS = [block for page in ("README.md", *PAGES) for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.reason is None]
# Of the pages beside README.md: whole pipelines, the whole sample again, and the hooks' environments.
SLOW = re.compile("^(dvc exp run|python -m stages (verify|validate)|pre-commit run)", re.MULTILINE)


@pytest.fixture(scope="module")
def clone(ran, tmp_path_factory):
    """A clone after `dvc repro`, with what readers of the pages have: pictures, a dataset, a branch with a result."""
    clone = Clone(tmp_path_factory.mktemp("docs"), copied=ran)
    shutil.copytree(clone.folder / "data/sample", clone.folder / "data/hospital")
    (clone.folder / "folder").mkdir()
    images = sorted((clone.folder / "data/sample").rglob("*.jpg"))
    shutil.copy(images[0], clone.folder / "photo.jpg")
    shutil.copy(images[1], clone.folder / "folder/photo.jpg")
    clone.commit("what readers have")
    write_json(clone.folder / EVALUATION, clone.json(EVALUATION) | {"auroc": 0.5})
    clone.commit("a worse result")
    subprocess.run(["git", "switch", "--quiet", "--create", "my-experiment", "HEAD~1"], cwd=clone.folder, check=True)
    return clone


@pytest.fixture
def execute(clone, monkeypatch, capfd):
    """A function that runs commands as a shell would, and gives what they print.

    Those of this project run in this process, which has loaded already what takes seconds.
    """
    monkeypatch.chdir(clone.folder)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(code):
        for ours, lines in groupby(code.splitlines(), key=lambda line: line.startswith("python -m stages ")):
            for command in lines if ours else ["\n".join(lines)]:
                if ours:
                    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True)[2:])
                    main()
                else:
                    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)
        return capfd.readouterr().out

    return run


# What readers of the README are promised to see.
PROMISED = {
    "make experiments": ["my-experiment"],
    "dvc metrics diff": ["| metrics/evaluation.json | auroc"],
    "dvc plots diff": ["dvc_plots/index.html"],
    "python -m stages compare": ["main → workspace: identical predictions"],
}


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.page}-{block.code.split(chr(10))[0][:30]}",
            marks=[pytest.mark.slow] if block.page != "README.md" and SLOW.search(block.code) else [],
        )
        for block in RUN
    ],
)
def test_every_command_runs(clone, execute, block):
    try:
        said = execute(block.code)
    finally:
        # Each block starts from the same files; what DVC knows of experiments stays.
        execute("git reset --quiet --hard my-experiment")
        if SLOW.search(block.code):
            execute("dvc checkout --quiet")
        shutil.rmtree("validation", ignore_errors=True)
    for command in PROMISED if block.page == "README.md" else []:
        assert command in block.code
        assert [words for words in PROMISED[command] if words not in said] == [], said


def test_git_ignores_what_the_commands_write():
    written = {path for block in BLOCKS for path in re.findall(r"--(?:output|gradcam) (\S+)", block.code)}
    results = sorted(path for path in written if not path.startswith("data/"))  # datasets are for DVC
    ignored = subprocess.run(["git", "check-ignore", *results], cwd=ROOT, text=True, capture_output=True, check=False)
    assert ignored.stdout.split() == results
    assert len(results) > 5


def test_commands_that_are_not_run_say_why():
    assert all(len(block.reason) > 10 for block in BLOCKS if block.reason is not None)
    # A fence that the expression above does not see would be run by nobody.
    fences = sum((ROOT / page).read_text(encoding="utf-8").count("```bash") for page in ("README.md", *PAGES))
    assert len(BLOCKS) == fences


@pytest.mark.slow  # `make docs` builds it too
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert_search_works(tmp_path)
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*\ssrc=\"(?:https?:)?//|<link[^>]*\shref=\"https?://fonts", page.read_text()
        )
        assert fetched == [], page


def assert_search_works(site):
    """A word is found in the pages as a local server shows them, without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from tests.test_report_in_browser import ARGUMENTS, BROWSERS

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is on the path")
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as manager:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = manager.chromium.launch(executable_path=program, args=ARGUMENTS)
        page, elsewhere = browser.new_page(), []
        page.on("request", lambda request: elsewhere.append(request.url) if address not in request.url else None)
        page.goto(address)
        page.locator("input.md-search__input").press_sequentially("calibration")
        page.locator(".md-search-result__item").first.wait_for()
        browser.close()
        server.shutdown()
    assert elsewhere == []


def test_the_reference_names_what_it_promises(tmp_path):
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES if page.startswith("docs/reference/"))
    for name in (
        "train_model",
        "evaluate_model",
        "compute_metrics",
        "SkinLesionClassifier",
        "TrainingLoop",
        "TrainingStep",
        "Batches",
        "TrainingConfig",
        "DataConfig",
        "ModelConfig",
        "training_step",
        "validation_step",
        "configure_optimizers",
    ):
        assert re.search(rf"\b{name}\b", text), name


def test_the_picture_of_the_readme_says_what_the_results_say():
    with Image.open(PICTURE) as picture:
        picture.load()
        assert picture.text["verdict"] == says(ROOT / "metrics/details.json"), "python -m docs.draw_report"
        assert picture.width * 2 > picture.height, "it ends where the verdict does"


def test_the_readme_starts_with_results_and_three_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.findall("^## (.+)$", text, re.MULTILINE)
    assert sections[:4] == ["Start", "Use", "Data", "Evaluation"]
    head, start = text.split("\n## ")[:2]
    table = [line for line in head.splitlines() if line.startswith("|")]
    assert {line.count("|") - 1 for line in table} == {5}
    commands = [line for line in BLOCK.search(start)["code"].splitlines() if line]
    assert len(commands) == 3
    assert len(text.splitlines()) < 100


def test_badges_are_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest, highest = re.search(r"Python ([\d.]+) to ([\d.]+)\]", text).groups()
    next_minor = f"3.{int(highest.split('.')[1]) + 1}"
    assert project["requires-python"] == f">={lowest},<{next_minor}"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:500]


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
