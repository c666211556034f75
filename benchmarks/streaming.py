"""Whether memory stays flat where a dataset does not fit into it: an epoch of 400,000 images, and of a sixteenth.

    OMP_WAIT_POLICY=passive python -m benchmarks.streaming

The prepared folder is made here: a manifest, a split, and shards whose pixels are holes in sparse files, so that they
take no disk. Training's own `Batches` go through one epoch of it, shuffled and with the parameters of augmentation, on
the GPU where there is one, made to stream as it does where its memory does not hold the images, else on the CPU.
Nothing is computed with the images, and no disk is read: images/s is what the loader can deliver at most.

Each size has a process of its own. Memory is what Linux says in /proc/self/status: RssAnon is what the process has
allocated, VmHWM the most that was resident at any time, with libraries and, on a GPU, pinned buffers. The cache of
files belongs to the system and is in neither. Writes benchmarks/results/streaming.json.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.plain import HAM10000, PLAIN
from stages.classifier.hardware import describe_hardware
from stages.dataset import loaders
from stages.dataset.loaders import Batches, SamplingConfig, SplitImages
from stages.dataset.pixels import IMAGES_PER_SHARD, PixelStore, add_places, shard_path, write_manifest
from stages.files import write_csv, write_json

RESULT = Path("benchmarks/results/streaming.json")
FRACTION = 16  # of the smaller dataset, for the growth to be seen
READINGS = 64  # of memory, over an epoch


def write_sparse_dataset(folder: Path, images: int, size: int) -> None:
    """A prepared folder and a split of `images` images of `size` pixels per side, one in a hundred for validation."""
    numbers = np.arange(images)
    ids = [f"I{number:07d}" for number in numbers]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "dx": np.array(tuple(HAM10000))[numbers % 7]}).assign(
        dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown"
    )
    write_manifest(folder / "prepared", add_places(table), HAM10000)
    for shard, start in enumerate(range(0, images, IMAGES_PER_SHARD)):
        shape = (min(IMAGES_PER_SHARD, images - start), size, size, 3)
        with shard_path(folder / "prepared", shard).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + int(np.prod(shape)))
    split = np.where(numbers % 100 == 1, "val", np.where(numbers % 100 == 2, "test", "train"))
    write_csv(folder / "split.csv", table[["image_id", "lesion_id"]].assign(fold=0, split=split))


def measure(folder: Path, batch_size: int, most_batches: int | None) -> dict:
    """Go through an epoch of the training images, to be called in a process of its own.

    Args:
        folder: what `write_sparse_dataset` wrote.
        batch_size: images of a batch.
        most_batches: after which to stop; None: the whole epoch.

    Returns:
        Seconds to open the dataset and to the first batch, images per second after it, and memory in MiB: before the
        dataset was opened, and of `READINGS` moments of the epoch.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.zeros(1, device=device)  # starts CUDA
    loaders.LARGEST_SHARE_OF_GPU_MEMORY = 0.0
    before = _memory()
    start = time.perf_counter()
    store = PixelStore(folder / "prepared")
    store_opened = time.perf_counter()
    images = SplitImages(store, "train", folder / "split.csv", 7)
    split_opened = time.perf_counter()
    opened = _memory()

    batches = Batches(images, batch_size, device, SamplingConfig(0, PLAIN.data))
    count = min(len(batches), most_batches or len(batches))
    readings = {round(number) for number in np.linspace(0, count - 1, READINGS)}
    epoch_started = time.perf_counter()
    memory = []
    for number, _ in zip(range(count), batches):
        if number == 0:
            first_batch = time.perf_counter()
        if number in readings:
            memory.append(_memory())
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - first_batch
    return {
        "images": len(store.manifest),
        "pixels_mib": len(store.manifest) * store.image_size**2 * 3 / 2**20,
        "batches": count,
        "store_seconds": store_opened - start,
        "split_seconds": split_opened - store_opened,
        "first_batch_seconds": first_batch - epoch_started,
        "images_per_second": (count - 1) * batches.batch_size / seconds,
        "memory_before": before,
        "memory_opened": opened,
        "memory_of_the_epoch": memory,
        "memory_at_the_end": _memory(),
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }


def _memory() -> dict[str, float]:
    """Resident memory of this process in MiB, by the kernel's names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "RssShmem", "VmHWM")}


def markdown(rows: list[dict]) -> str:
    """The results as a table."""
    lines = [
        "| images | pixels, MiB | opened, s | first batch, s | images/s | before, MiB | epoch's first batch, MiB "
        "| last, MiB | most in the epoch, MiB | VmHWM, MiB |",
        "| ---: " * 10 + "|",
    ]
    for row in rows:
        anonymous = [reading["RssAnon"] for reading in row["memory_of_the_epoch"]]
        counts = [row["images"], row["pixels_mib"]]
        seconds = [row["store_seconds"] + row["split_seconds"], row["first_batch_seconds"]]
        memory = [row["memory_before"]["RssAnon"], anonymous[0], anonymous[-1], max(anonymous)]
        rest = [row["images_per_second"], *memory, row["memory_at_the_end"]["VmHWM"]]
        cells = [f"{value:,.0f}" for value in counts] + [f"{value:.2f}" for value in seconds]
        lines.append("| " + " | ".join([*cells, *(f"{value:,.0f}" for value in rest)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of an epoch over images that do not fit into it.")
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, help="after which to stop; default: a whole epoch")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    rows = []
    for images in (args.images // FRACTION, args.images):
        with tempfile.TemporaryDirectory() as folder:
            write_sparse_dataset(Path(folder), images, args.image_size)
            with multiprocessing.get_context("spawn").Pool(1) as process:
                rows.append(process.apply(measure, (Path(folder), args.batch_size, args.batches)))
        short = {name: value for name, value in rows[-1].items() if name != "memory_of_the_epoch"}
        print(json.dumps(short), file=sys.stderr, flush=True)
    print(markdown(rows))
    about = {"image_size": args.image_size, "batch_size": args.batch_size}
    write_json(args.output, about | {"hardware": describe_hardware(), "rows": rows})


if __name__ == "__main__":
    main()
