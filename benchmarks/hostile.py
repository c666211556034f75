"""Whether hostile and broken input is ever a crash, a hang, a wrong result, or a file in the wrong place.

    OMP_WAIT_POLICY=passive python -m benchmarks.hostile

The tests try the corpus of tests/hostile.py and a few spoilt files of each kind; here it is `--inputs` of each, from
`--seed` on:

- images and archives of the corpus, each of which is known to be one or none;
- files of every kind that the stages and commands read, spoilt at random, read by those who read them;
- folders of images, archives and a table, sound and spoilt, for `prepare`, `predict` and `validate`: as commands, in
  this process, with everything below the working directory compared before and after.

"Handled": read, and what was read is checked as far as it can be known. "Refused": an InputError, which ends a command
with its message and exit status 1. "Failed": anything else, or `--seconds` without an end. Writes
benchmarks/results/hostile.json.
"""

import argparse
import contextlib
import hashlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

from stages import prepare
from stages.classifier.hardware import describe_hardware
from stages.commands import predict, validate
from stages.dataset.images import ImageProblem, ImageReader, decode_square, find_images
from stages.dataset.pixels import MANIFEST, PixelStore
from stages.dataset.taxonomy import DIAGNOSES
from stages.errors import InputError
from stages.files import MODELS, PREPARED, write_json
from stages.launch import run
from tests.hostile import (
    SIZE,
    TARGETS,
    altered_table,
    archives,
    attempt,
    damaged,
    encoded,
    halves,
    has_halves,
    images,
    lay_out,
    zipped,
)

RESULT = Path("benchmarks/results/hostile.json")
# A folder for so many of `--inputs`: each takes longer.
FOLDERS = {"prepare": 5, "predict": 5, "validate": 10}
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"


class Hung(BaseException):
    """An input took too long; no handler of other errors catches it."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `Hung` in a block that takes longer."""

    def end(*_: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def count(name: str, tries: Iterator[Callable[[], str | None]], seconds: int) -> dict:
    """One row: how many tries were handled, refused and failed.

    Args:
        name: of the kind of input.
        tries: each gives the message of a refusal, or None.
        seconds: the longest that one may take.
    """
    outcomes, slowest = Counter(), 0.0
    for number, one in enumerate(tries):
        start = time.perf_counter()
        try:
            with at_most(seconds), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome = "handled" if one() is None else "refused"
        except (Exception, Hung, SystemExit):
            outcome = "failed"
            print(f"{name}, input {number}:\n{traceback.format_exc()}", file=sys.stderr)
        slowest = max(slowest, time.perf_counter() - start)
        outcomes[outcome] += 1
    row = {"kind": name, "tried": outcomes.total(), **{key: outcomes[key] for key in ("handled", "refused", "failed")}}
    return row | {"slowest_seconds": slowest}


def corpus() -> Iterator[tuple[str, Iterator[Callable[[], str | None]]]]:
    """The images and archives that are known."""

    def image(example) -> str | None:
        try:
            pixels = decode_square(example.data, SIZE)
        except ImageProblem as problem:
            if example.readable:
                raise AssertionError(example.name) from problem
            return str(problem)
        assert example.readable == has_halves(pixels), example.name
        return None

    def archive(data: bytes) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "images.zip").write_bytes(data)
            files, problems = find_images(Path(folder))
            with ImageReader() as reader:
                for file in files.values():
                    try:
                        assert has_halves(decode_square(reader.read(file), SIZE))
                    except ImageProblem as problem:
                        problems.append(str(problem))
        return "\n".join(problems) or None

    yield "corpus: images", (lambda example=example: image(example) for example in images())
    yield "corpus: archives", (lambda data=data: archive(data) for _, data in archives())


def spoilt_folder(folder: Path, random: Random) -> None:
    """A dataset of a few images that are sound or not, loose or in an archive, with a table that is sound or not."""
    folder.mkdir()
    # Half of the folders hold only what can be used: their commands get further.
    sound, rate = random.random() < 0.5, random.choice((3, 10))
    examples = [example for example in images() if example.readable or not sound]
    diagnoses = random.choice((tuple(DIAGNOSES), ("nv",), ("mel", "nv")))
    rows, members = [], {}
    for number in range(random.choice((1, 2, 12, 40))):
        data = random.choice(examples).data if random.randrange(rate) == 0 else encoded(halves())
        data = damaged(data, random) if not sound and random.randrange(rate) == 0 else data
        name = f"I{number}{random.choice(('.jpg', '.png', '.PNG', '.jpeg'))}"
        if random.randrange(3):
            (folder / name).write_bytes(data)
        else:
            members[random.choice(("", "../", "/", "a/")) + name] = data
        rows.append(f"L{number},I{number},{random.choice(diagnoses)},histo,50,male,back,2018\n")
    table = (HEADER + "".join(rows)).encode()
    if not sound and random.randrange(2):
        table = random.choice((altered_table, damaged))(table, random)
    (folder / "table.csv").write_bytes(table)
    if members:
        archive = zipped(members)
        archive = damaged(archive, random) if not sound and random.randrange(rate) == 0 else archive
        (folder / "images.zip").write_bytes(archive)


def on_folder(command: str, sound: Path, random: Random) -> str | None:
    """Run a command on a spoilt folder, and look at what it wrote and left alone."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        data = Path("data") / "spoilt"
        data.parent.mkdir()
        spoilt_folder(data, random)
        shutil.copytree(sound / MODELS, MODELS)
        text = (sound / "params.yaml").read_text().replace("data_dir: data/sample", f"data_dir: {data}")
        text = text.replace("image_size: 64", f"image_size: {SIZE}").replace("replicates: 2000", "replicates: 100")
        Path("params.yaml").write_text(text)
        before = contents()
        calls = {
            "prepare": prepare.main,
            "predict": lambda: predict.main([str(data), "--output", "out.csv", "--gradcam", "maps", "--threads", "2"]),
            "validate": lambda: validate.main([str(data), "--output", "out"]),
        }
        message = None
        try:
            calls[command]()
        except InputError as refusal:
            message = str(refusal)
        after = contents()
        assert before.items() <= after.items(), "a file was changed"
        allowed = {"prepare": ("data/prepared/",), "predict": ("out.csv", "maps/"), "validate": ("out/",)}[command]
        new = after.keys() - before.keys()
        assert all(name.startswith(allowed) for name in new), f"written elsewhere: {new}"
        if message is None and command == "prepare":
            check_labels(data)
        elif message is not None and command != "predict":  # which predicts what it can
            assert not new, f"left behind: {new}"
        return message


def contents() -> dict[str, str]:
    """The digest of every file below the working directory."""
    return {
        path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in Path().rglob("*") if path.is_file()
    }


def check_labels(data: Path) -> None:
    """Every row that was prepared has the label and the pixels of its image."""
    store = PixelStore(PREPARED)
    written = pd.read_csv(PREPARED / MANIFEST, dtype=str)
    files, _ = find_images(data)
    with ImageReader() as reader:
        for number, image_id in enumerate(written["image_id"]):
            assert np.array_equal(store.read(np.array([number]))[0], decode_square(reader.read(files[image_id]), SIZE))


def markdown(rows: list[dict]) -> str:
    """The rows as a table, with their sum."""
    keys = ("tried", "handled", "refused", "failed")
    total = {"kind": "**all**", **{key: sum(row[key] for row in rows) for key in keys}}
    total["slowest_seconds"] = max(row["slowest_seconds"] for row in rows)
    lines = ["| input | tried | handled | refused clearly | failed | slowest, s |", "| --- |" + " ---: |" * 5]
    for row in [*rows, total]:
        cells = [f"{row[key]:,}" for key in keys]
        lines.append(f"| {row['kind']} | {' | '.join(cells)} | {row['slowest_seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Give hostile and broken input to everything that reads some.")
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind; a fifth or tenth as many folders")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--seconds", type=int, default=60, help="the longest that one may take")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    output = args.output.absolute()

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        sound = Path(scratch) / "sound"
        lay_out(sound)
        rows = [count(name, tries, args.seconds) for name, tries in corpus()]
        seeds = range(args.seed, args.seed + args.inputs)
        for name, target in TARGETS.items():
            rows.append(
                count(
                    name,
                    (lambda seed=seed, target=target: attempt(target, sound, Random(seed)) for seed in seeds),
                    args.seconds,
                )
            )
            print(rows[-1], file=sys.stderr, flush=True)
        for command, some in FOLDERS.items():
            tries = (
                lambda seed=seed, command=command: on_folder(command, sound, Random(seed)) for seed in seeds[::some]
            )
            rows.append(count(f"`{command}` on a folder", tries, args.seconds))
            print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nmost memory at any time: {peak:,.0f} MiB")
    about = {"hardware": describe_hardware(), "inputs": args.inputs, "seed": args.seed, "peak_mib": peak}
    write_json(output, about | {"rows": rows})
    if failed := sum(row["failed"] for row in rows):
        sys.exit(f"{failed} inputs failed")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    run(main)
