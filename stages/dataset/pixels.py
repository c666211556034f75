"""The pixel store: every prepared image as uint8 in shards that DVC stores and a loader reads from."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from stages.checks import Flag
from stages.dataset.taxonomy import Diagnosis, Taxonomy
from stages.errors import printable, regenerate
from stages.files import read_csv, read_json, write_csv, write_json

# A fixed number of images in the table's order: images added at its end change only the last shards.
# 256 images of 224 px are 38 MB: few enough files for DVC, small enough pieces to push again.
IMAGES_PER_SHARD = 256
_PIECE = 1 << 17  # bytes
MANIFEST = "manifest.csv"
TAXONOMY = "taxonomy.json"
SOURCES = "sources.json"  # where the images are of several datasets
MANIFEST_COLUMNS = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset", "shard", "row"]
SKIN_TYPE = "skin_type"  # a further column, where that of an image is known
MEASURES = ["width", "height", "bytes"]  # further columns where there are several datasets: of the images' files


def are_synthetic(image_ids: pd.Series) -> bool:
    """Whether all images were drawn by data/generate_sample.py, by their ids: a folder may have any name."""
    return bool(image_ids.str.startswith("SYN_").all())


def shard_path(folder: Path, shard: int) -> Path:
    """Where shard number `shard` lies in a prepared folder."""
    return folder / f"pixels-{shard:05d}.npy"


def add_places(table: pd.DataFrame) -> pd.DataFrame:
    """The manifest of a metadata table: its rows with the shard, and the row in it, of each image."""
    position = np.arange(len(table))
    table = table.assign(shard=position // IMAGES_PER_SHARD, row=position % IMAGES_PER_SHARD)
    return table.loc[:, [*MANIFEST_COLUMNS, *([SKIN_TYPE] if SKIN_TYPE in table else [])]]


def write_manifest(
    folder: Path,
    manifest: pd.DataFrame,
    taxonomy: Mapping[str, Diagnosis],
    sources: Mapping[str, Mapping[str, bool]] | None = None,
) -> None:
    """Write the manifest of a prepared folder, the diagnoses that it names and, if there are several, its datasets."""
    write_csv(folder / MANIFEST, manifest)
    write_json(folder / TAXONOMY, {code: asdict(diagnosis) for code, diagnosis in taxonomy.items()})
    if sources:
        write_json(folder / SOURCES, sources)


def create_shard(path: Path, count: int, size: int) -> None:
    """Make the .npy file of a shard for `count` images of `size` pixels a side, which `write_pixels` writes."""
    np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))


def write_pixels(path: Path, first: int, pixels: np.ndarray) -> None:
    """Write images, uint8, shape (n, size, size, 3), into the rows of a shard from `first` on."""
    content = pixels.reshape(-1).data
    # Not through a map of its pages, which ends the process where the disk is full. In pieces: Linux took 2 to 3 times
    # as much CPU for 16 MB in one call.
    with path.open("r+b") as file:
        file.seek(np.load(path, mmap_mode="r").offset + first * pixels[0].nbytes)
        for start in range(0, len(content), _PIECE):
            file.write(content[start : start + _PIECE])


class PixelStore:
    """The prepared images of a folder: pixels are read when they are asked for.

    Read, not mapped into memory: pages of a map count as the process's memory until the system needs them, and then
    nobody can tell whether training on a large dataset stays within its own.

    Attributes:
        manifest: one row per image, columns `MANIFEST_COLUMNS`; `SKIN_TYPE` where one is known, and `MEASURES` where
            there are several datasets.
        taxonomy: the diagnoses that dx may name, by their codes.
        image_size: pixels of a side.
        sources: by the names of several datasets, which are those in the column dataset, whether each is
            `train_only`; empty where there is one.

    Raises:
        InputError: the folder does not hold what `prepare` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = read_csv(folder / MANIFEST, MANIFEST_COLUMNS)
        self.taxonomy = read_json(folder / TAXONOMY, Taxonomy)
        sources = folder / SOURCES
        self.sources = read_json(sources, dict[str, dict[Literal["train_only"], Flag]]) if sources.exists() else {}
        self._check_manifest(folder / MANIFEST)
        self.image_size = 0  # until the first shard tells
        self._shards = [
            (shard_path(folder, shard), self._check(shard_path(folder, shard), len(rows)))
            for shard, (_, rows) in enumerate(self.manifest.groupby("shard"))
        ]

    def _check_manifest(self, path: Path) -> None:
        table = self.manifest
        if table.empty:
            raise regenerate(f"{path} lists no images")
        places = add_places(table)
        problems = {
            "an image has no image_id or lesion_id": table[["image_id", "lesion_id"]].isna().to_numpy().any(),
            "an image_id is duplicated": len(set(table["image_id"])) < len(table),
            f"dx is not always one of {', '.join(self.taxonomy)}": not set(table["dx"]) <= set(self.taxonomy),
            "age is not always a number": not pd.api.types.is_numeric_dtype(table["age"]),
            "a text is empty": table[["dx_type", "sex", "localization", "dataset"]].isna().to_numpy().any(),
            "dataset is not always one of sources.json": bool(self.sources)
            and not set(table["dataset"]) <= set(self.sources),
            # Reading goes by the position, as `add_places` counts it.
            "shard and row do not count the images": not table[list(places)].equals(places),
        }
        if found := [problem for problem, there in problems.items() if there]:
            raise regenerate(f"{path}: {'; '.join(found)}")

    def _check(self, path: Path, count: int) -> int:
        """Where the pixels start in a shard, in bytes."""
        try:
            pixels = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # a header is parsed as Python, and fails with whatever Python has for it
            raise regenerate(f"{path} cannot be read ({printable(error)})") from None
        if not self.image_size and pixels.ndim == 4:
            self.image_size = pixels.shape[1]
        shape = (count, self.image_size, self.image_size, 3)
        if pixels.dtype != np.uint8 or pixels.shape != shape or not pixels.flags.c_contiguous:
            raise regenerate(
                f"{path} holds {pixels.dtype} {pixels.shape}, not {count} square RGB images, one after the other, of "
                "the size of those in the other shards"
            )
        return pixels.offset

    def indices_of(self, image_ids: pd.Series) -> np.ndarray:
        """The rows of the manifest where these images stand, shape (n,); every id must be one of the store."""
        return pd.Index(self.manifest["image_id"]).get_indexer_for(pd.Index(image_ids))

    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The images at rows `indices` of the manifest.

        Args:
            indices: shape (n,).
            out: where to write them; None: into a new array.

        Returns:
            uint8, shape (n, image_size, image_size, 3), RGB.
        """
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8) if out is None else out
        shards, rows = np.divmod(indices, IMAGES_PER_SHARD)
        for shard in np.unique(shards):
            path, start = self._shards[shard]
            with path.open("rb", buffering=0) as file:
                for place in np.flatnonzero(shards == shard):
                    file.seek(start + int(rows[place]) * pixels[place].nbytes)
                    if file.readinto(pixels[place]) != pixels[place].nbytes:
                        raise regenerate(f"{path} was cut short while it was read")
        return pixels
