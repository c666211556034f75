"""Whether the calibration of a release is that of the average that is released, and what a release costs.

    python -m benchmarks.release --simulate
    python -m benchmarks.release --data-dir data/ham10000 --gpus 4

`--simulate`: a population in which the right numbers are known. The logits of a network are those of the evidence, an
error that all networks share and one of its own; a part of that comes from the folds that it has not trained on, which
it shares with the networks that lack these, too. Cross-validations are drawn, and the average of their networks is
judged on fresh lesions with the temperature and the threshold that were fitted to single networks, to means of two,
that `calibrate_average` finds, and that are best there. With `epochs`, each network is the best on its validation
lesions of some that are alike, as training chooses an epoch.

`--data-dir`: of real images, a fifth of the lesions is kept aside; a cross-validation runs on the others, each network
through the stages as its users run them, is pooled and released, and the release is judged on the lesions kept aside.
The seconds are those of a machine that does nothing else; `--per-gpu` networks share a GPU.

Writes benchmarks/results/release-simulated.json or release.json.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.models import RECIPE, set_up
from benchmarks.plain import PLAIN, told_apart
from benchmarks.recipe import parse_value
from stages.classifier.calibration import Calibration, apply_temperature
from stages.classifier.temperature import fit_temperature
from stages.dataset.folds import assign_folds
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.averaging import calibrate_average
from stages.evaluation.calibration import weighted_gaps
from stages.evaluation.decisions import choose_thresholds
from stages.evaluation.predictions import Predictions, malignant_probability
from stages.evaluation.weighted import unit_weights
from stages.experiments.pooling import Fold, by_two_networks, pool, read_folds, uncalibrated
from stages.experiments.revision import WORKSPACE, Revision
from stages.files import DETAILS, PREDICTIONS, PREPARED, PUBLISHED, read_json, write_json
from stages.launch import run

SIMULATED, MEASURED = Path("benchmarks/results/release-simulated.json"), Path("benchmarks/results/release.json")
CLASSES = told_apart(7)
SHARES = np.array([0.033, 0.051, 0.110, 0.0115, 0.111, 0.670, 0.0135])  # of HAM10000's diagnoses
LESIONS, FRESH, REPEATS = 6_402, 40_000, 20
NETWORKS = 7
SETTINGS = replace(PLAIN.evaluation, target_sensitivity=0.9)
KEPT = 5  # one of so many parts of the lesions is kept aside


@dataclass(frozen=True)
class Population:
    """Lesions and networks.

    Attributes:
        separation: of the classes, in standard deviations of the evidence for each.
        common: standard deviation of what all networks' logits share, beside the evidence.
        own: of what each has of its own, in the median lesion.
        uneven: how much that differs between lesions: the standard deviation of its logarithm.
        folds: share of the variance of `own` that comes from the folds which a network has not trained on.
        sharpness: factor of the logits.
        epochs: how many a network is chosen from, whose logits differ by a third of `own`; 1: none is chosen.
    """

    separation: float = 2.6
    common: float = 1.5
    own: float = 0.7
    uneven: float = 0.5
    folds: float = 0.2
    sharpness: float = 1.0
    epochs: int = 1


POPULATIONS = {
    "networks alike": Population(),
    "networks differ": Population(common=1.3, own=1.0, sharpness=1.2),
    "the same, the epoch chosen": Population(common=1.3, own=1.0, sharpness=1.2, epochs=15),
    "networks differ much": Population(common=1.0, own=1.5, sharpness=1.5),
}


def draw(random: np.random.Generator, lesions: int, networks: int, population: Population) -> tuple[np.ndarray, ...]:
    """Labels, shape (lesions,), and the logits of each network, shape (lesions, networks, 7)."""
    count = len(SHARES)
    labels = random.choice(count, lesions, p=SHARES / SHARES.sum())
    evidence = random.normal(size=(lesions, count))
    evidence[np.arange(lesions), labels] += population.separation
    shared = np.log(SHARES) + population.separation * evidence + population.common * random.normal(size=evidence.shape)
    lacking = random.normal(size=(lesions, networks, count))  # what a network misses of its test and validation fold
    lacking = (lacking + np.roll(lacking, -1, axis=1)) / np.sqrt(2)
    own = np.sqrt(1 - population.folds) * random.normal(size=lacking.shape) + np.sqrt(population.folds) * lacking
    own *= population.own * np.exp(population.uneven * random.normal(size=(lesions, 1, 1)))
    return labels, population.sharpness * (shared[:, None] + own)


def mean_of(logits: np.ndarray) -> np.ndarray:
    """The mean probabilities, shape (n, classes), of networks whose logits have the shape (n, networks, classes)."""
    each = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (each / each.sum(axis=2, keepdims=True)).mean(axis=1)


def _choose_epochs(
    random: np.random.Generator, labels: np.ndarray, logits: np.ndarray, population: Population
) -> np.ndarray:
    """Of each network the best of some epochs on the lesions that it is validated on."""
    fold = np.arange(len(labels)) % logits.shape[1]
    chosen = np.empty_like(logits)
    for network in range(logits.shape[1]):
        validated = (fold - 1) % logits.shape[1] == network
        best = np.inf
        for _ in range(population.epochs):
            step = population.sharpness * population.own / 3 * random.normal(size=logits[:, network].shape)
            epoch = logits[:, network] + step
            own = mean_of(epoch[validated][:, None])[np.arange(validated.sum()), labels[validated]]
            if (loss := -np.log(own).mean()) < best:
                best, chosen[:, network] = loss, epoch
    return chosen


def judge(probabilities: np.ndarray, labels: np.ndarray, temperature: float, threshold: float) -> dict[str, float]:
    """What a temperature and a threshold give on lesions that chose neither."""
    scaled = apply_temperature(probabilities, temperature)
    called, malignant = malignant_probability(scaled, CLASSES) >= threshold, CLASSES.is_malignant[labels]
    return {
        "temperature": temperature,
        "threshold": threshold,
        "ece": float(np.abs(weighted_gaps(scaled, labels, unit_weights(labels))).sum()),
        "sensitivity": float(called[malignant].mean()),
        "specificity": float(1 - called[~malignant].mean()),
    }


def candidates(first: np.ndarray, second: np.ndarray, labels: np.ndarray, networks: int) -> dict[str, Calibration]:
    """What may be taken for the calibration of the average of `networks`."""
    return {
        "one network's": calibrate_average(first, first, labels, CLASSES, 2, SETTINGS),
        "a mean of two's": calibrate_average(first, second, labels, CLASSES, 2, SETTINGS),
        "the release's": calibrate_average(first, second, labels, CLASSES, networks, SETTINGS),
    }


def best_of(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The temperature and the threshold that are fitted to the lesions themselves."""
    temperature = fit_temperature(probabilities, labels)
    is_malignant, sensitivity = CLASSES.is_malignant[labels], SETTINGS.target_sensitivity
    return temperature, choose_thresholds(probabilities, temperature, is_malignant, CLASSES, sensitivity)[0]


def simulate(population: Population, repeats: int = REPEATS) -> dict:
    """Cross-validations of a population; mean and standard deviation of what `judge` says of each calibration."""
    random, found, accuracy = np.random.default_rng(0), [], []
    rows, fold = np.arange(LESIONS), np.arange(LESIONS) % NETWORKS
    for _ in range(repeats):
        # One draw: the networks that an epoch is chosen of meet the fresh lesions, too.
        labels, logits = draw(random, LESIONS + FRESH, NETWORKS, population)
        if population.epochs > 1:
            of_run = _choose_epochs(random, labels[:LESIONS], logits[:LESIONS], population)
            step = population.sharpness * population.own / 3 * random.normal(size=logits[LESIONS:].shape)
            logits = np.concatenate([of_run, logits[LESIONS:] + step])
        first, second = (mean_of(logits[rows, of][:, None]) for of in (fold, (fold - 1) % NETWORKS))
        fresh, truth = mean_of(logits[LESIONS:]), labels[LESIONS:]
        judged = {
            name: judge(fresh, truth, it.temperature, it.threshold)
            for name, it in candidates(first, second, labels[:LESIONS], NETWORKS).items()
        }
        found.append(judged | {"the best there": judge(fresh, truth, *best_of(fresh, truth))})
        accuracy.append([(first.argmax(1) == labels[:LESIONS]).mean(), (fresh.argmax(1) == truth).mean()])
    return {
        "population": asdict(population),
        "accuracy": dict(zip(("one network", "average"), np.mean(accuracy, axis=0).tolist())),
        "calibrations": {
            name: {
                key: {part: float(of([each[name][key] for each in found])) for part, of in _PARTS.items()}
                for key in found[0][name]
            }
            for name in found[0]
        },
    }


_PARTS = {"mean": np.mean, "deviation": np.std}


def cross_validate(data_dir: Path, root: Path, overrides: dict[str, Any], folds: int, slots: list[str]) -> list[Fold]:
    """Run the stages for each fold, several at once, images prepared once.

    Args:
        data_dir: the dataset.
        root: an empty folder.
        overrides: of params.yaml, by dotted names.
        folds: how many.
        slots: of each run at a time, the GPU that CUDA_VISIBLE_DEVICES names; empty: none.

    Raises:
        InputError: a stage failed.
    """
    free: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for number, gpu in enumerate(slots):
        free.put((number, gpu))
    places = [root / f"fold-{fold}" for fold in range(folds)]
    for fold, place in enumerate(places):
        place.mkdir()
        own = {"data.data_dir": str(data_dir.absolute()), "split.folds": folds, "split.test_fold": fold}
        set_up(overrides | own, place)
    stage("prepare", places[0])
    for place in places[1:]:
        (place / PREPARED).parent.mkdir()
        (place / PREPARED).symlink_to(places[0].absolute() / PREPARED)

    def run_fold(place: Path) -> None:
        number, gpu = free.get()
        with tempfile.TemporaryDirectory() as locks:
            # Those that share a GPU on purpose must not wait for each other's lease of it.
            environment = {"CUDA_VISIBLE_DEVICES": gpu, "TMPDIR": locks} if gpu else {}
            for name in ("split", "train", "evaluate"):
                stage(name, place, **environment)
        for made in (PREDICTIONS, DETAILS):
            (place / PUBLISHED[made]).parent.mkdir(exist_ok=True)
            shutil.copy(place / made, place / PUBLISHED[made])
        free.put((number, gpu))

    with ThreadPoolExecutor(len(slots)) as pool_of_slots:
        list(pool_of_slots.map(run_fold, places))
    revisions = [Revision(WORKSPACE, place) for place in places]
    for revision, place in zip(revisions, places):
        revision.name = place.name
    return read_folds(revisions)


def slots_of(gpus: int, per_gpu: int) -> list[str]:
    """For each network that trains at a time the GPU that it is to use; empty: none."""
    return [str(gpu) for _ in range(per_gpu) for gpu in range(gpus)] or [""]


def stage(name: str, place: Path, *arguments: str, **environment: str) -> None:
    """Run a stage, or a command, in a folder."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    variables.pop("DVC_ROOT", None)
    command = [sys.executable, "-m", *([f"stages.{name}"] if not arguments else ["stages", name, *arguments])]
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise InputError(f"{name} failed in {place}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def with_table(data_dir: Path, folder: Path, table: pd.DataFrame) -> Path:
    """A dataset of the same image files with another metadata table."""
    folder.mkdir()
    for file in data_dir.iterdir():
        if file.suffix not in (".csv", ".tab"):
            (folder / file.name).symlink_to(file.absolute())
    table.to_csv(folder / "HAM10000_metadata.csv", index=False)
    return folder


def read_table(data_dir: Path) -> pd.DataFrame:
    """HAM10000's metadata, as text."""
    return pd.read_csv(data_dir / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)


def measure(data_dir: Path, root: Path, overrides: dict[str, Any], folds: int, slots: list[str]) -> dict:
    """Cross-validate, pool and release on four fifths of the lesions, and judge on the rest."""
    from stages.classifier.calibration import save_calibration
    from stages.classifier.weights import save_model
    from stages.experiments.release import calibrate_release, gather_networks

    table = read_table(data_dir)
    aside = assign_folds(table, KEPT, seed=0) == 0
    developed, kept = (
        with_table(data_dir, root / name, pd.DataFrame(table[part]))
        for name, part in (("rest", ~aside), ("kept", aside))
    )
    (root / "runs").mkdir()
    start = time.perf_counter()
    runs = cross_validate(developed, root / "runs", overrides, folds, slots)
    seconds = {"networks": time.perf_counter() - start}
    start, config = time.perf_counter(), runs[0].revision.config
    _, details = pool(runs, PixelStore(root / "runs/fold-0" / PREPARED), config)
    seconds["pool"] = time.perf_counter() - start
    start = time.perf_counter()
    network, description = gather_networks(runs)
    released = calibrate_release(runs, config.evaluation)
    save_model(network, description, root / "release")
    save_calibration(released, root / "release")
    seconds["release"] = time.perf_counter() - start

    place = root / "runs/fold-0"
    stage("validate", place, str(kept), "--models", str(root / "release"), "--output", str(root / "judged"))
    found = read_json(root / "judged" / DETAILS.name)
    predictions = pd.read_csv(root / "judged" / PREDICTIONS.name)
    judged = Predictions(predictions, runs[0].test.classes)
    raw, labels = uncalibrated(judged, released.temperature), judged.labels
    pooled, first, second = by_two_networks(runs)
    calibrations = {
        name: judge(raw, labels, it.temperature, it.threshold)
        for name, it in candidates(first, second, pooled.labels, folds).items()
    }
    return {
        "overrides": overrides,
        "seconds": seconds | {"all": sum(seconds.values())},
        "slots": slots,
        "kept": {key: found["test"][key] for key in ("images", "lesions")},
        "calibrations": calibrations | {"the best there": judge(raw, labels, *best_of(raw, labels))},
        # By class decisions, where `evaluation.decision` is another than the most probable class.
        **{
            name: {"metrics": of["test"]["metrics"]} | {"decided": of["test"].get("decided")}
            for name, of in (("pooled", details), ("release", found))
        },
    }


def print_calibrations(calibrations: dict[str, dict], number: Any = lambda value: value) -> None:
    """A Markdown table of what `judge` says of each calibration."""
    print("| calibration of the average | temperature | ECE | threshold | sensitivity | specificity |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, of in calibrations.items():
        cells = [f"{number(of[key]):.3f}" for key in ("temperature", "ece", "threshold", "sensitivity", "specificity")]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the calibration of a release by simulation, or on real images.")
    parser.add_argument("--simulate", action="store_true", help="draw populations; needs no data")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="cross-validations of each population")
    parser.add_argument("--data-dir", type=Path, default=Path("data/ham10000"), help="the dataset")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="how many; 0: none")
    parser.add_argument("--per-gpu", type=int, default=1, metavar="N", help="networks that share one")
    parser.add_argument("--folds", type=int, default=NETWORKS)
    parser.add_argument("--set", type=parse_value, nargs="+", default=[], metavar="NAME=VALUE", help="of params.yaml")
    args = parser.parse_args()
    if args.simulate:
        results = {}
        for name, population in POPULATIONS.items():
            results[name] = simulate(population, args.repeats)
            print(f"\n{name}: accuracy {results[name]['accuracy']}")
            print_calibrations(results[name]["calibrations"], lambda value: value["mean"])
            write_json(SIMULATED, {"repeats": args.repeats, "lesions": LESIONS, "populations": results})
        return
    slots = slots_of(args.gpus, args.per_gpu)
    overrides = RECIPE | {"model.num_classes": 7} | dict(args.set)
    with tempfile.TemporaryDirectory() as root:
        found = measure(args.data_dir, Path(root), overrides, args.folds, slots)
    write_json(MEASURED, found)
    print_calibrations(found["calibrations"])
    print(f"\n{found['kept']['lesions']} lesions kept aside; seconds {found['seconds']}\n")
    print("| metric | pooled, single networks | release, lesions kept aside |\n| --- | --- | --- |")
    for part in ("metrics", "decided"):
        for name, of in (found["pooled"][part] or {}).items():
            print(f"| {part}: {name} | {of['value']:.3f} | {found['release'][part][name]['value']:.3f} |")


if __name__ == "__main__":
    run(main)
