"""What several GPUs of one machine gain: images per second, and the whole wall clock of `train`.

    python -m benchmarks.scaling --data-dir data/ham10000 --rows 1x1 1x2 1x4 2x2 --epochs 8

Trains EfficientNet-B0 from scratch, 224 px, a batch of 128 on each device, as the stage `train` does it, in new
processes. A row is machines x devices; several «machines» are parts of this one, each with its torchrun. Images are
those of `--data-dir`, repeated up to `--images`; without it, noise.

Writes benchmarks/results/scaling.json, in which other rows stay: images per second of the median epoch, all devices
together; seconds of building and fitting (`training_seconds`); seconds from the start of the first process to the end
of the last; the validation metrics of the last epoch; and the SHA-256 of the weights.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.throughput import write_dataset
from stages.classifier.hardware import describe_hardware
from stages.files import ENVIRONMENT, MODEL_WEIGHTS, PREPARED, SPLIT, TRAINING_METRICS, read_json, write_json

ROOT = Path(__file__).parents[1]
RESULT = Path("benchmarks/results/scaling.json")
SIZE, BATCH = 224, 128
NETWORK = {
    "model": {"name": "efficientnet", "variant": "b0", "pretrained": False, "ensemble": 1},
    "data": {"image_size": SIZE},
    "training": {"batch_size": BATCH, "learning_rate": 1e-4, "early_stopping_patience": 1000, "num_nodes": 1},
}


def train(folder: Path, machines: int, devices: int, epochs: int) -> dict:
    """One training in a folder of its own, on the data of `folder`."""
    here = Path(tempfile.mkdtemp(dir=folder))
    for path in (PREPARED, SPLIT):
        (here / path).parent.mkdir(exist_ok=True)
        (here / path).symlink_to(folder / path.name)
    params = YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in NETWORK.items():
        params[section].update(values)
    params["training"].update({"devices": devices, "num_nodes": machines, "max_epochs": epochs})
    YAML().dump(params, here / "params.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-m", "stages.train"]]
    if machines > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={machines}", "--master-addr=127.0.0.1"]
        torchrun += ["--master-port=29517", f"--nproc-per-node={devices}"]
        commands = [[*torchrun, f"--node-rank={rank}", "-m", "stages.train"] for rank in range(machines)]
    start, running = time.perf_counter(), []
    for rank, command in enumerate(commands):
        part = range(rank * devices, (rank + 1) * devices)
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, part))} if machines > 1 else {}
        running.append(subprocess.Popen(command, cwd=here, env=environment | gpus, stdout=subprocess.DEVNULL))  # noqa: S603
    if any(failed := [process.wait() for process in running]):
        sys.exit(f"error: a training ended with {max(failed)}")
    seconds, made = time.perf_counter() - start, read_json(here / ENVIRONMENT)
    return {
        "images_per_second": made["training_images_per_second"],
        "training_seconds": made["training_seconds"],
        "wall_clock_seconds": seconds,
        "validation": read_json(here / TRAINING_METRICS / "metrics.json")["val"],
        "weights": hashlib.sha256((here / MODEL_WEIGHTS).read_bytes()).hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with JPEG files")
    parser.add_argument("--rows", nargs="+", default=["1x1", "1x2", "1x4", "2x2"], help="machines x devices")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=6000, help="of an epoch")
    args = parser.parse_args()
    results = read_json(RESULT)["rows"] if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = sorted(args.data_dir.rglob("*.jpg")) if args.data_dir else []
        for number in range(0 if args.data_dir else 64):
            noise = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            files.append(folder / f"{number}.jpg")
            Image.fromarray(noise).save(files[-1])
        write_dataset(folder, files, SIZE, args.images)
        for row in args.rows:
            machines, devices = map(int, row.split("x"))
            name = f"{row}, {args.epochs} epochs"
            results[name] = train(folder, machines, devices, args.epochs)
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    write_json(RESULT, {"hardware": describe_hardware(), "images": args.images, "rows": results})


if __name__ == "__main__":
    main()
