"""What a sweep costs beside the runs themselves.

    OMP_WAIT_POLICY=passive python -m benchmarks.sweep

Four experiments that differ in `training.seed`: in one fresh clone, queued and run by `stages.commands.sweep`, timed
from its start to its end; in another, four times `dvc repro`, each with the seed in params.yaml. Two of these run
before the sweep and two after it, so that other work on the machine, which comes and goes, weighs on both; it hardly
touches the processor time of all processes, which is recorded, too. The parameters are quick ones: what a sweep does
itself weighs most on a short run.

Writes benchmarks/results/sweep.json.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from stages.classifier.hardware import processor
from stages.files import write_json
from tests.clone import QUICK, overrides

RESULT = Path("benchmarks/results/sweep.json")
GOAL = 1.3
SEEDS = (1, 2, 3, 4)


class Cost(NamedTuple):
    """Seconds by the clock, and of the processors."""

    clock: float
    processor: float


def processor_time() -> float:
    """Seconds that the processes which have ended used, and those that these waited for."""
    times = os.times()
    return times.children_user + times.children_system


def run(folder: Path, *command: str) -> Cost:
    """Run a command in a clone; what it cost."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start, used = time.perf_counter(), processor_time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return Cost(time.perf_counter() - start, processor_time() - used)


def clone(folder: Path) -> Path:
    """A clone of the last commit, with nothing in DVC's cache."""
    run(Path.cwd(), "git", "clone", "--quiet", "--no-hardlinks", ".", str(folder))
    for key, value in (("user.name", "benchmark"), ("user.email", "benchmark@example.org")):
        run(folder, "git", "config", key, value)
    return folder


def set_parameters(folder: Path, parameters: dict[str, object]) -> None:
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for name, value in parameters.items():
        section, key = name.split(".")
        text, count = re.subn(rf"(?m)(^{section}:\n(?:  .*\n)*?  {key}: )\S+", rf"\g<1>{value}", text)
        if count != 1:
            sys.exit(f"params.yaml has no {name}")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    argparse.ArgumentParser(description="Measure a sweep of 4 experiments against 4 times `dvc repro`.").parse_args()
    options = overrides(training__seed=",".join(map(str, SEEDS)))
    repros, load = [], [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        alone, swept = clone(Path(temporary) / "alone"), clone(Path(temporary) / "swept")
        for seed in SEEDS:
            if seed == SEEDS[len(SEEDS) // 2]:
                sweep = run(swept, sys.executable, "-m", "stages", "sweep", *options)
                print(f"sweep of {len(SEEDS)}: {sweep.clock:.1f} s", flush=True)
            set_parameters(alone, {**QUICK, "training.seed": seed})
            repros.append(run(alone, "dvc", "repro"))
            load.append(os.getloadavg()[0])
            print(f"dvc repro, seed {seed}: {repros[-1].clock:.1f} s", flush=True)
    ratio = Cost(*(all_at_once / sum(each) for all_at_once, each in zip(sweep, zip(*repros))))
    print(f"ratio {ratio.clock:.2f} by the clock, {ratio.processor:.2f} of processor time (goal: at most {GOAL})")
    write_json(
        RESULT,
        {
            "command": "OMP_WAIT_POLICY=passive python -m benchmarks.sweep",
            "parameters": QUICK,
            "hardware": {"cpu": processor(), "cores": os.cpu_count(), "load_before_and_after_each_repro": load},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("dvc", "torch")}},
            "goal": GOAL,
            "ratio": ratio._asdict(),
            "seconds": {"sweep": sweep._asdict(), "repro": [cost._asdict() for cost in repros]},
        },
    )


if __name__ == "__main__":
    main()
