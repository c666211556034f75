"""How fast `prepare` is beside bare decoding, and how its cost grows with the data.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --data-dir data/ham10000 --images 2000 --image-size 224

Of 1, 4 and 16 times the data, in one run on this machine:

- one process: a plain loop over JPEG files that are in memory already, with `prepare`'s calls of Pillow and nothing
  else: open, draft, convert, resize; the pixels are dropped;
- all processes: the same loop in as many processes as the machine has cores, each with its share of the files;
- prepare: `stages.prepare.prepare_dataset` as the stage runs it. It reads the metadata, finds and reads the files,
  checks and turns them, and writes the pixel shards and the manifest.

The data are images of `--data-dir`, repeated under other ids of images and lesions, in zip archives as HAM10000 is
published, one for each repetition. Each measurement has a process of its own, for its peak memory to be its own; what
starting Python and importing packages takes is not part of the seconds. Kinds take turns within a round: other work on
the machine slows all of them. It hardly changes the seconds of CPU time, of all processes together, whose ratio is
given too. Writes benchmarks/results/prepare.json.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.plain import HAM10000, PLAIN
from stages.dataset.images import ImageReader, by_image_id, find_images
from stages.dataset.metadata import read_metadata
from stages.errors import InputError
from stages.files import write_json
from stages.launch import run
from stages.prepare import prepare_dataset

RESULT = Path("benchmarks/results/prepare.json")
TIMES = (1, 4, 16)
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]


def read_images(data_dir: Path, most: int | None) -> tuple[pd.DataFrame, list[bytes]]:
    """The metadata of images of a dataset, evenly spread over its table, and their JPEG files.

    Raises:
        InputError: the dataset has problems, which `python -m stages.prepare` names.
    """
    table, problems, _ = read_metadata(data_dir, HAM10000)
    images, unreadable, _ = find_images(data_dir)
    files, repeated = by_image_id(images)
    table = table[table["image_id"].isin(files)]
    if problems or unreadable or repeated or table.empty:
        raise InputError(f"{data_dir} has no images, or mistakes: `python -m stages.prepare` names them")
    table = table.iloc[np.linspace(0, len(table) - 1, min(most or len(table), len(table))).astype(int)]
    with ImageReader() as reader:
        return table, [reader.read(files[image_id]) for image_id in table["image_id"]]


def write_repeated(folder: Path, table: pd.DataFrame, files: list[bytes], times: int) -> None:
    """Write a dataset that holds the images `times` times, under other ids of images and lesions."""
    folder.mkdir()
    repeated = []
    for number in range(times):
        mark = f"r{number:02d}-"
        repeated.append(table.assign(image_id=mark + table["image_id"], lesion_id=mark + table["lesion_id"]))
        with zipfile.ZipFile(
            folder / f"images_{number:02d}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive:
            for image_id, data in zip(repeated[-1]["image_id"], files):
                archive.writestr(f"{image_id}.jpg", data)
    pd.concat(repeated)[COLUMNS].to_csv(folder / "HAM10000_metadata.csv", index=False)


def decode_bare(files: list[bytes], times: int, size: int, processes: int) -> None:
    """Decode all files `times` times in so many processes."""

    def loop(own: list[bytes]) -> None:
        for data in own:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (size, size))
                np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))

    files, fork = files * times, multiprocessing.get_context("fork")
    others = [fork.Process(target=loop, args=(files[start::processes],)) for start in range(1, processes)]
    for process in others:
        process.start()
    loop(files[::processes])
    for process in others:
        process.join()


def measure(kind: str, data_dir: Path, base: Path, times: int, size: int) -> dict[str, float]:
    """Seconds and peak memory of one kind, to be called in a process of its own.

    Args:
        kind: "one process", "all processes" or "prepare".
        data_dir: the repeated dataset, which `prepare` reads.
        base: folder of the unrepeated files, which bare decoding reads before its time is taken.
        times: how often they are repeated.
        size: pixels of a side of the results.

    Returns:
        seconds, cpu_seconds of all processes together, and peak_mib, the most memory that one of them had until then.
    """
    if kind == "prepare":
        with tempfile.TemporaryDirectory(dir=data_dir.parent) as output:
            start, cpu_start = time.perf_counter(), _cpu_seconds()
            prepare_dataset(replace(PLAIN.data, data_dir=str(data_dir), image_size=size), Path(output) / "prepared")
            seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
    else:
        files = [path.read_bytes() for path in sorted(base.iterdir())]
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        decode_bare(files, times, size, 1 if kind == "one process" else os.cpu_count() or 1)
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": _peak_mib()}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # with those of processes that have ended


def _peak_mib() -> float:
    # Not by getrusage, which counts what the process had before it became this program.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def compare(table: pd.DataFrame, files: list[bytes], size: int, rounds: int, scratch: Path) -> list[dict]:
    """One row for each of `TIMES`: medians over the rounds, ratios of neighbours in time."""
    base = scratch / "base"
    base.mkdir()
    for number, data in enumerate(files):
        (base / f"{number:06d}.jpg").write_bytes(data)
    results = []
    spawn = multiprocessing.get_context("spawn")
    for times in TIMES:
        data_dir = scratch / f"times-{times}"
        write_repeated(data_dir, table, files, times)
        found: dict[str, list[dict]] = {"one process": [], "all processes": [], "prepare": []}
        for _ in range(rounds):
            for kind, measured in found.items():
                with ProcessPoolExecutor(1, spawn) as process:  # one that may start others
                    measured.append(process.submit(measure, kind, data_dir, base, times, size).result())
        seconds = {kind: np.array([each["seconds"] for each in measured]) for kind, measured in found.items()}
        cpu = {kind: np.array([each["cpu_seconds"] for each in measured]) for kind, measured in found.items()}
        count = len(files) * times
        results.append(
            {
                "times": times,
                "images": count,
                "prepare_over_all_processes": statistics.median(seconds["all processes"] / seconds["prepare"]),
                "prepare_over_all_processes_cpu": statistics.median(cpu["all processes"] / cpu["prepare"]),
                **{
                    kind.replace(" ", "_"): {
                        "images_per_second": count / statistics.median(taken),
                        "seconds": statistics.median(taken),
                        "seconds_of_rounds": taken.tolist(),
                        "cpu_seconds_of_rounds": cpu[kind].tolist(),
                        "peak_mib": max(each["peak_mib"] for each in found[kind]),
                    }
                    for kind, taken in seconds.items()
                },
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def markdown(results: list[dict]) -> str:
    """The results as a table."""
    lines = [
        "| data | images | bare, one process, images/s | bare, all processes, images/s | `prepare`, images/s "
        "| `prepare` / bare, all processes | of CPU time | `prepare`, s | its peak memory, MiB |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for row in results:
        speeds = [f"{row[kind]['images_per_second']:,.0f}" for kind in ("one_process", "all_processes", "prepare")]
        ratios = [f"{row[f'prepare_over_all_processes{kind}']:.2f}" for kind in ("", "_cpu")]
        cells, prepare = [f"{row['times']}×", f"{row['images']:,}", *speeds, *ratios], row["prepare"]
        lines.append("| " + " | ".join([*cells, f"{prepare['seconds']:.1f}", f"{prepare['peak_mib']:,.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure `prepare` beside bare decoding of JPEG files.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/sample"), help="a dataset in HAM10000's layout")
    parser.add_argument("--images", type=int, help="of the dataset, evenly spread; default: all")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scratch", type=Path, help="folder for 16 times the data and their pixels; default: the system's"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    table, files = read_images(args.data_dir, args.images)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        results = compare(table, files, args.image_size, args.rounds, Path(scratch))
    print(markdown(results))

    from stages.classifier.hardware import describe_hardware  # torch: not in the processes that are measured

    image = Image.open(io.BytesIO(files[0]))
    about = {"hardware": describe_hardware(), "rows": results, "rounds": args.rounds}
    write_json(args.output, about | {"image_size": args.image_size, "source_pixels": list(image.size)})


if __name__ == "__main__":
    run(main)
