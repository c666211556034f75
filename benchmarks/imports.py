"""What each stage waits for before it begins: the seconds of its imports, and the packages that take most of them.

    python -m benchmarks.imports

Each round starts `python -X importtime -c "import stages.NAME"` for each stage in turn, and of the rounds the median
counts. The first round, which reads packages from the disk, is left out. A package's seconds are those that its modules
take themselves, without what they import. Writes benchmarks/results/imports.json.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from stages.files import write_json
from stages.launch import run

RESULT = Path("benchmarks/results/imports.json")
STAGES = ("prepare", "split", "train", "evaluate", "plot", "publish")
LATER = {"train": ", stages.training.fit"}  # what a stage imports once it has seen to other processes
LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
SHOWN = 6  # packages


def measure(stage: str) -> tuple[float, Counter[str]]:
    """The seconds of a process that imports a stage, and the microseconds of each package."""
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-c", f"import stages.{stage}{LATER.get(stage, '')}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    seconds, packages = time.perf_counter() - start, Counter()
    for microseconds, module in LINE.findall(done.stderr):
        packages[module.partition(".")[0]] += int(microseconds)
    return seconds, packages


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the imports of each stage.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rounds = [[measure(stage) for stage in STAGES] for _ in range(1 + args.rounds)][1:]
    rows = {}
    for number, stage in enumerate(STAGES):
        measured = [each[number] for each in rounds]
        names = set().union(*(packages for _, packages in measured))
        packages = {name: statistics.median(each[name] for _, each in measured) / 1e6 for name in names}
        most = dict(sorted(packages.items(), key=lambda item: -item[1])[:SHOWN])
        rows[stage] = {"seconds": statistics.median(seconds for seconds, _ in measured), "packages": most}
        dearest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in most.items())
        print(f"| {stage} | {rows[stage]['seconds']:.2f} | {dearest} |")
    write_json(args.output, {"rows": rows, "rounds": args.rounds})


if __name__ == "__main__":
    run(main)
