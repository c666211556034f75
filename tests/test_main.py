"""The front door: `python -m stages`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "stages/commands").glob("[!_]*.py"))


def stages(*arguments, code="import runpy; runpy.run_module('stages', run_name='__main__', alter_sys=True)"):
    command = [sys.executable, "-c", code, *arguments]
    # A terminal that has few letters: help and messages are told all the same.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed_with_a_line_each(arguments):
    done = stages(*arguments)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert sorted(listed) == COMMANDS
    assert done.returncode == 0


def test_an_unknown_command_is_refused_with_the_one_that_was_meant():
    done = stages("prdict", "photo.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: prdict is not a command; did you mean predict?\n"
    assert "known are audit, check, compare" in stages("zzz").stderr


def test_a_command_gets_its_arguments_and_its_mistakes_are_one_line():
    done = stages("predict", "gone.jpg")
    assert done.returncode == 1
    assert done.stderr.startswith("error: gone.jpg: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_told_without_importing_what_takes_seconds(command):
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'pandas', 'numpy', 'dvc.repo', 'matplotlib', 'optuna', 'scipy', 'requests'}\n"
        "atexit.register(lambda: print('imported', sorted(heavy & set(sys.modules))))\n"
        "runpy.run_module('stages', run_name='__main__', alter_sys=True)"
    )
    done = stages(command, "--help", code=code)
    assert done.stdout.startswith(f"usage: python -m stages {command} ")
    assert done.stdout.endswith("imported []\n")
