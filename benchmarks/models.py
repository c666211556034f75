"""What the networks reach on the test fold of HAM10000, and what they cost: tables, and the plot of the README.

    python -m benchmarks.models --data-dir data/ham10000
    python -m benchmarks.models --data-dir data/ham10000 --only baseline-cnn lite0/7
    python -m benchmarks.models --table
    python -m benchmarks.models --write

Each recipe, with seven and with two classes, goes through the whole pipeline as its users run it: the five stages one
after another, each a process of its own, with this repository's params.yaml and the recipe's values, in an empty
folder. The seconds are those of the processes, from their start to their end. What seven classes say of malignancy is
evaluated from their predictions as two classes are.

Writes benchmarks/results/models.json, a recipe as soon as it has ended; the others in the file stay. `--write` puts the
table into benchmarks/README.md, its main columns into README.md, and draws docs/results.svg.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.plain import PLAIN
from benchmarks.recipe import RECIPE as MEASURED
from benchmarks.recipe import configure, parse_value
from benchmarks.sweep import set_parameters
from stages.classifier.hardware import describe_environment
from stages.errors import InputError
from stages.figures.style import BLUE
from stages.files import (
    DETAILS,
    ENVIRONMENT,
    MODEL_DESCRIPTION,
    read_json,
    replacing,
    write_json,
)
from stages.launch import run
from stages.reporting import estimate, interval, number

PLOT = Path("docs/results.svg")
RESULT = Path("benchmarks/results/models.json")
ROOT = Path(__file__).parents[1]
STAGES = ("prepare", "split", "train", "evaluate", "plot")
CLASSES = (7, 2)
MARKERS = "<!-- models: begin -->", "<!-- models: end -->"

# The number of classes is a column of the table, and training stops early as params.yaml says.
RECIPE = {
    name: value
    for name, value in MEASURED.items()
    if name not in ("model.num_classes", "training.early_stopping_patience")
}
_SCRATCH = RECIPE | {  # takes longer than fine-tuning
    "model.pretrained": False,
    "model.dropout_rate": 0.2,
    "training.learning_rate": 1e-3,
    "training.max_epochs": 40,
}
RECIPES: dict[str, dict[str, Any]] = {
    "baseline-cnn": _SCRATCH | {"model.name": "baseline_cnn", "model.variant": None},
    "resnet18": _SCRATCH | {"model.name": "resnet", "model.variant": 18},
    "lite0": RECIPE,
    "lite1": RECIPE | {"model.variant": "lite1"},
    "ensemble": RECIPE | {"model.ensemble": 5},
}
TITLES = {
    "baseline-cnn": "BaselineCNN, from scratch",
    "resnet18": "ResNet-18, from scratch",
    "lite0": "EfficientNet-Lite0",
    "lite1": "EfficientNet-Lite1",
    "ensemble": "five EfficientNet-Lite0",
}


def choose(names: list[str]) -> list[str]:
    """The recipes to run, as `lite0/7`: of a name alone with every number of classes; all of them without names.

    Raises:
        InputError: there is no such recipe.
    """
    everything = [f"{name}/{classes}" for name in RECIPES for classes in CLASSES]
    unknown = [name for name in names if name not in everything and name not in RECIPES]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: no such recipe; there are {', '.join([*RECIPES, *everything])}")
    return [recipe for recipe in everything if not names or not {recipe, recipe.split("/")[0]}.isdisjoint(names)]


def set_up(overrides: dict[str, Any], folder: Path) -> None:
    """Write this repository's params.yaml, with other values by dotted names, into a folder."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    overrides = {"data.taxonomy": PLAIN.data.taxonomy, **overrides}
    set_parameters(folder, {name: json.dumps(value) for name, value in overrides.items()})


def run_pipeline(overrides: dict[str, Any], folder: Path) -> dict[str, float]:
    """Run the five stages in a folder, in which they find params.yaml alone, and this repository's code.

    Args:
        overrides: of params.yaml, by dotted names.
        folder: empty; the stages write into it.

    Returns:
        Seconds of each stage's process.

    Raises:
        InputError: a stage failed.
    """
    set_up(overrides, folder)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("DVC_ROOT", None)
    seconds = {}
    for stage in STAGES:
        start = time.perf_counter()
        command = [sys.executable, "-m", f"stages.{stage}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        seconds[stage] = time.perf_counter() - start
        if done.returncode:
            raise InputError(f"stages.{stage} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def collect(folder: Path) -> dict:
    """What a run of the pipeline found, from the files that its stages wrote to `folder`."""
    details, environment = read_json(folder / DETAILS), read_json(folder / ENVIRONMENT)
    test = details["test"]
    at_90 = next(entry for entry in test["specificity_at_sensitivity"] if entry["sensitivity"] == 0.9)
    found = {
        "metrics": test["metrics"] | {"specificity_at_90": at_90["specificity"]},
        "test": {name: test[name] for name in ("images", "lesions")},
        "val_accuracy": details["val"]["metrics"]["accuracy"],
        "best_epochs": [epoch + 1 for epoch in read_json(folder / MODEL_DESCRIPTION)["epochs"]],
        "training_seconds": environment.pop("training_seconds"),
        "images_per_second": environment.pop("training_images_per_second"),
        "confidence": details["confidence"],
        "environment": environment,
    }
    return found | ({"malignancy": test["malignancy"]["metrics"]} if "malignancy" in test else {})


def overrides_of(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The values of params.yaml that a recipe changes, by dotted names.

    Raises:
        InputError: one of them does not exist, or cannot have its value.
    """
    name, classes = recipe.split("/")
    overrides = RECIPES[name] | {"model.num_classes": int(classes)} | settings
    configure(overrides)
    return overrides


def measure(recipe: str, data_dir: Path, settings: dict[str, Any], commit: dict) -> dict:
    """Run a recipe through the pipeline.

    Args:
        recipe: as `lite0/7`.
        data_dir: the dataset.
        settings: that all recipes have, by dotted names.
        commit: `commit` and `dirty` of the code: the folder that the stages run in is not a repository.
    """
    overrides = overrides_of(recipe, settings)
    with tempfile.TemporaryDirectory() as folder:
        data = {"data.data_dir": str(data_dir.absolute())}
        seconds = run_pipeline(overrides | data, Path(folder))
        found = collect(Path(folder))
    seconds["all"] = sum(seconds.values())
    return found | {"overrides": overrides, "seconds": seconds, "environment": found["environment"] | commit}


# Of a row: the column's title, the key of its metric for seven classes, for two, and for what seven say of two.
METRICS = (
    ("accuracy", "accuracy", "accuracy", "accuracy"),
    ("balanced accuracy", "balanced_accuracy", "balanced_accuracy", "balanced_accuracy"),
    ("AUROC", "macro_auroc", "auroc", "auroc"),
    ("malignant AUROC", "malignant_auroc", "auroc", "auroc"),
    ("sensitivity at the threshold", "sensitivity_at_threshold", "sensitivity_at_threshold", None),
    ("specificity at the threshold", "specificity_at_threshold", "specificity_at_threshold", None),
    ("specificity at 90 % sensitivity", "specificity_at_90", "specificity_at_90", None),
    ("ECE", "ece", "ece", "ece"),
)
COSTS = ("validation accuracy", "epochs to the best", "training, s", "images/s", "prepare to plot, s")


def table(recipes: dict[str, dict]) -> str:
    """The recipes as a Markdown table, with the hardware and the commit below it.

    Args:
        recipes: by name and classes, as `lite0/7`, what `measure` gives.

    Raises:
        InputError: there are none.
    """
    found = {f"{name}/{classes}": None for name in RECIPES for classes in CLASSES}
    found = {recipe: recipes[recipe] for recipe in found if recipe in recipes}
    if not found:
        raise InputError("no recipe has been measured yet: run benchmarks.models first")
    titles = ["model", "classes", *(title for title, *_ in METRICS), *COSTS]
    lines = ["| " + " | ".join(titles) + " |", "| --- | --- " + "| ---: " * (len(titles) - 2) + "|"]
    for recipe, row in found.items():
        name, classes = recipe.split("/")
        metrics = [estimate(row["metrics"][seven if classes == "7" else two]) for _, seven, two, _ in METRICS]
        costs = [
            f"{row['val_accuracy']:.3f}",
            f"{', '.join(map(str, row['best_epochs']))} of {row['overrides']['training.max_epochs']}",
            f"{row['training_seconds']:,.0f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['seconds']['all']:,.0f}",
        ]
        lines.append("| " + " | ".join([TITLES[name], classes, *metrics, *costs]) + " |")
        if "malignancy" in row:
            metrics = [estimate(row["malignancy"][key]) if key else "" for *_, key in METRICS]
            lines.append("| " + " | ".join([TITLES[name], "7, as 2", *metrics, *[""] * len(COSTS)]) + " |")
    return "\n".join([*lines, "", _below(found)])


# Of the README's table: the column's title and the key of its metric for seven classes.
MAIN = (
    ("accuracy", "accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("macro AUROC", "macro_auroc"),
    ("AUROC of malignancy", "malignant_auroc"),
)


def main_table(recipes: dict[str, dict]) -> str:
    """The recipes with seven classes in five columns, intervals below the numbers, and the plot of them."""
    lines = ["| network | " + " | ".join(title for title, _ in MAIN) + " |", "| --- " + "| ---: " * len(MAIN) + "|"]
    for name, row in _of_seven(recipes).items():
        cells = [
            f"{number(row['metrics'][key]['value'])}<br><sub>{interval(row['metrics'][key])}</sub>".replace(
                " ", "&nbsp;"
            )
            for _, key in MAIN
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join([*lines, "", f"![Balanced accuracy and AUROC of malignancy with intervals]({PLOT})"])


def _of_seven(recipes: dict[str, dict]) -> dict[str, dict]:
    return {TITLES[name]: recipes[f"{name}/7"] for name in RECIPES if f"{name}/7" in recipes}


def draw(recipes: dict[str, dict], path: Path) -> None:
    """Draw balanced accuracy and AUROC of malignancy with their intervals, one line for each network."""
    found = _of_seven(recipes)
    figure = Figure(figsize=(8.3, 0.36 * len(found) + 0.9))
    for axes, (title, key) in zip(figure.subplots(1, 2, sharey=True), (MAIN[1], MAIN[3])):
        for line, row in enumerate(found.values()):
            low, high = row["metrics"][key]["interval"]
            axes.hlines(line, low, high, color=BLUE)
            axes.plot(row["metrics"][key]["value"], line, "o", color=BLUE)
        axes.set_title(title)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    with rc_context({"svg.hashsalt": "results"}), replacing(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})


def _below(recipes: dict[str, dict]) -> str:
    """What the numbers are of, and on which machines and commits they were measured."""
    first = next(iter(recipes.values()))
    paragraphs = [
        f"Of {first['test']['images']:,} test images of {first['test']['lesions']:,} lesions; in brackets intervals at "
        f"{100 * first['confidence']:.0f} % from a bootstrap over lesions. The AUROC of 7 classes is their mean; "
        "`7, as 2` is what the sums of their benign and of their malignant probabilities say. The best epoch has the "
        "lowest calibrated validation loss; seconds from `prepare` to `plot` include the start of five processes."
    ]
    machines: dict[str, list[str]] = {}
    for recipe, row in recipes.items():
        machines.setdefault(_machine(row["environment"]), []).append(recipe)
    for machine, members in machines.items():
        paragraphs.append(f"{machine}{'' if len(machines) == 1 else ': ' + ', '.join(members)}.")
    return "\n\n".join(fill(paragraph, 120, break_on_hyphens=False) for paragraph in paragraphs)


def _machine(environment: dict) -> str:
    commit = environment["commit"]
    told = f"commit {commit[:7]}" if commit else "the commit is not known"
    return (
        f"Measured on {environment['gpu'] or 'no GPU'}, {environment['cpu_cores']} cores of {environment['cpu']}, "
        f"Python {environment['python']}, PyTorch {environment['torch']}, {told}"
        + (" with changes that were not committed" if environment["dirty"] else "")
    )


def write_between_markers(path: Path, text: str) -> None:
    """Put `text` between the two lines of `MARKERS` in a file.

    Raises:
        InputError: they are not there, once each, in this order.
    """
    content = path.read_text(encoding="utf-8")
    section(content, path)
    begin, end = MARKERS
    before, after = content.split(begin)[0], content.split(end)[1]
    with replacing(path) as partial:
        partial.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def section(content: str, path: Path) -> str:
    """What stands between the markers in a file's content.

    Raises:
        InputError: they are not there, once each, in this order.
    """
    begin, end = MARKERS
    if [content.count(marker) for marker in MARKERS] != [1, 1] or content.index(begin) > content.index(end):
        raise InputError(f"{path} must have the lines {begin} and {end} once each, the table's place between them")
    return content.split(begin)[1].split(end)[0].strip("\n")


def read_recipes(path: Path) -> dict[str, dict]:
    """The recipes that have been measured; none if the file is not there."""
    return read_json(path)["recipes"] if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run recipes through the whole pipeline, and evaluate on the test fold."
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data/ham10000"), help="the dataset")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="as lite0 or lite0/7; default: all")
    parser.add_argument(
        "--set", type=parse_value, nargs="+", default=[], metavar="NAME=VALUE", help="of all recipes, to try this"
    )
    parser.add_argument("--commit", help="where Git does not tell it")
    parser.add_argument("--output", type=Path, default=RESULT)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--table", action="store_true", help="print the table, run nothing")
    action.add_argument("--write", action="store_true", help="put tables and plot into the READMEs, run nothing")
    args = parser.parse_args()

    recipes = read_recipes(args.output)
    if args.table:
        print(table(recipes))
        return
    if args.write:
        write_between_markers(ROOT / "benchmarks/README.md", table(recipes))
        write_between_markers(ROOT / "README.md", main_table(recipes))
        draw(recipes, ROOT / PLOT)
        return
    environment = describe_environment()
    commit = {"commit": args.commit or environment["commit"], "dirty": environment["dirty"]}
    chosen, settings = choose(args.only), dict(args.set)
    for recipe in chosen:
        overrides_of(recipe, settings)  # before hours are spent on another one
    for recipe in chosen:
        recipes[recipe] = measure(recipe, args.data_dir, settings, commit)
        write_json(args.output, {"recipes": recipes})
        seconds = {stage: round(taken, 1) for stage, taken in recipes[recipe]["seconds"].items()}
        print(f"{recipe}: accuracy {estimate(recipes[recipe]['metrics']['accuracy'])}, seconds {seconds}", flush=True)


if __name__ == "__main__":
    run(main)
