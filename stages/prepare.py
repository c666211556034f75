"""Prepare: check the dataset, decode its images once, and store them as the pixels that training reads.

Reads `data.data_dir`, writes `data/prepared/`.
"""

import os
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from stages.config import DataConfig, load_config
from stages.dataset.images import (
    ImageFile,
    ImageProblem,
    ImageReader,
    by_image_id,
    decode_square,
    describe_passed_over,
    find_images,
    measure,
    name_first,
)
from stages.dataset.metadata import UNKNOWN, read_metadata, subsample_lesions
from stages.dataset.pixels import (
    MEASURES,
    SKIN_TYPE,
    add_places,
    create_shard,
    shard_path,
    write_manifest,
    write_pixels,
)
from stages.dataset.sources import SETTINGS, find_datasets, read_settings, tell_apart
from stages.dataset.taxonomy import Diagnosis, classes_of, read_taxonomy
from stages.errors import InputError, Problem, printable
from stages.files import PREPARED, replacing
from stages.forks import forked_processes
from stages.launch import run_stage
from stages.progress import progress_bar

DECODED_AT_ONCE = 16  # images
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
        num_workers: processes that decode; None: one per core.
        taxonomy: the diagnoses to keep; what else there is is left out. None: those of `config.taxonomy`, all images.
        say: is given what the user should know, line by line.

    Returns:
        The manifest.

    Raises:
        InputError: naming every problem of the table and the images; `output` is then as it was before.
    """
    data_dir = Path(config.data_dir)
    only_known, diagnoses = taxonomy is not None, taxonomy or read_taxonomy(Path(config.taxonomy))
    table, files, problems, sources = _read_datasets(config, diagnoses, only_known, say)
    table = subsample_lesions(table, config.subsample_percentage)
    is_there, missing = table["image_id"].isin(list(files)), "no image file of this name"
    problems += [Problem(f"{image_id}: {missing}", missing) for image_id in table.loc[~is_there, "image_id"]]
    manifest = add_places(table[is_there])

    with replacing(output) as folder:
        folder.mkdir()
        measured, found = _write_shards(folder, manifest, files, config, num_workers)
        if problems := problems + found:
            raise InputError(_summary(data_dir, problems))
        if sources:
            manifest = manifest.join(pd.DataFrame(measured, manifest.index, MEASURES))
        write_manifest(folder, manifest, diagnoses, sources)
    return manifest


def _read_datasets(
    config: DataConfig, diagnoses: dict[str, Diagnosis], only_known: bool, say: Callable[[str], None]
) -> tuple[pd.DataFrame, dict[str, ImageFile], list[Problem], dict[str, dict[str, bool]]]:
    """The rows of one dataset or of several, the images by their ids, a line for each problem, and the sources."""
    data_dir = Path(config.data_dir)
    folders = find_datasets(data_dir)
    tables, images, problems, sources = {}, {}, [], {}
    for folder in folders:
        name, settings = folder.name, read_settings(folder)
        of = f"{name}: " if folder != data_dir else ""
        try:
            columns, classes = config.columns | settings.columns, config.classes | settings.classes
            table, more, notes = read_metadata(folder, diagnoses, columns, classes, only_known=only_known)
        except InputError as error:
            own = f" with {SETTINGS} as data.columns and data.classes" if settings.columns or settings.classes else ""
            raise InputError(f"{folder}{own}: {error}" if of or own else str(error)) from None
        found, unreadable, passed_over = find_images(folder)
        files, repeated = by_image_id(found)
        passed_over = [file for file in passed_over if Path(file) != folder / SETTINGS]
        notes += describe_passed_over(passed_over)
        if unused := sorted(files.keys() - set(table["image_id"])):
            notes.append(f"{len(unused)} of {len(files)} image files are of no row that is used: {name_first(unused)}")
        for note in notes:
            say(f"{of}{note}")
        more += [Problem(line, "a folder or an archive that cannot be read") for line in unreadable]
        more += [Problem(line, "the same image id twice") for line in repeated]
        problems += [Problem(f"{of}{problem}", problem.kind) for problem in more]
        tables[name], images[name], sources[name] = table, files, {"train_only": settings.train_only}
    if all(source["train_only"] for source in sources.values()):
        said = f"train_only is true, but no other dataset in {data_dir} is to be validated and tested on"
        raise InputError(f"{folders[0] / SETTINGS}: {said}")
    if folders == [data_dir]:
        return table, files, problems, {}
    told = tell_apart(data_dir, tables)
    files = {
        new: images[name][old]
        for name, table in tables.items()
        for old, new in zip(table["image_id"], told[name]["image_id"])
        if old in images[name]
    }
    table = pd.concat(told.values(), ignore_index=True)
    if SKIN_TYPE in table:
        table[SKIN_TYPE] = table[SKIN_TYPE].fillna(UNKNOWN)
    return table, files, problems, sources


def _write_shards(
    folder: Path, manifest: pd.DataFrame, files: dict[str, ImageFile], config: DataConfig, num_workers: int | None
) -> tuple[list[tuple[int, int, int]], list[Problem]]:
    """Decode all images into shards; what `measure` says of each file, and what is wrong with them, a line each."""
    tasks = []
    for shard, (_, rows) in enumerate(manifest.groupby("shard")):
        path, images = shard_path(folder, shard), [files[image_id] for image_id in rows["image_id"]]
        create_shard(path, len(images), config.image_size)
        firsts = range(0, len(images), DECODED_AT_ONCE)
        tasks += [(path, first, images[first : first + DECODED_AT_ONCE], config) for first in firsts]
    measured, problems, left = [], [], iter(tasks)
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(tasks)))
    killed = "a process that decodes images was killed, perhaps for want of memory; set runtime.num_workers to fewer"
    with (
        ImageReader(files.values()) as reader,
        forked_processes(workers, _start, reader, os.getpid(), killed=killed) as pool,
    ):
        # Few at a time: who interrupts this waits for those that have started. The first before the progress bar, which
        # is a thread.
        started = deque(pool.submit(_decode, *task) for task in islice(left, 4 * workers))
        with progress_bar() as progress:
            bar = progress.add_task("decoding", total=len(tasks))
            while started:
                of_files, found = started.popleft().result()
                measured += of_files
                problems += found
                started.extend(pool.submit(_decode, *task) for task in islice(left, 1))
                progress.advance(bar)
    return measured, problems


_reader: ImageReader  # of a process, or of its threads


def _start(reader: ImageReader, parent: int) -> None:
    global _reader
    _reader = reader
    if os.getpid() != parent:
        reader.reopen()


def _decode(
    shard: Path, first: int, files: list[ImageFile], config: DataConfig
) -> tuple[list[tuple[int, int, int]], list[Problem]]:
    """Decode images into the rows of a shard from the first on; as `_write_shards`."""
    size = config.image_size
    measured, pixels, problems = [], np.empty((len(files), size, size, 3), np.uint8), []
    for file, out in zip(files, pixels):
        try:
            data = _reader.read(file)
            out[:] = decode_square(data, size, config.detail)
            measured.append(measure(data))
        except ImageProblem as problem:
            problems.append(Problem(f"{file}: {problem}", "an image that cannot be used"))
    write_pixels(shard, first, pixels)
    return measured, problems


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
