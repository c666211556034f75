"""What each stage takes, in time and in memory, of a dataset of the size of ISIC 2024, and how both grow.

    python -m benchmarks.scale 25000 100000 401000 -S training.batch_size=128 -S data.image_size=128

The images are generated: 140×140 pixels, skin and a mole, no two alike, in zip archives of 50,000. As in SLICE-3D
(Kurtansky et al., Scientific Data 11:884, 2024) a patient has 385 images on average, and one image in a thousand is
malignant, but at least 25 are. Each stage runs in a process of its own, `train` for one epoch; `predict` is given all
images, and `compare` compares the model with itself. Of each, the seconds by the clock and the most memory that was
resident, of its largest process. Writes what is known after each stage into benchmarks/results/scale.json, and keeps
there what it knows of other numbers of images.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.config import PARAMS
from stages.files import write_json
from stages.launch import run

ROOT = Path(__file__).parents[1]
RESULT = Path("benchmarks/results/scale.json")
SIZE, ARCHIVE, AT_ONCE = 140, 50_000, 1000
IMAGES_PER_PATIENT, IMAGES_PER_MALIGNANT, FEWEST_MALIGNANT, FEWEST_PATIENTS = 385, 1000, 25, 40
STAGES = ("prepare", "split", "train", "evaluate", "plot", "publish")
COMMANDS = {
    **{stage: (f"stages.{stage}",) for stage in STAGES},
    "predict": ("stages", "predict", "data/scale", "--output", "predictions.csv"),
    "compare": ("stages", "compare", "workspace", "workspace", "--json", "comparison.json"),
}
GIT = (
    ("git", "init", "--quiet"),
    ("git", "-c", "user.name=scale", "-c", "user.email=scale", "commit", "--quiet", "--allow-empty", "--message=scale"),
    (sys.executable, "-m", "dvc", "init", "--quiet"),
)
ONE_EPOCH = {"data.data_dir": "data/scale", "training.max_epochs": 1, "training.lr_warmup_epochs": 0.0}


def is_malignant(number: int, count: int) -> bool:
    """Whether so many images have a malignant one at this place."""
    return number % min(IMAGES_PER_MALIGNANT, count // FEWEST_MALIGNANT) == 0


def picture(number: int, malignant: bool) -> bytes:
    """A JPEG file of spotted skin with a mole in its middle."""
    random = np.random.default_rng(number)
    skin = np.array((225, 180, 160)) + 25 * random.normal(size=(24, 24, 1))
    image = Image.fromarray(skin.clip(0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    (x, y), (width, height) = random.integers(-9, 9, 2) + SIZE // 2, random.integers(20, 40, 2)
    colour = (140, 50, 60) if malignant else (105, 65, 45)
    ImageDraw.Draw(image).ellipse((x - width, y - height, x + width, y + height), colour)
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=85)
    return file.getvalue()


def pictures(start: int, end: int, count: int) -> list[tuple[str, bytes]]:
    """Names and contents of the files of images from `start` on, before `end`, of `count`."""
    numbers = range(start, min(start + AT_ONCE, end))
    return [(f"ISIC_{number:07d}.jpg", picture(number, is_malignant(number, count))) for number in numbers]


def generate(folder: Path, count: int) -> None:
    """Write a dataset of `count` images as ISIC publishes its own."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    patients = random.integers(max(FEWEST_PATIENTS, count // IMAGES_PER_PATIENT), size=count)
    lines = ["image_name,patient_id,diagnosis,age_approx,sex,anatom_site_general_challenge"]
    for number, patient in enumerate(patients):
        diagnosis = "melanoma" if is_malignant(number, count) else "nevus"
        place = ("torso", "lower extremity", "upper extremity", "head/neck")[number % 4]
        lines.append(f"ISIC_{number:07d},P{patient},{diagnosis},{20 + 5 * (patient % 14)},female,{place}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with ProcessPoolExecutor() as pool:
        for first in range(0, count, ARCHIVE):
            with zipfile.ZipFile(folder / f"images-{first:07d}.zip", "w") as archive:
                end = min(first + ARCHIVE, count)
                for some in pool.map(pictures, range(first, end, AT_ONCE), repeat(end), repeat(count)):
                    for name, content in some:
                        archive.writestr(name, content)


def change(folder: Path, parameters: dict[str, object]) -> None:
    """Set parameters, in a process of its own: the memory that PyTorch takes would count as that of each stage."""
    from benchmarks.sweep import set_parameters

    set_parameters(folder, parameters)


def measure(folder: Path, *command: str) -> dict[str, float]:
    """Run a module in a folder: its seconds, and the MiB of its largest process."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=environment)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the stages on datasets of growing size.")
    parser.add_argument("images", type=int, nargs="+")
    parser.add_argument("--set", "-S", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml")
    parser.add_argument("--stages", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--scratch", type=Path, help="folder for images and pixels; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    for count in args.images:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            folder, row = Path(scratch), {}
            start = time.perf_counter()
            generate(folder / "data/scale", count)
            print(f"generated {count} images in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            for name in ("data/taxonomies", "dvc.yaml", "stages"):
                (folder / name).symlink_to(ROOT / name)
            for command in GIT:  # `train` and `compare` ask DVC
                subprocess.run(command, cwd=folder, check=True)  # noqa: S603
            (folder / PARAMS).write_bytes((ROOT / PARAMS).read_bytes())
            with ProcessPoolExecutor(1) as pool:
                pool.submit(change, folder, ONE_EPOCH | dict(each.split("=", 1) for each in args.set)).result()
            rows[str(count)] = row
            for stage in args.stages:
                row[stage] = measure(folder, *COMMANDS[stage])
                print(count, stage, row[stage], file=sys.stderr, flush=True)
                write_json(args.output, rows)
    sizes = sorted(rows, key=int)
    print("| | " + " | ".join(f"{int(count):,} images" for count in sizes) + " |")
    print("| --- |" + " ---: |" * len(sizes))
    for stage in COMMANDS:
        known = [rows[count].get(stage) for count in sizes]
        cells = [f"{each['seconds']:.0f} s, {each['peak_mib']:,.0f} MiB" if each else "" for each in known]
        print("| " + " | ".join([stage, *cells]) + " |")


if __name__ == "__main__":
    run(main)
