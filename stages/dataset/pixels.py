"""The pixel store: every prepared image as uint8 in shards that DVC stores and a loader maps into memory."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.errors import InputError
from stages.files import read_csv

# A fixed number of images in the table's order: images added at its end change only the last shards.
# 256 images of 224 px are 38 MB: few enough files for DVC, small enough pieces to push again.
IMAGES_PER_SHARD = 256
MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset", "shard", "row"]


def shard_path(folder: Path, shard: int) -> Path:
    """Where shard number `shard` lies in a prepared folder."""
    return folder / f"pixels-{shard:05d}.npy"


def add_places(table: pd.DataFrame) -> pd.DataFrame:
    """The manifest of a metadata table: its rows with the shard, and the row in it, of each image."""
    position = np.arange(len(table))
    table = table.assign(shard=position // IMAGES_PER_SHARD, row=position % IMAGES_PER_SHARD)
    return table[MANIFEST_COLUMNS]


class PixelStore:
    """The prepared images of a folder, mapped into memory: nothing is read before it is asked for.

    Attributes:
        manifest: one row an image, columns `MANIFEST_COLUMNS`.
        image_size: pixels of a side.

    Raises:
        InputError: the folder does not hold what `prepare` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = read_csv(folder / MANIFEST, MANIFEST_COLUMNS)
        if self.manifest.empty:
            raise InputError(f"{folder / MANIFEST} lists no images; `dvc repro` makes it again")
        self._shards: list[np.ndarray] = []
        for shard, rows in self.manifest.groupby("shard"):
            self._shards.append(self._open(shard_path(folder, shard), len(rows)))
        self.image_size = self._shards[0].shape[1]

    def _open(self, path: Path, count: int) -> np.ndarray:
        try:
            pixels = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); `dvc repro` makes it again") from None
        side = (self._shards or [pixels])[0].shape[1:2]
        if pixels.dtype != np.uint8 or pixels.shape != (count, *side, *side, 3):
            raise InputError(
                f"{path} holds {pixels.dtype} {pixels.shape}, not {count} square RGB images of the same size as the "
                "other shards; `dvc repro` makes it again"
            )
        return pixels

    def indices_of(self, image_ids: pd.Series) -> np.ndarray:
        """The rows of the manifest where these images stand, shape (n,); every id must be one of the store."""
        return pd.Index(self.manifest["image_id"]).get_indexer_for(image_ids)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images at rows `indices` of the manifest: uint8, shape (n, image_size, image_size, 3), RGB."""
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        shards, rows = np.divmod(indices, IMAGES_PER_SHARD)
        for shard in np.unique(shards):
            here = shards == shard
            pixels[here] = self._shards[shard][rows[here]]
        return pixels
