"""What every stage does on a disk that is full.

    OMP_WAIT_POLICY=passive python -m benchmarks.full_disk

A fresh clone on a file system of its own in memory, which only root can mount. For each of the five stages, the disk
is filled until there is space for a tenth, a half and nine tenths of what the stage writes; `dvc repro` must then fail
with a line that says so, without a traceback, and leave no file half-written. When there is space, `dvc repro` must
give all files that it gives on an empty disk, to the byte.

Writes benchmarks/results/full_disk.json.
"""

import argparse
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.kills import LOCK_FILE, PARAMETERS, STAGES, contents, finish, forget, start
from benchmarks.sweep import clone, set_parameters
from stages.classifier.hardware import processor
from stages.files import write_json

RESULT = Path("benchmarks/results/full_disk.json")
SIZE = 2**27  # bytes of the file system
PAGE = 4096
SHARES = (0.1, 0.5, 0.9)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of `SIZE` bytes at a folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"error: this needs a file system of its own, which could not be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


def outputs(folder: Path, stage: str) -> list[Path]:
    """The outputs of a stage that has run."""
    lock = YAML(typ="safe").load(folder / LOCK_FILE)
    return [folder / output["path"] for output in lock["stages"][stage]["outs"]]


def pages(path: Path) -> int:
    """How much of the file system a file, or all files of a folder, take."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(math.ceil(file.stat().st_size / PAGE) for file in files if file.is_file())


def try_stage(folder: Path, stage: str, share: float, expected: dict[str, str]) -> dict:
    """Run a stage where there is space for a share of its outputs, then where there is enough; what was seen."""
    written = outputs(folder, stage)
    left = int(share * sum(pages(path) for path in written))
    forget(folder, stage)
    for path in written:  # as DVC will do, which makes space
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for _ in range(shutil.disk_usage(folder).free // PAGE - left):
            file.write(bytes(PAGE))
    status = start(folder, "repro", stage).wait()
    printed = (folder.parent / f"{folder.name}.log").read_text(encoding="utf-8")
    said = [line for line in printed.splitlines() if re.match("(?i)error: .*(disk is full|No space left)", line)]
    partial = [path.relative_to(folder).as_posix() for path in folder.rglob("*.partial")]
    filler.unlink()
    finish(folder, "repro", stage)
    found = contents(folder)
    return {
        "stage": stage,
        "share": share,
        "space": left * PAGE,
        "status": status,
        "said": said[0].replace(str(folder), ".") if said else None,
        "traceback": "Traceback" in printed,
        "partial": partial,
        "wrong": sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)),
    }


def main() -> None:
    argparse.ArgumentParser(description="Run each stage on a disk that is full.").parse_args()
    tries = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "clone"
        folder.mkdir()
        with small_disk(folder):
            set_parameters(clone(folder), PARAMETERS)
            finish(folder, "repro")
            expected = contents(folder)
            for stage in STAGES:
                for share in SHARES:
                    tries.append(try_stage(folder, stage, share, expected))
                    print(tries[-1], flush=True)
    good = [
        bool(one["status"] and one["said"]) and not (one["traceback"] or one["partial"] or one["wrong"])
        for one in tries
    ]
    print(f"\n{sum(good)} of {len(good)} failed as they should, and were made good")
    write_json(
        RESULT,
        {
            "command": "OMP_WAIT_POLICY=passive python -m benchmarks.full_disk",
            "parameters": PARAMETERS,
            "hardware": {"cpu": processor(), "cores": os.cpu_count()},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("dvc", "torch")}},
            "tries": tries,
        },
    )
    if not all(good):
        sys.exit(f"error: see `tries` in {RESULT}")


if __name__ == "__main__":
    main()
