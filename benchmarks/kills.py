"""Whether anything is lost when a stage, or `dvc`, is killed.

    OMP_WAIT_POLICY=passive python -m benchmarks.kills

For each of the five stages, `dvc repro` runs in a fresh clone and is killed at a random moment of the stage's work,
then runs again; 20 times, of which every third kills `dvc` itself and leaves the stage behind as an orphan. Everything
in the clone must then be as after a run that nobody killed, to the byte: outputs, what `dvc.lock` says, DVC's cache,
and not one file more. What differs by itself is left out: Git's folder, compiled Python, DVC's own notes, and
`metrics/environment.json`, which holds times.

Imports do not count: a stage that is killed before its first line has touched nothing. Training writes a checkpoint
every third of a second, so that kills meet the writing of one. Two clones are at work at a time.

Writes benchmarks/results/kills.json.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from benchmarks.sweep import clone, set_parameters
from stages.classifier.hardware import processor
from stages.files import ENVIRONMENT, write_json
from stages.launch import LOCK
from tests.clone import QUICK

RESULT = Path("benchmarks/results/kills.json")
STAGES = ("prepare", "split", "train", "evaluate", "plot")
# Which clone has which stages; training takes as long as the others together.
LANES = (("train",), ("prepare", "split", "evaluate", "plot"))
KILLS, SEED = 20, 0
PARAMETERS = {
    **QUICK,
    "training.max_epochs": 16,
    "training.checkpoint_minutes": 0.005,
    "evaluation.bootstrap_replicates": 100,
    "evaluation.gradcam_cases": 1,
}
LOCK_FILE = "dvc.lock"
# What Git, Python and DVC note for themselves; `runs` are results by their inputs, which `forget` takes away.
NOTES = {".git", "__pycache__", "btime", "lock", "runs", "rwlock", "rwlock.lock"}
TRIES = 10


@dataclass
class Kill:
    """One kill and what came of it.

    Attributes:
        stage: that was at work.
        killed: the stage, or dvc.
        after: seconds of the stage's work.
        resumed: whether the next training resumed from a checkpoint.
        waited: whether the next stage waited for the one that was left behind.
        partial: files that were left half-written, before the next run.
        wrong: files that differ, are missing or are too many after the next run.
    """

    stage: str
    killed: str
    after: float
    resumed: bool
    waited: bool
    partial: int
    wrong: list[str]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start DVC in a clone."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603


def finish(folder: Path, *arguments: str) -> str:
    """Run DVC in a clone, which must succeed; what it printed."""
    status = start(folder, *arguments).wait()
    printed = (folder.parent / f"{folder.name}.log").read_text(encoding="utf-8")
    if status:
        sys.exit(f"dvc {' '.join(arguments)} failed:\n{printed}")
    return printed


def at_work(dvc: subprocess.Popen, folder: Path, stage: str) -> psutil.Process | None:
    """Wait until DVC's stage has taken its lock; its process, or None if DVC ended before."""
    while dvc.poll() is None:
        with suppress(psutil.Error):
            for process in psutil.Process(dvc.pid).children(recursive=True):
                if process.cmdline()[-2:] == ["-m", f"stages.{stage}"] and any(
                    file.path == str((folder / LOCK).resolve()) for file in process.open_files()
                ):
                    return process
        time.sleep(0.005)
    return None


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file in a clone that says anything, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not NOTES & set(name.parts) and name != ENVIRONMENT:
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    # Its stages stand in the order in which they ran.
    lock = YAML(typ="safe").load(folder / LOCK_FILE)
    found[LOCK_FILE] = hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()
    return found


def forget(folder: Path, stage: str) -> None:
    """Make DVC take a stage for one that never ran; its outputs are still there, as after a change of a parameter."""
    yaml = YAML()
    lock = yaml.load(folder / LOCK_FILE)
    del lock["stages"][stage]
    yaml.dump(lock, folder / LOCK_FILE)
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)


def kill(folder: Path, stage: str, killed: str, after: float) -> int | None:
    """Run a stage and kill it, or `dvc`, a number of seconds after it began to work.

    Returns:
        How many partial files are left; None if the stage ended before.
    """
    dvc = start(folder, "repro", stage)
    process = at_work(dvc, folder, stage)
    time.sleep(after)
    if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        dvc.wait()
        return None
    (process if killed == "stage" else psutil.Process(dvc.pid)).kill()
    status = dvc.wait()
    if killed == "dvc":
        return 0  # the stage is still at work
    if status == 0:
        return None  # it had just ended
    return sum(1 for path in folder.rglob("*.partial") if ".git" not in path.parts)


def lane(folder: Path, stages: tuple[str, ...], kills: int, seed: int) -> Iterator[tuple[str, float, list[Kill]]]:
    """Kill some stages in one clone; for each its name, the seconds of its work, and its kills."""
    set_parameters(clone(folder), PARAMETERS)
    seconds = {}
    for stage in STAGES:
        dvc = start(folder, "repro", "--single-item", stage)
        process = at_work(dvc, folder, stage)
        if process is None:
            finish(folder, "repro", "--single-item", stage)  # says why
        begin = time.perf_counter()
        with suppress(psutil.NoSuchProcess):
            (process or dvc).wait()
        seconds[stage] = time.perf_counter() - begin
        dvc.wait()
    finish(folder, "repro")
    expected = contents(folder)
    for stage in stages:
        moments, done = random.Random(f"{seed} {stage}"), []  # noqa: S311
        for number in range(kills):
            killed = "dvc" if number % 3 == 2 else "stage"
            for _ in range(TRIES):
                after = moments.uniform(0, seconds[stage])
                forget(folder, stage)
                if (partial := kill(folder, stage, killed, after)) is not None:
                    break
            else:
                sys.exit(f"{stage} ended before each of {TRIES} moments")
            printed = finish(folder, "repro", stage)
            found = contents(folder)
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            waited = "another stage is running" in printed
            done.append(Kill(stage, killed, after, "resuming from" in printed, waited, partial, wrong))
            print(done[-1], flush=True)
        yield stage, seconds[stage], done
    if "up to date" not in finish(folder, "repro"):
        sys.exit("dvc repro ran a stage again, although everything was as it should be")


def table(results: dict[str, tuple[float, list[Kill]]]) -> str:
    """Markdown: one row per stage."""
    lines = [
        "| stage | its work, s | kills of the stage | kills of `dvc` | left half-written files, cleared | resumed "
        "| waited | all identical, nothing left |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage, (seconds, kills) in results.items():
        of_dvc = sum(kill.killed == "dvc" for kill in kills)
        counts = [
            len(kills) - of_dvc,
            of_dvc,
            sum(kill.partial > 0 for kill in kills),
            sum(kill.resumed for kill in kills),
            sum(kill.waited for kill in kills),
            f"{sum(not kill.wrong for kill in kills)} of {len(kills)}",
        ]
        lines.append(f"| {stage} | {seconds:.1f} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill each stage, and `dvc`, at random moments and run it again.")
    parser.add_argument("--kills", type=int, default=KILLS, help="of each stage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(len(LANES)) as pool:
        lanes = pool.map(
            lambda stages: list(lane(Path(temporary).resolve() / stages[0], stages, options.kills, options.seed)), LANES
        )
        found = {stage: (seconds, kills) for results in lanes for stage, seconds, kills in results}
    results = {stage: found[stage] for stage in STAGES}
    minutes = (time.perf_counter() - begin) / 60
    kills = [kill for _, kills in results.values() for kill in kills]
    lost = [kill for kill in kills if kill.wrong]
    print(f"\n{table(results)}\n\n{len(kills) - len(lost)} of {len(kills)} survived; {minutes:.0f} minutes")
    write_json(
        RESULT,
        {
            "command": "OMP_WAIT_POLICY=passive python -m benchmarks.kills",
            "parameters": PARAMETERS,
            "seed": options.seed,
            "hardware": {"cpu": processor(), "cores": os.cpu_count(), "load_before": load},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("dvc", "torch")}},
            "minutes": minutes,
            "seconds_of_work": {stage: seconds for stage, (seconds, _) in results.items()},
            "kills": [asdict(kill) for kill in kills],
        },
    )
    if lost:
        sys.exit(f"error: {len(lost)} kills left something behind: see `wrong` in {RESULT}")


if __name__ == "__main__":
    main()
