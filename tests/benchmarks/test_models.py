import re
import shutil

import pytest

from benchmarks.models import (
    MARKERS,
    PLOT,
    RECIPE,
    RECIPES,
    RESULT,
    ROOT,
    choose,
    draw,
    main_table,
    read_recipes,
    run_pipeline,
    section,
    table,
    write_between_markers,
)
from benchmarks.sweep import set_parameters
from stages.config import load_config
from stages.errors import InputError
from stages.files import read_json


def estimate(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1]}


def measured(classes, commit="0123456789", dirty=False):
    """What the benchmark keeps of a recipe: the same number for each metric."""
    names = ["accuracy", "balanced_accuracy", "ece", "sensitivity_at_threshold", "specificity_at_threshold"]
    names += ["specificity_at_90", *(("macro_auroc", "malignant_auroc") if classes == 7 else ("auroc",))]
    row = {
        "metrics": {name: estimate(0.8) for name in names},
        "overrides": {"training.max_epochs": 20},
        "test": {"images": 1226, "lesions": 917},
        "val_accuracy": 0.8125,
        "best_epochs": [7],
        "training_seconds": 45.4,
        "images_per_second": 10358.2,
        "seconds": {"all": 99.6},
        "confidence": 0.95,
        "environment": {
            "gpu": "NVIDIA H100", "cpu": "AMD EPYC", "cpu_cores": 16, "python": "3.12.3", "torch": "2.11.0",
            "commit": commit, "dirty": dirty,
        },
    }  # fmt: skip
    if classes == 7:
        row["malignancy"] = {name: estimate(0.5) for name in ("accuracy", "balanced_accuracy", "auroc", "ece")}
    return row


def test_the_readmes_show_what_was_measured(tmp_path):
    recipes = read_recipes(ROOT / RESULT)
    for page, make in (("README.md", main_table), ("benchmarks/README.md", table)):
        content = (ROOT / page).read_text(encoding="utf-8")
        assert section(content, ROOT / page) == make(recipes), "python -m benchmarks.models --write"
    draw(recipes, tmp_path / "results.svg")
    assert (tmp_path / "results.svg").read_bytes() == (ROOT / PLOT).read_bytes(), "python -m benchmarks.models --write"


def test_every_number_of_the_readme_is_one_that_was_measured():
    recipes = read_recipes(ROOT / RESULT)
    [test] = {(row["test"]["images"], row["test"]["lesions"]) for row in recipes.values()}
    loop = read_json(ROOT / "benchmarks/results/throughput-gpu-loop.json")
    speed = loop["rows"]["efficientnet/b0/224/128/bf16"]["pipeline"]
    known = {f"{number:,}" for number in (*test, round(int(speed), -2))}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = text.replace(section(text, ROOT / "README.md"), "").split("## Licence")[0]
    assert set(re.findall(r"\b(?:\d+,\d{3}|9\d\d|0\.\d+)\b", prose.replace("HAM10000", ""))) <= known


def test_the_readme_s_table_fits_github():
    lines = main_table({"lite0/7": measured(7), "lite0/2": measured(2)}).splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[2] == ["EfficientNet-Lite0", *["0.800<br><sub>0.700&nbsp;to&nbsp;0.900</sub>"] * 4]
    assert len(rows) == 3


def test_the_documentation_says_how_to_run_the_recipe_that_was_measured(tmp_path):
    readme = (ROOT / "docs/ham10000.md").read_text(encoding="utf-8")
    command = next(line for line in readme.replace("\\\n", "").splitlines() if "data.data_dir=data/ham10000" in line)
    said = dict(pair.split("=") for pair in re.findall(r"-S (\S+)", command))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_parameters(tmp_path, said)
    config = load_config(tmp_path / "params.yaml")
    for name, value in RECIPE.items():
        section_of, key = name.split(".")
        assert (name, getattr(getattr(config, section_of), key)) == (name, value)
    assert set(said) - set(RECIPE) == {"data.data_dir", "model.num_classes"}


def test_the_table_has_a_line_for_each_reading_and_says_where_it_was_measured():
    lines = table({"lite0/2": measured(2), "lite0/7": measured(7)}).splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {15}
    assert [row[:3] for row in rows[2:]] == [
        ["EfficientNet-Lite0", "7", "0.800 (0.700 to 0.900)"],
        ["EfficientNet-Lite0", "7, as 2", "0.500 (0.400 to 0.600)"],
        ["EfficientNet-Lite0", "2", "0.800 (0.700 to 0.900)"],
    ]
    assert rows[2][-5:] == ["0.812", "7 of 20", "45", "10,358", "100"]
    below = " ".join(lines[len(rows) :])
    assert "Of 1,226 test images of 917 lesions" in below
    assert "NVIDIA H100, 16 cores of AMD EPYC, Python 3.12.3, PyTorch 2.11.0, commit 0123456." in below


def test_recipes_of_different_commits_are_told_apart():
    text = table({"lite0/7": measured(7), "lite1/2": measured(2, commit="abcdef012", dirty=True)}).replace("\n", " ")
    assert "commit 0123456: lite0/7." in text
    assert "commit abcdef0 with changes that were not committed: lite1/2." in text
    with pytest.raises(InputError, match="no recipe has been measured"):
        table({})


def test_the_table_takes_its_place_in_a_file(tmp_path):
    page = tmp_path / "README.md"
    begin, end = MARKERS
    page.write_text(f"# Title\n\n{begin}\nold\n{end}\n\nEnd.\n", encoding="utf-8")
    for text in ("| new |", "| newer |"):
        write_between_markers(page, text)
        assert page.read_text(encoding="utf-8") == f"# Title\n\n{begin}\n{text}\n{end}\n\nEnd.\n"
        assert section(page.read_text(encoding="utf-8"), page) == text


@pytest.mark.parametrize("content", ["", MARKERS[0], "".join(MARKERS[::-1]), "".join(MARKERS * 2)])
def test_a_file_without_the_markers_is_left_alone(tmp_path, content):
    page = tmp_path / "README.md"
    page.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="must have the lines <!-- models: begin -->"):
        write_between_markers(page, "| new |")
    assert page.read_text(encoding="utf-8") == content


def test_a_name_stands_for_all_numbers_of_classes():
    assert choose([]) == [f"{name}/{classes}" for name in RECIPES for classes in (7, 2)]
    assert choose(["ensemble/2", "lite0"]) == ["lite0/7", "lite0/2", "ensemble/2"]
    with pytest.raises(InputError, match="lite9: no such recipe; there are baseline-cnn"):
        choose(["lite0", "lite9"])


def test_a_stage_that_fails_says_so(tmp_path):
    with pytest.raises(InputError, match=r"stages\.prepare failed:\n.*nowhere"):
        run_pipeline({"data.data_dir": str(tmp_path / "nowhere")}, tmp_path)
