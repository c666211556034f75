"""What it costs to compute with the same instructions everywhere, and to let waiting threads sleep.

    python -m benchmarks.arithmetic

Trains the network of `params.yaml` on `data/prepared`, each time in a new process: with `runtime.cpu_instructions`
avx2 and native, and with OpenMP's threads waiting for different times; the latter also beside as many busy processes as
there are cores. The settings take turns, so that what else happens on the machine meets all.

Writes benchmarks/results/arithmetic.json: images per second of each setting, the median of its runs, and its ratio to
the first of its table.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from stages.classifier.hardware import describe_environment
from stages.files import write_json

RESULT = Path("benchmarks/results/arithmetic.json")
ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
from pathlib import Path
from stages.config import load_config, override
from stages.training.fit import train_model
epochs = {"training.max_epochs": 3, "training.resume": False}
data, here = Path(sys.argv[1], "data"), Path.cwd()
config = override(load_config(), epochs)
training = train_model(config, data / "prepared", data / "split.csv", here / "models", here / "metrics")
print("images/s", training.images_per_second)
"""
WAITING = {
    "GOMP_SPINCOUNT=1000, the default here": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=300000, libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def train(instructions: str, settings: dict[str, str]) -> tuple[float, str]:
    """Images per second of a training, and the SHA-256 of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        params = (ROOT / "params.yaml").read_text(encoding="utf-8")
        changed = params.replace("cpu_instructions: avx2 ", f"cpu_instructions: {instructions} ")
        Path(folder, "params.yaml").write_text(changed, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", TRAIN, str(ROOT)]
        environment |= settings | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
        weights = Path(folder, "models/model.safetensors").read_bytes()
        return float(done.stdout.split("images/s ")[-1]), hashlib.sha256(weights).hexdigest()[:16]


def measure(settings: dict[str, tuple[str, dict[str, str]]], rounds: int) -> list[dict]:
    """A row for each setting: the median of its rounds, its ratio to the first setting, and its weights."""
    results: dict[str, list[tuple[float, str]]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, setting in settings.items():
            results[name].append(train(*setting))
            print(name, *results[name][-1], flush=True)
    medians = {name: statistics.median(speed for speed, _ in runs) for name, runs in results.items()}
    first = next(iter(medians.values()))
    return [
        {
            "setting": name,
            "images_per_second": medians[name],
            "ratio": medians[name] / first,
            "weights": sorted({weights for _, weights in runs}),
        }
        for name, runs in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting (default: 3)")
    args = parser.parse_args()
    waiting = {name: ("avx2", setting) for name, setting in WAITING.items()}
    tables = {
        "instructions": measure({"avx2": ("avx2", {}), "native": ("native", {})}, args.rounds),
        "waiting, idle machine": measure(waiting, args.rounds),
    }
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        tables["waiting, as many busy processes as cores"] = measure(waiting, args.rounds)
    finally:
        for process in busy:
            process.kill()
    about = {"hardware": describe_environment(), "system": platform.platform(), "rounds": args.rounds}
    write_json(RESULT, about | {"tables": tables})
    print(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
