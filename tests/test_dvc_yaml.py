"""dvc.yaml against the code: DVC does not see imports and parameters by itself."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.config import Config
from tests.clone import ENVIRONMENT, ROOT

PIPELINE = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = PIPELINE["stages"]


# What modules read beside them: of each, the folder that a stage which imports it depends on too.
READ = {
    "stages/figures/rendering.py": "stages/figures/templates",
}


def imported_modules(path: Path) -> set[Path]:
    """The modules of this project that the module at `path` imports, and those that they import."""
    found: set[Path] = set()
    pending = [path, ROOT / "stages" / "__init__.py"]
    while pending:
        module = pending.pop()
        found.add(module)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):  # of a module, or a module of a package
                names = [f"{node.module}", *(f"{node.module}.{name}" for name in names)]
            for name in names:
                source = ROOT / (name.replace(".", "/") + ".py")
                if name.startswith("stages.") and source.is_file() and source not in found:
                    pending.append(source)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(stage):
    needed = {path.relative_to(ROOT).as_posix() for path in imported_modules(ROOT / "stages" / f"{stage}.py")}
    needed |= {folder for module, folder in READ.items() if module in needed}
    listed = {path for path in STAGES[stage]["deps"] if path.startswith("stages/")}
    assert listed == needed


def test_packages_hold_no_code_that_dependencies_would_miss():
    assert [path for path in ROOT.glob("stages/*/__init__.py") if path.read_text(encoding="utf-8").strip()] == []


# Packages that take a tenth of a second or more to load, and which of them a stage loads before it begins.
HEAVY = {
    "captum", "dvc.repo", "dvclive", "jinja2", "lightning_fabric", "matplotlib", "optuna", "pandas", "pydantic",
    "pytorch_lightning", "rich.progress", "scipy.optimize", "scipy.signal", "scipy.stats", "sklearn", "timm", "torch",
    "torch._dynamo", "torchmetrics", "torchvision", "transformers", "wandb",
}  # fmt: skip
NETWORKS = {"scipy.optimize", "timm", "torch", "torch._dynamo", "torchvision"}  # timm needs all of the last
LOADED = {
    "prepare": {"pandas", "pydantic", "rich.progress"},
    "split": {"pandas", "pydantic"},
    "train": {"dvclive", "pandas", "pydantic", "rich.progress", *NETWORKS},
    "evaluate": {"pandas", "pydantic", "rich.progress", *NETWORKS},
    "plot": {"jinja2", "matplotlib", "pandas", "pydantic", "rich.progress"},
    "publish": {"pydantic"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_only_what_it_needs_before_it_begins(stage):
    # The first process of a training starts the others before it loads what all of them need.
    begins = {"train": "stages.training.fit"}.get(stage, f"stages.{stage}")
    code = f"import sys, {begins}; print(*sys.modules.keys() & {{*sys.argv[1:]}})"
    command = [sys.executable, "-c", code, *HEAVY]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == LOADED[stage]


def test_every_parameter_makes_some_stage_run_again():
    listed = [parameter for stage in STAGES.values() for parameter in stage.get("params", [])]
    unused = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
        if section.name not in listed and f"{section.name}.{field.name}" not in listed
    ]
    # How many threads decode does not change what they decode.
    assert unused == ["runtime.num_workers"]


def test_what_a_stage_reads_is_made_by_an_earlier_one_or_lies_in_git():
    made = set()
    for stage in STAGES.values():
        for dependency in stage["deps"]:
            if not dependency.startswith(("stages/", "${data.data_dir}", "${data.taxonomy}", "data/costs")):
                assert any(dependency == out or dependency.startswith(f"{out}/") for out in made), dependency
        for key in ("outs", "metrics"):
            for out in stage.get(key, []):
                made.add(out if isinstance(out, str) else next(iter(out)))


def test_git_ignores_what_dvc_keeps():
    cached = [out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {f"/{out}" for out in cached} <= set(ignored)
