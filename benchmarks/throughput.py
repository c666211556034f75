"""Images per second of training: the pipeline's loop, beside what the hardware could do and what is usually written.

    python -m benchmarks.throughput --data-dir data/ham10000
    python -m benchmarks.throughput --rows efficientnet/b0/224/128/bf16 resnet/18/224/128/bf16/nondeterministic

Of each row, in one run on this machine:

- limit: the same step repeated on one batch that is in place, without augmentation, Lightning and logging;
- bare: a plain loop over the pipeline's batches and its step, augmentation included;
- pipeline: `stages.training.fit.train_model` as the stage calls it, with Lightning, DVCLive, checkpoints and
  validation; the median epoch after the first, validation left out;
- usual: a DataLoader whose worker processes, one per core, decode JPEG files and augment them with torchvision,
  automatic mixed precision, every kernel launched from Python.

A row is network/variant/image size/batch size/precision and, if not the defaults, options: nondeterministic, and a
value of `training.compile`. Images are those of `--data-dir`, repeated up to `--images`. Writes
benchmarks/results/throughput-gpu.json or -cpu.json.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.plain import HAM10000, PLAIN
from stages.classifier.hardware import describe_hardware, set_up_device
from stages.classifier.networks import create_network
from stages.config import Config, override
from stages.dataset.loaders import Batch, Batches, SamplingConfig, SplitImages
from stages.dataset.pixels import IMAGES_PER_SHARD, PixelStore, add_places, shard_path, write_manifest
from stages.files import write_csv, write_json
from stages.training.capture import WARM_UP_STEPS, CapturedStep, why_not_captured
from stages.training.fit import Training, train_model
from stages.training.module import TrainingModule
from stages.training.step import TrainingStep

ROWS_ON_A_GPU = (
    "efficientnet/b0/224/32/bf16",
    "efficientnet/b0/224/32/bf16/nondeterministic",
    "efficientnet/b0/224/128/bf16",
    "efficientnet/b0/224/128/bf16/nondeterministic",
    "efficientnet/b0/224/256/bf16",
    "efficientnet/b0/224/256/bf16/nondeterministic",
    "efficientnet/b3/224/128/bf16/nondeterministic",
    "resnet/18/224/128/bf16/nondeterministic",
    "efficientnet/lite0/224/128/bf16",
    "efficientnet/lite0/144/128/bf16",
    "efficientnet/b0/224/128/32",
    "efficientnet/b0/224/128/16",
    "efficientnet/b0/224/128/bf16/nondeterministic/inductor",
    "efficientnet/b0/224/256/bf16/nondeterministic/inductor",
)
ROWS_ON_A_CPU = ("efficientnet/lite0/64/32/32", "resnet/18/64/32/32")
VALIDATION_IMAGES = 256
LIMIT_SECONDS = 4.0


def parse_row(row: str, epochs: int) -> Config:
    """The parameters of a row."""
    name, variant, size, batch_size, precision, *options = row.split("/")
    compile_ = next((option for option in options if option != "nondeterministic"), "auto")
    return override(
        PLAIN,
        {
            "data.image_size": int(size),
            "model.name": name,
            "model.variant": variant or None,
            "model.pretrained": False,
            "training.max_epochs": epochs,
            "training.batch_size": int(batch_size),
            "training.precision": "bf16" if precision == "bf16" else int(precision),
            "training.deterministic": "nondeterministic" not in options,
            "training.compile": compile_,
            "training.early_stopping_patience": epochs,
            "training.learning_rate": 1e-6,  # random pixels teach nothing: the weights shall stay finite
        },
    )


def write_dataset(folder: Path, files: list[Path], size: int, images: int) -> None:
    """A prepared folder and a split of `images` training images, the files repeated, and some for validation."""
    count = images + VALIDATION_IMAGES
    decoded = [np.asarray(_open(path).resize((size, size))) for path in files[:count]]
    table = pd.DataFrame({"image_id": [f"I{number}" for number in range(count)]}).assign(
        lesion_id=lambda rows: rows["image_id"], dx=[tuple(HAM10000)[number % 7] for number in range(count)],
        dx_type="histo", age=50.0, sex="male", localization="back", dataset="unknown",
    )  # fmt: skip
    write_manifest(folder / "prepared", add_places(table), HAM10000)
    for shard, start in enumerate(range(0, count, IMAGES_PER_SHARD)):
        numbers = range(start, min(start + IMAGES_PER_SHARD, count))
        np.save(shard_path(folder / "prepared", shard), np.stack([decoded[n % len(decoded)] for n in numbers]))
    split = ["train"] * (images - 1) + ["test"] + ["val"] * VALIDATION_IMAGES
    write_csv(folder / "split.csv", table[["image_id", "lesion_id"]].assign(fold=0, split=split))


def _open(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def measure(row: str, folder: Path, files: list[Path], images: int, epochs: int, rounds: int, usual: bool) -> dict:
    """Images per second of every kind of loop."""
    config = parse_row(row, epochs)
    device = set_up_device(config.runtime.cpu_threads, config.training.deterministic)
    store = PixelStore(folder / "prepared")
    train = SplitImages(store, "train", folder / "split.csv", 2)
    speeds: dict[str, list[float]] = {}
    for number in range(rounds):
        for kind, speed in {
            "limit": lambda: _limit(config, train, device),
            "bare": lambda: _bare(config, train, device),
            "pipeline": lambda: _pipeline(config, folder),
            **({"usual": lambda: _usual(config, files, images, device)} if usual and number == 0 else {}),
        }.items():
            speeds.setdefault(kind, []).append(speed())
            gc.collect()
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    medians = {kind: statistics.median(values) for kind, values in speeds.items()}
    ratios = {
        f"pipeline_over_{kind}": statistics.median(np.divide(speeds["pipeline"][: len(values)], values))
        for kind, values in speeds.items()
        if kind != "pipeline"
    }
    return medians | {name: float(ratio) for name, ratio in ratios.items()}


def _step(config: Config, image_size: int, device: torch.device) -> Callable[[Batch], torch.Tensor]:
    module = TrainingModule(config, image_size, torch.ones(1, 2)).to(device).train()
    optimizer = module.configure_optimizers()
    step = TrainingStep(module.network, module.losses, optimizer, None, config.training, device)
    return CapturedStep(step) if why_not_captured(step) is None else step


def _limit(config: Config, images: SplitImages, device: torch.device) -> float:
    step, size = _step(config, images.store.image_size, device), config.training.batch_size
    pixels = torch.from_numpy(images.store.read(images.indices[:size])).to(device)
    batch = Batch(pixels, images.labels[:size].to(device), None, images.sources[:size].to(device))
    for _ in range(WARM_UP_STEPS + 2):
        step(batch)
    steps, start = 0, _now(device)
    while _now(device) - start < LIMIT_SECONDS:
        for _ in range(max(1, 1024 // size)):
            step(batch)
            steps += 1
    return steps * size / (_now(device) - start)


def _bare(config: Config, images: SplitImages, device: torch.device) -> float:
    step = _step(config, images.store.image_size, device)
    batches = Batches(images, config.training.batch_size, device, SamplingConfig(0, config.data))
    speeds = []
    for epoch in range(3):
        start = _now(device)
        for batch in batches.of_epoch(epoch):
            step(batch)
        speeds.append(len(batches) * batches.batch_size / (_now(device) - start))
    return statistics.median(speeds[1:])


def _pipeline(config: Config, folder: Path) -> float:
    outputs = (folder / name for name in ("models", "metrics", "checkpoints"))
    training = train_model(config, folder / "prepared", folder / "split.csv", *outputs)
    return cast(Training, training).images_per_second  # there are no other processes


class Photos(Dataset):
    """JPEG files as they are decoded and augmented in a worker of a DataLoader."""

    def __init__(self, files: list[Path], count: int, size: int) -> None:
        self.files, self.count = files, count
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.7, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation([-180, 180]),
                v2.ColorJitter(0.1, 0.2, 0.2, 0.02),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(_open(self.files[number % len(self.files)])), number % 2


def _usual(config: Config, files: list[Path], images: int, device: torch.device) -> float:
    loader = DataLoader(
        Photos(files, images, config.data.image_size),
        config.training.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        drop_last=True,
    )
    network = create_network(config.model, config.data.image_size).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    precision = {"bf16": torch.bfloat16, 16: torch.float16, 32: None}[config.training.precision]
    speeds = []
    for _ in range(2):  # the first starts the workers
        start = _now(device)
        for pixels, labels in loader:
            with torch.autocast(device.type, precision, enabled=precision is not None):
                logits = network(pixels.to(device, non_blocking=True))
                loss = cross_entropy(logits, labels.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        speeds.append(len(loader) * config.training.batch_size / (_now(device) - start))
    return speeds[-1]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Measure the speed of training.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/sample"), help="folder with JPEG files")
    parser.add_argument("--rows", nargs="+", default=ROWS_ON_A_GPU if on_gpu else ROWS_ON_A_CPU)
    parser.add_argument("--images", type=int, default=8192 if on_gpu else 640, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of the pipeline")
    parser.add_argument("--rounds", type=int, default=1 if on_gpu else 3, help="of all loops in turn")
    parser.add_argument("--no-usual", action="store_true", help="leave out the usual loop")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()

    files = sorted(args.data_dir.rglob("*.jpg"))
    if not files:
        sys.exit(f"error: {args.data_dir} holds no .jpg files (archives must be unpacked)")
    output = args.output or Path(f"benchmarks/results/throughput-{'gpu' if on_gpu else 'cpu'}.json")
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for row in args.rows:
            size = row.split("/")[2]
            folder = Path(scratch) / size
            if not folder.exists():  # the pixels of a size, which the rows share
                write_dataset(folder, files, int(size), args.images)
            results[row] = measure(row, folder, files, args.images, args.epochs, args.rounds, usual=not args.no_usual)
            print(f"{row}: {json.dumps({name: round(value, 3) for name, value in results[row].items()})}", flush=True)
            write_json(output, {"hardware": describe_hardware(), "images": args.images, "rows": results})
    print(table(results))


def table(results: dict[str, dict]) -> str:
    """The results in Markdown."""
    kinds = ("limit", "bare", "pipeline", "usual")
    lines = ["| row | " + " | ".join(kinds) + " | pipeline / limit | pipeline / bare |", "| --- " * 7 + "|"]
    for row, found in results.items():
        speeds = (f"{found[kind]:,.0f}" if kind in found else "–" for kind in kinds)
        ratios = (f"{found[f'pipeline_over_{kind}']:.3f}" for kind in ("limit", "bare"))
        lines.append(f"| {row} | " + " | ".join([*speeds, *ratios]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
