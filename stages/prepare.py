"""Prepare: check the dataset, decode its images once, and store them as the pixels that training reads.

Reads `data.data_dir`, writes `data/prepared/`.
"""

import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from stages.config import DataConfig, load_config
from stages.dataset.images import (
    MOST_NAMED,
    ImageFile,
    ImageProblem,
    ImageReader,
    by_image_id,
    decode_square,
    describe_passed_over,
    find_images,
)
from stages.dataset.metadata import read_metadata, subsample_lesions
from stages.dataset.pixels import add_places, shard_path, write_manifest, write_shard
from stages.dataset.taxonomy import Diagnosis, classes_of, read_taxonomy
from stages.errors import InputError, Problem, printable
from stages.files import PREPARED, replacing
from stages.launch import run_stage

MAX_PROBLEMS_SHOWN = 200
MAX_KINDS_SHOWN = 20
LONGEST_PROBLEM = 1000  # characters: a cell of a table may have 100,000


def prepare_dataset(
    config: DataConfig,
    output: Path = PREPARED,
    num_workers: int | None = None,
    taxonomy: dict[str, Diagnosis] | None = None,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Check and decode the dataset in `config.data_dir`; write the manifest and the pixel shards to `output`.

    Args:
        config: which images, and their size.
        output: folder of the prepared images.
        num_workers: threads that decode; None: one per core.
        taxonomy: the diagnoses to keep; what else there is is left out. None: those of `config.taxonomy`, all images.
        say: is given what the user should know, line by line.

    Returns:
        The manifest.

    Raises:
        InputError: naming every problem of the table and the images; `output` is then as it was before.
    """
    data_dir = Path(config.data_dir)
    only_known, diagnoses = taxonomy is not None, taxonomy or read_taxonomy(Path(config.taxonomy))
    table, problems, notes = read_metadata(data_dir, diagnoses, config.columns, config.classes, only_known=only_known)
    images, unreadable, passed_over = find_images(data_dir)
    files, repeated = by_image_id(images)
    for note in notes + describe_passed_over(passed_over) + _unused(files, table["image_id"]):
        say(note)
    table = subsample_lesions(table, config.subsample_percentage)
    problems += [Problem(line, "a folder or an archive that cannot be read") for line in unreadable]
    problems += [Problem(line, "the same image id twice") for line in repeated]
    problems += [
        Problem(f"{image_id}: no image file of this name", "no image file of this name")
        for image_id in table["image_id"]
        if image_id not in files
    ]
    manifest = add_places(table.loc[table["image_id"].isin(list(files))])

    with replacing(output) as folder:
        folder.mkdir()
        problems += _write_shards(folder, manifest, files, config.image_size, num_workers)
        if problems:
            raise InputError(_summary(data_dir, problems))
        write_manifest(folder, manifest, diagnoses)
    return manifest


def _unused(files: dict[str, ImageFile], used: pd.Series) -> list[str]:
    """A line on images that no row uses; none if there are none."""
    unused = sorted(files.keys() - set(used))
    first = ", ".join(map(printable, unused[:MOST_NAMED])) + (", …" if len(unused) > MOST_NAMED else "")
    return [f"{len(unused)} of {len(files)} image files are of no row that is used: {first}"] if unused else []


def _write_shards(
    folder: Path, manifest: pd.DataFrame, files: dict[str, ImageFile], size: int, num_workers: int | None
) -> list[Problem]:
    problems = []
    # Threads, not processes: Pillow releases the interpreter's lock while it decodes and resizes.
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool, ImageReader() as reader, Progress() as progress:
        task = progress.add_task("decoding", total=len(manifest))

        def decode(image_id: str, out: np.ndarray) -> Problem | None:
            try:
                out[:] = decode_square(reader.read(files[image_id]), size)
            except ImageProblem as problem:
                return Problem(f"{files[image_id]}: {problem}", "an image that cannot be used")
            return None

        def finish(shard: int, pixels: np.ndarray, decoded: list[Future]) -> None:
            for image in decoded:
                if problem := image.result():
                    problems.append(problem)
                progress.advance(task)
            write_shard(shard_path(folder, shard), pixels)

        # The next shard is being decoded while one is written: on many cores, writing takes as long as decoding.
        started: deque[tuple[int, np.ndarray, list[Future]]] = deque()
        for shard, (_, rows) in enumerate(manifest.groupby("shard")):
            pixels = np.empty((len(rows), size, size, 3), np.uint8)
            decoded = [pool.submit(decode, image_id, out) for image_id, out in zip(rows["image_id"], pixels)]
            started.append((shard, pixels, decoded))
            if len(started) > 1:
                finish(*started.popleft())
        while started:
            finish(*started.popleft())
    return problems


def _summary(data_dir: Path, problems: list[Problem]) -> str:
    lines = [
        problem if len(problem) <= LONGEST_PROBLEM else f"{problem[:LONGEST_PROBLEM]}…"
        for problem in map(printable, problems[:MAX_PROBLEMS_SHOWN])
    ]
    if len(problems) > len(lines):
        kinds = Counter(problem.kind for problem in problems)
        counts = "; ".join(f"{count} × {printable(kind)}" for kind, count in kinds.most_common(MAX_KINDS_SHOWN))
        lines.append(f"… and {len(problems) - len(lines)} more; in all {counts}")
    return f"{data_dir} has {len(problems)} problem{'s' * (len(problems) != 1)}:\n  " + "\n  ".join(lines)


def main() -> None:
    config = load_config()
    # Before the images are decoded, though only `train` needs it.
    classes_of(read_taxonomy(Path(config.data.taxonomy)), config.model.num_classes)
    manifest = prepare_dataset(config.data, num_workers=config.runtime.num_workers)
    print(f"prepared {len(manifest)} images of {manifest['lesion_id'].nunique()} lesions")


if __name__ == "__main__":
    run_stage(main, __doc__)
