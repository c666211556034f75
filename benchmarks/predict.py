"""How much of a bare loop's speed `stages.commands.predict` keeps.

    OMP_WAIT_POLICY=passive python -m benchmarks.predict

So the threads of an operation do not wait actively for the next: where anything else computes on the machine, that
slows both sides by turns, up to tenfold.

The bare loop is what one would write for a single use: a pool of threads decodes all images ahead of the network,
which takes them in batches, with the same decoder, threads, batches, views and temperature. It checks nothing, catches
nothing, keeps decoded images in memory until they are used, and leaves an array. The command's side searches the
folder, bounds its memory, catches unreadable files, decides, and writes the CSV. Reading the model is part of neither.

Writes benchmarks/results/predict.json.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.plain import HAM10000, told_apart
from stages.classifier.calibration import Calibration, apply_temperature
from stages.classifier.hardware import processor, set_up_device
from stages.classifier.inference import dihedral_views
from stages.classifier.networks import NormalizedNetwork, build_network
from stages.classifier.weights import ModelDescription
from stages.commands.predict import find_files
from stages.dataset.augmentation import as_float
from stages.dataset.images import decode_square
from stages.files import write_csv, write_json
from stages.prediction import predict_images

SAMPLE = Path("data/sample")
RESULT = Path("benchmarks/results/predict.json")
ARCHITECTURE = "tf_efficientnet_lite0"
BATCH_SIZE = 64
GOAL = 0.9


@torch.inference_mode()
def bare_loop(
    folder: Path, network: NormalizedNetwork, size: int, calibration: Calibration, device: torch.device, threads: int
) -> np.ndarray:
    """Calibrated probabilities of the images in `folder`, shape (n, classes)."""
    network = network.to(device).eval()
    probabilities = []
    with ThreadPoolExecutor(threads) as pool:
        images = pool.map(lambda path: decode_square(path.read_bytes(), size), sorted(folder.glob("*.jpg")))
        while batch := list(islice(images, BATCH_SIZE)):
            upright = as_float(torch.from_numpy(np.stack(batch)).to(device))
            views = dihedral_views(upright) if calibration.test_time_augmentation else [upright]
            outputs = [
                network(view.contiguous(memory_format=torch.channels_last)).double().softmax(1) for view in views
            ]
            probabilities.append(torch.stack(outputs).mean(0))
    return apply_temperature(torch.cat(probabilities).cpu().numpy(), calibration.temperature)


def command(
    folder: Path, network: NormalizedNetwork, size: int, calibration: Calibration, device: torch.device, threads: int
) -> np.ndarray:
    """What the command does between reading the model and its end."""
    description = ModelDescription(
        ARCHITECTURE, 1, list(told_apart(2).names), HAM10000, size, [0.5] * 3, [0.5] * 3, [0], [0.0], [], 32, 1
    )
    files, *_ = find_files([folder])
    table, _ = predict_images(files, network, description, calibration, device, BATCH_SIZE, threads)
    write_csv(folder / "predictions.csv", table)
    return table[["probability_benign", "probability_malignant"]].to_numpy()


def seconds(function: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(folder: Path, count: int, size: int, views: bool, repeats: int, device: torch.device, threads: int) -> dict:
    """Time both, in turn and in alternating order."""
    torch.manual_seed(0)
    network = build_network(ARCHITECTURE, 2, size)
    arguments = (folder, network, size, Calibration(views, 1.2, 0.3, 0.9, 0.4), device, threads)
    # The first of each warms up, and shows that both compute the same.
    np.testing.assert_allclose(command(*arguments), bare_loop(*arguments), atol=1e-6)
    times = {"command": [], "bare_loop": []}
    for repeat in range(repeats):
        turn = [("command", command), ("bare_loop", bare_loop)]
        for name, function in turn if repeat % 2 else turn[::-1]:
            times[name].append(seconds(lambda function=function: function(*arguments)))
    # Of neighbours in time: other load on the machine slows both.
    ratio = statistics.median(bare / ours for ours, bare in zip(times["command"], times["bare_loop"]))
    return {
        "image_size": size,
        "test_time_augmentation": views,
        "images_per_second": {name: count / statistics.median(of) for name, of in times.items()},
        "ratio": ratio,
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure stages.commands.predict against a bare loop.")
    parser.add_argument("--images", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (default: 7)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels of a side (default: 64)")
    args = parser.parse_args()

    threads = os.cpu_count() or 1
    device = set_up_device(threads)
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, sample = Path(temporary), sorted(SAMPLE.rglob("*.jpg"))
        for number in range(args.images):
            shutil.copy(sample[number % len(sample)], folder / f"{number:05d}.jpg")
        for views in (True, False):
            runs.append(measure(folder, args.images, args.image_size, views, args.repeats, device, threads))
            speed = runs[-1]["images_per_second"]
            print(
                f"{'8 views' if views else '1 view':8} command {speed['command']:8.1f} images/s, "
                f"bare loop {speed['bare_loop']:8.1f} images/s, ratio {runs[-1]['ratio']:.3f} (goal: {GOAL})"
            )
    write_json(
        RESULT,
        {
            "command": "OMP_WAIT_POLICY=passive python -m benchmarks.predict",
            "images": args.images,
            "repeats": args.repeats,
            "batch_size": BATCH_SIZE,
            "architecture": ARCHITECTURE,
            "hardware": {
                "cpu": processor(),
                "cores": threads,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
            },
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
