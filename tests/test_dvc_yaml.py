"""dvc.yaml against the code: DVC does not see imports and parameters by itself."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.config import Config

ROOT = Path(__file__).parent.parent
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
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                source = ROOT / (name.replace(".", "/") + ".py")
                if name.startswith("stages.") and source not in found:
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


@pytest.mark.parametrize("stage", ["prepare", "split", "plot"])
def test_stages_that_need_no_torch_do_not_wait_for_it(stage):
    code = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


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
            if not dependency.startswith(("stages/", "${data.data_dir}", "${data.taxonomy}")):
                assert any(dependency == out or dependency.startswith(f"{out}/") for out in made), dependency
        for key in ("outs", "metrics"):
            for out in stage.get(key, []):
                made.add(out if isinstance(out, str) else next(iter(out)))


def test_git_ignores_what_dvc_keeps():
    cached = [out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {f"/{out}" for out in cached} <= set(ignored)
