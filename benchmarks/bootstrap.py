"""How often the intervals of the bootstrap hold the truth, and how long 2,000 replicates take.

    python -m benchmarks.bootstrap --coverage
    python -m benchmarks.bootstrap --timing

Coverage: test sets are simulated whose population is known. A lesion has a class and one to four images; the evidence
for a class is normally distributed, correlated within the lesion, and higher for the class of the image. Probabilities
are the true ones with their logits multiplied by a sharpness: 1 is perfectly calibrated, above 1 is overconfident. The
truth of every metric is its value for half a million lesions. Beside the intervals that the pipeline gives stand the
percentiles of the same replicates, the usual interval of a bootstrap.

Timing: all headline metrics with their intervals, in a process of its own, for its memory.

Writes benchmarks/results/bootstrap.json; what was not measured stays as it is there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from multiprocessing import Pool as start_pool
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import norm

from benchmarks.plain import told_apart
from stages.evaluation.decisions import threshold_for_sensitivity
from stages.evaluation.metrics import effective_lesions_of, headline
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.uncertainty import combine, estimate
from stages.evaluation.weighted import unit_weights
from stages.files import read_json, write_json

RESULT = Path("benchmarks/results/bootstrap.json")
CONFIDENCE, GOAL = 0.95, (0.93, 0.97)
KINDS = ("score", "percentiles")  # of intervals; the first is what the pipeline gives

OF_LESION = 0.6  # part of the variance of an image's evidence
MIX = {2: (0.8, 0.2), 7: (0.033, 0.051, 0.11, 0.011, 0.111, 0.67, 0.014)}  # of lesions: for 7 classes HAM10000's
IMAGES = {2: (0.25, 0.25, 0.25, 0.25), 7: (0.73, 0.19, 0.06, 0.02)}  # shares of lesions with 1, 2, 3 and 4 images
# Of the evidence, in standard deviations: AUROC 0.9; accuracy 0.85 and balanced accuracy 0.6.
SEPARATION = {2: norm.ppf(0.9), 7: 2.0}
POPULATION = 500_000  # lesions

# Images, classes and the seconds that are allowed.
TIMED = ((2_000, 2, 10), (2_000, 7, 10), (200_000, 2, 300), (200_000, 7, 300))
TIMED_REPLICATES = 2_000
LESIONS_PER_IMAGE = 0.75  # HAM10000's


class Scenario(NamedTuple):
    """How test sets are drawn: how many lesions, the factor of the logits, and the classes."""

    lesions: int
    sharpness: float
    classes: int = 2


SCENARIOS = {
    "300 lesions, calibrated": Scenario(300, 1.0),
    "300 lesions, overconfident": Scenario(300, 1.3),
    "300 lesions, very overconfident": Scenario(300, 1.6),
    "917 lesions, calibrated": Scenario(917, 1.0),
    "917 lesions, overconfident": Scenario(917, 1.3),
    "60 lesions, calibrated": Scenario(60, 1.0),
    "7 classes, 917 lesions, calibrated": Scenario(917, 1.0, 7),
    "7 classes, 917 lesions, overconfident": Scenario(917, 1.3, 7),
    "7 classes, 300 lesions, calibrated": Scenario(300, 1.0, 7),
    "7 classes, 300 lesions, overconfident": Scenario(300, 1.3, 7),
}


def draw(scenario: Scenario, lesions: int, random: np.random.Generator) -> Predictions:
    """Draw the images of this many lesions, and what the simulated model says of them."""
    mix, separation = MIX[scenario.classes], SEPARATION[scenario.classes]
    lesion_of = np.repeat(np.arange(lesions), random.choice(4, lesions, p=IMAGES[scenario.classes]) + 1)
    labels = random.choice(scenario.classes, lesions, p=mix)[lesion_of]
    of_lesion = random.normal(size=(lesions, scenario.classes))[lesion_of]
    noise = np.sqrt(OF_LESION) * of_lesion + np.sqrt(1 - OF_LESION) * random.normal(size=of_lesion.shape)
    logits = separation * (noise + separation * np.eye(scenario.classes)[labels]) + np.log(mix)
    return _predictions(lesion_of, labels, softmax(scenario.sharpness * logits, axis=1))


def truth(scenario: Scenario) -> tuple[dict[str, float], float]:
    """The metrics of the population, and the threshold at or above which 90 % of its malignant images lie."""
    population = draw(scenario, POPULATION, np.random.default_rng(0))
    threshold = threshold_for_sensitivity(population.malignant_probability, population.is_malignant, 0.9)
    numbers = headline(population, threshold)(unit_weights(population.table))
    return {name: float(combine(name, value[0])) for name, value in numbers.items()}, threshold


def intervals(
    scenario: Scenario, threshold: float, replicates: int, seed: tuple[int, int]
) -> dict[str, tuple[float, dict]]:
    """The value of each metric in one test set, and its interval by each of `KINDS`."""
    test = draw(scenario, scenario.lesions, np.random.default_rng(seed))
    statistic, drawn = headline(test, threshold), []

    def recorded(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn.append(statistic(weights))
        return drawn[-1]

    numbers = estimate(recorded, test.lesions, replicates, CONFIDENCE, effective_lesions_of(test))
    of_replicates = {name: np.concatenate([part[name] for part in drawn[1:]]) for name in numbers}  # [0]: the test set
    tails = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    return {
        name: (
            number["value"],
            {"score": number["interval"], "percentiles": np.nanpercentile(combine(name, of_replicates[name]), tails)},
        )
        for name, number in numbers.items()
    }


def measure_coverage(number: int, scenario: Scenario, datasets: int, replicates: int, pool: Pool) -> dict:
    """By metric the truth, the mean of its values and, of each of `KINDS`, the share of intervals that hold it."""
    true, threshold = truth(scenario)
    drawn = pool.map(
        partial(intervals, scenario, threshold, replicates), [(number, seed) for seed in range(datasets)], chunksize=5
    )
    metrics = {}
    for name, expected in true.items():
        metrics[name] = {"truth": expected, "mean_value": float(np.mean([each[name][0] for each in drawn]))}
        for kind in KINDS:
            low, high = np.array([each[name][1][kind] for each in drawn]).T
            too_high, too_low = low > expected, high < expected
            metrics[name][kind] = {
                "coverage": float((~too_high & ~too_low).mean()),
                "too_high": float(too_high.mean()),
                "too_low": float(too_low.mean()),
                "mean_width": float((high - low).mean()),
            }
    return {**scenario._asdict(), "datasets": datasets, "replicates": replicates, "metrics": metrics}


def _predictions(lesions: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    told = told_apart(probabilities.shape[1])
    images = pd.DataFrame({"image_id": np.arange(len(labels)).astype(str), "lesion_id": lesions.astype(str)})
    names = [told.names[label] for label in labels]
    return Predictions(predictions_table(images, "test", names, probabilities, told), told)


def measure_time(images: int, classes: int) -> dict:
    """Seconds and memory of all headline metrics with their intervals, as `evaluate` computes them, in this process."""
    random = np.random.default_rng(0)
    labels = random.choice(classes, images, p=MIX[classes])
    logits = random.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    lesions = np.sort(random.integers(int(LESIONS_PER_IMAGE * images), size=images))
    test = _predictions(lesions, labels, softmax(logits, axis=1))
    load = os.getloadavg()[0]
    memory = _peak_memory()
    start, start_of_work = time.perf_counter(), time.process_time()
    effective = effective_lesions_of(test)
    numbers = estimate(headline(test, 0.3), test.lesions, TIMED_REPLICATES, CONFIDENCE, effective)
    return {
        "seconds": time.perf_counter() - start,
        "seconds_of_work": time.process_time() - start_of_work,
        "metrics": len(numbers),
        "load_before": load,
        "memory_before_mb": memory,
        "memory_added_mb": _peak_memory() - memory,
    }


def _peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def coverage(part: str, datasets: int, replicates: int, processes: int) -> dict:
    """Measure and print the coverage of every scenario whose name starts with `part`."""
    results = {}
    with start_pool(processes) as pool:
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            if not name.startswith(part):
                continue
            start = time.perf_counter()
            results[name] = measure_coverage(number, scenario, datasets, replicates, pool)
            print(f"{name} ({time.perf_counter() - start:.0f} s): {CONFIDENCE:.0%} intervals that hold the truth")
            print(f"  {'':26}{'truth':>8}{'mean':>8}{'score':>9}{'too high':>10}{'too low':>9}{'percentiles':>13}")
            for metric, found in results[name]["metrics"].items():
                held = found["score"]
                outside = "" if GOAL[0] <= held["coverage"] <= GOAL[1] else "  outside the goal"
                print(
                    f"  {metric:26}{found['truth']:8.3f}{found['mean_value']:8.3f}{held['coverage']:9.1%}"
                    f"{held['too_high']:10.1%}{held['too_low']:9.1%}{found['percentiles']['coverage']:13.1%}{outside}",
                    flush=True,
                )
    return results


def timing() -> dict:
    """Measure and print every size of test set, each in a fresh process."""
    results = {}
    for images, classes, allowed in TIMED:
        command = [sys.executable, "-m", "benchmarks.bootstrap", "--time-one", str(images), str(classes)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        measured = json.loads(output)
        results[f"{images} images, {classes} classes"] = measured | {"seconds_allowed": allowed}
        print(
            f"{images} images, {classes} classes: {measured['metrics']} metrics in {measured['seconds']:.1f} s"
            f" ({measured['seconds_of_work']:.1f} s of work, {allowed} s allowed),"
            f" {measured['memory_added_mb']:.0f} MB, load before {measured['load_before']:.1f}",
            flush=True,
        )
    return {"replicates": TIMED_REPLICATES, "sizes": results}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the coverage and the speed of the bootstrap.")
    parser.add_argument("--coverage", action="store_true", help="measure how often intervals hold the truth")
    parser.add_argument("--timing", action="store_true", help="measure how long 2,000 replicates take")
    parser.add_argument("--scenario", default="", help="start of the names of those to simulate (default: all)")
    parser.add_argument("--datasets", type=int, default=1000, help="simulated test sets a scenario (default: 1000)")
    parser.add_argument("--replicates", type=int, default=1000, help="of each simulated bootstrap (default: 1000)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="of the simulation (default: one per core)"
    )
    parser.add_argument("--time-one", type=int, nargs=2, metavar=("IMAGES", "CLASSES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_one:
        print(json.dumps(measure_time(*args.time_one)))
        return
    if not (args.coverage or args.timing):
        parser.error("choose --coverage, --timing or both")

    results = read_json(RESULT) if RESULT.exists() else {}
    if args.coverage:
        measured = coverage(args.scenario, args.datasets, args.replicates, args.processes)
        results["coverage"] = results.get("coverage", {}) | measured
    if args.timing:
        results["timing"] = timing()
    from stages.classifier.hardware import processor  # takes seconds to import

    results["hardware"] = {"cpu": processor(), "cores": os.cpu_count()}
    results["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pandas", "scipy")},
    }
    write_json(RESULT, results)


if __name__ == "__main__":
    main()
