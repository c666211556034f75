"""What a sweep costs beside the runs themselves.

    OMP_WAIT_POLICY=passive python -m benchmarks.sweep

Four experiments that differ in `training.seed`: in one fresh clone, queued and run by `stages.commands.sweep`, timed
from its start to its end; in another, likewise as jobs of a SLURM of two nodes on this machine, where it is installed;
in a third, four times `dvc repro`, each with the seed in params.yaml. Two of these run before the sweeps and two after
them, so that other work on the machine, which comes and goes, weighs on all; it hardly touches the processor time of
all processes, which is recorded, too. The parameters are quick ones: what a sweep does itself weighs most on a short
run.

Writes benchmarks/results/sweep.json.
"""

import argparse
import ctypes
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

import psutil

from stages.classifier.hardware import processor
from stages.files import write_json
from tests.clone import QUICK, overrides
from tests.slurm import Slurm, Unavailable

RESULT = Path("benchmarks/results/sweep.json")
GOAL = 1.2
SLURM = ("--slurm", "gpus=0,cpus-per-task=2")
PR_SET_CHILD_SUBREAPER = 36
SEEDS = (1, 2, 3, 4)


class Cost(NamedTuple):
    """Seconds by the clock, and of the processors."""

    clock: float
    processor: float


def processor_time() -> float:
    """Seconds that the processes which have ended used, and those that these waited for."""
    times = os.times()
    return times.children_user + times.children_system


def run(folder: Path, *command: str, **variables: str) -> Cost:
    """Run a command in a clone, with more variables in its environment; what it cost."""
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    others = psutil.Process().children()
    start, used = time.perf_counter(), processor_time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    clock = time.perf_counter() - start
    # The queue's workers, which are ending, and processes of jobs, whose parents have ended.
    psutil.wait_procs([child for child in psutil.Process().children() if child not in others])
    return Cost(clock, processor_time() - used)


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
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    repros, sweeps, load = [], {}, [os.getloadavg()[0]]
    sweep = (sys.executable, "-m", "stages", "sweep", *options)
    with tempfile.TemporaryDirectory() as temporary:
        alone, local, jobs = (clone(Path(temporary) / name) for name in ("alone", "local", "jobs"))
        for seed in SEEDS:
            if seed == SEEDS[len(SEEDS) // 2]:
                sweeps["local"] = run(local, *sweep)
                try:
                    with Slurm(Path(temporary) / "slurm") as slurm:
                        sweeps["slurm"] = run(jobs, *sweep, *SLURM, **slurm.environment)
                except Unavailable as reason:
                    print(f"no sweep on SLURM: {reason}")
                print(f"sweeps of {len(SEEDS)}: {sweeps}", flush=True)
            set_parameters(alone, {**QUICK, "training.seed": seed})
            repros.append(run(alone, "dvc", "repro"))
            load.append(os.getloadavg()[0])
            print(f"dvc repro, seed {seed}: {repros[-1].clock:.1f} s", flush=True)
    ratios = {
        name: Cost(*(swept / sum(each) for swept, each in zip(cost, zip(*repros)))) for name, cost in sweeps.items()
    }
    print(f"ratios {ratios} (goal: at most {GOAL})")
    write_json(
        RESULT,
        {
            "command": "OMP_WAIT_POLICY=passive python -m benchmarks.sweep",
            "parameters": QUICK,
            "hardware": {"cpu": processor(), "cores": os.cpu_count(), "load_before_and_after_each_repro": load},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("dvc", "torch")}},
            "goal": GOAL,
            "ratio": {name: ratio._asdict() for name, ratio in ratios.items()},
            "seconds": {
                "sweep": {name: cost._asdict() for name, cost in sweeps.items()},
                "repro": [cost._asdict() for cost in repros],
            },
        },
    )


if __name__ == "__main__":
    main()
