"""How often the intervals of the bootstrap hold the truth, and how long 2,000 replicates take.

    python -m benchmarks.bootstrap --coverage
    python -m benchmarks.bootstrap --timing

Coverage: test sets are simulated whose population is known. A lesion is malignant with the chance 0.2; each of its one
to four images has a normally distributed score, correlated within the lesion, with an AUROC of 0.9. Probabilities are
the score's true ones with their logits multiplied by a sharpness: 1 is perfectly calibrated, above 1 is overconfident.
The truth of every metric is an integral over the two normal distributions. Beside the intervals that the pipeline
gives stand the percentiles of the same replicates, the usual interval of a bootstrap, and the score intervals of a
bootstrap over images, which takes images of one lesion for independent.

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
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax
from scipy.stats import norm

from stages.dataset.taxonomy import class_names
from stages.evaluation.calibration import CONFIDENCE_BINS, weighted_calibration, weighted_gaps
from stages.evaluation.metrics import headline
from stages.evaluation.predictions import Predictions, predictions_table
from stages.evaluation.uncertainty import count_lesions, estimate, lesions_behind, range_of, replicate, score_interval
from stages.files import read_json, write_json

RESULT = Path("benchmarks/results/bootstrap.json")
CONFIDENCE, GOAL = 0.95, (0.93, 0.97)
KINDS = ("lesions", "percentiles", "images")  # of intervals; the first is what the pipeline gives

PREVALENCE, AUROC = 0.2, 0.9
SEPARATION = np.sqrt(2) * norm.ppf(AUROC)  # of the scores of malignant and benign images, in standard deviations
OF_LESION = 0.6  # part of the variance of an image's score
DECIDED_AT = SEPARATION - norm.ppf(0.9)  # the score from which on 90 % of the malignant images lie

# Images, classes and the seconds that are allowed.
TIMED = ((2_000, 2, 10), (2_000, 7, 10), (200_000, 2, 300), (200_000, 7, 300))
TIMED_REPLICATES = 2_000
MIX = {2: (0.8, 0.2), 7: (0.033, 0.051, 0.11, 0.011, 0.111, 0.67, 0.014)}  # of images: for 7 classes HAM10000's
LESIONS_PER_IMAGE = 0.75  # HAM10000's


class Scenario(NamedTuple):
    """How test sets are drawn: how many lesions, and the factor of the logits."""

    lesions: int
    sharpness: float


SCENARIOS = {
    "300 lesions, calibrated": Scenario(300, 1.0),
    "300 lesions, overconfident": Scenario(300, 1.3),
    "300 lesions, very overconfident": Scenario(300, 1.6),
    "1200 lesions, calibrated": Scenario(1200, 1.0),
    "1200 lesions, overconfident": Scenario(1200, 1.3),
    "60 lesions, calibrated": Scenario(60, 1.0),
}


def probability(score: np.ndarray, sharpness: float) -> np.ndarray:
    """The probability of malignancy that the simulated model gives images of these scores."""
    return expit(sharpness * (logit(PREVALENCE) + SEPARATION * (score - SEPARATION / 2)))


def truth(sharpness: float) -> dict[str, float]:
    """The metrics of the population, by numerical integration over the score."""
    score = np.linspace(-8, 11, 1_000_001)
    malignant = PREVALENCE * norm.pdf(score, SEPARATION) * (score[1] - score[0])
    benign = (1 - PREVALENCE) * norm.pdf(score) * (score[1] - score[0])
    told = probability(score, sharpness)

    called = told > 0.5
    found, alarms = malignant[called].sum(), benign[called].sum()
    sensitivity, specificity = found / PREVALENCE, 1 - alarms / (1 - PREVALENCE)
    precision = malignant[::-1].cumsum()[::-1] / (malignant + benign)[::-1].cumsum()[::-1]

    confidence, right = np.maximum(told, 1 - told), np.where(called, malignant, benign)
    bins = np.ceil(confidence * CONFIDENCE_BINS).astype(int)
    return {
        "accuracy": found + 1 - PREVALENCE - alarms,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": found / (found + alarms),
        "f1": 2 * found / (found + alarms + PREVALENCE),
        "auroc": AUROC,
        "auprc": (malignant * precision).sum() / PREVALENCE,
        "sensitivity_at_threshold": norm.sf(DECIDED_AT, SEPARATION),
        "specificity_at_threshold": norm.cdf(DECIDED_AT),
        "ece": np.abs(np.bincount(bins, confidence * (malignant + benign) - right)).sum(),
        "brier": (malignant * (1 - told) ** 2 + benign * told**2).sum(),
        "nll": -(malignant * np.log(told) + benign * np.log1p(-told)).sum(),
    }


def draw(scenario: Scenario, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a test set of n images: lesions, shape (n,), labels, shape (n,), and probabilities, shape (n, 2)."""
    lesion_of = np.repeat(np.arange(scenario.lesions), random.integers(1, 5, scenario.lesions))
    labels = (random.random(scenario.lesions) < PREVALENCE).astype(int)[lesion_of]
    of_lesion = random.normal(size=scenario.lesions)[lesion_of]
    of_image = random.normal(size=len(lesion_of))
    score = SEPARATION * labels + np.sqrt(OF_LESION) * of_lesion + np.sqrt(1 - OF_LESION) * of_image
    malignant = probability(score, scenario.sharpness)
    return lesion_of, labels, np.stack([1 - malignant, malignant], axis=1)


def intervals(scenario: Scenario, replicates: int, seed: tuple[int, int]) -> dict[str, tuple[float, dict]]:
    """The value of each metric in one test set, and its interval by each of `KINDS`."""
    lesion_of, labels, probabilities = draw(scenario, np.random.default_rng(seed))
    statistic = headline(_predictions(lesion_of, labels, probabilities), probability(DECIDED_AT, scenario.sharpness))
    value = {name: number[0] for name, number in statistic(np.ones((1, len(labels)))).items()}
    counts, image_counts = (count_lesions(drawn, labels == 1) for drawn in (lesion_of, np.arange(len(labels))))
    of_lesions, of_images = (replicate(statistic, drawn, replicates) for drawn in (lesion_of, np.arange(len(labels))))
    found = {
        name: {
            "lesions": score_interval(
                number, of_lesions[name], CONFIDENCE, lesions_behind(name, *counts), range_of(name)
            ),
            "percentiles": np.nanpercentile(of_lesions[name], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]),
            "images": score_interval(
                number, of_images[name], CONFIDENCE, lesions_behind(name, *image_counts), range_of(name)
            ),
        }
        for name, number in value.items()
    }
    errors, gaps = (partial(kind, probabilities, labels) for kind in (weighted_calibration, weighted_gaps))
    ece = estimate(errors, lesion_of, replicates, CONFIDENCE, lambda _: scenario.lesions, {"ece": gaps})["ece"]
    found["ece"]["lesions"] = ece["interval"]
    return {name: (value[name], found[name]) for name in value}


def measure_coverage(number: int, scenario: Scenario, datasets: int, replicates: int, pool: Pool) -> dict:
    """By metric the truth, the mean of its values and, of each of `KINDS`, the share of intervals that hold it."""
    true = truth(scenario.sharpness)
    drawn = pool.map(
        partial(intervals, scenario, replicates), [(number, seed) for seed in range(datasets)], chunksize=5
    )
    metrics = {}
    for name, expected in true.items():
        metrics[name] = {"truth": float(expected), "mean_value": float(np.mean([each[name][0] for each in drawn]))}
        for kind in KINDS:
            low, high = np.array([each[name][1][kind] for each in drawn]).T
            too_high, too_low = low > expected + 1e-9, high < expected - 1e-9
            metrics[name][kind] = {
                "coverage": float((~too_high & ~too_low).mean()),
                "too_high": float(too_high.mean()),
                "too_low": float(too_low.mean()),
                "mean_width": float((high - low).mean()),
            }
    return {**scenario._asdict(), "metrics": metrics}


def _predictions(lesions: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    names = class_names(probabilities.shape[1])
    images = pd.DataFrame({"image_id": np.arange(len(labels)).astype(str), "lesion_id": lesions.astype(str)})
    return Predictions(predictions_table(images, "test", [names[label] for label in labels], probabilities), names)


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
    gaps = {"ece": partial(weighted_gaps, test.probabilities, labels)}
    counts = count_lesions(test.lesions, test.is_malignant)

    def behind(name: str) -> int:
        return lesions_behind(name, *counts)

    numbers = estimate(headline(test, 0.3), test.lesions, TIMED_REPLICATES, CONFIDENCE, behind, gaps)
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


def coverage(datasets: int, replicates: int, processes: int) -> dict:
    """Measure and print the coverage of every scenario."""
    results = {}
    with Pool(processes) as pool:
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            start = time.perf_counter()
            results[name] = measure_coverage(number, scenario, datasets, replicates, pool)
            print(f"{name} ({time.perf_counter() - start:.0f} s): {CONFIDENCE:.0%} intervals that hold the truth")
            heads = (
                f"{'truth':>8}{'mean':>8}{'lesions':>9}{'too high':>10}{'too low':>9}{'percentiles':>13}{'images':>8}"
            )
            print(f"  {'':26}{heads}")
            for metric, found in results[name]["metrics"].items():
                held = found["lesions"]
                print(
                    f"  {metric:26}{found['truth']:8.3f}{found['mean_value']:8.3f}{held['coverage']:9.1%}"
                    f"{held['too_high']:10.1%}{held['too_low']:9.1%}{found['percentiles']['coverage']:13.1%}{found['images']['coverage']:8.1%}",
                    flush=True,
                )
            share = results[name]["metrics"]["auroc"]["lesions"]["coverage"]
            print(f"  AUROC {'within' if GOAL[0] <= share <= GOAL[1] else 'OUTSIDE'} {GOAL[0]:.0%} to {GOAL[1]:.0%}")
    return {"datasets": datasets, "replicates": replicates, "scenarios": results}


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
    parser.add_argument("--datasets", type=int, default=1000, help="simulated test sets a scenario (default: 1000)")
    parser.add_argument("--replicates", type=int, default=1000, help="of each simulated bootstrap (default: 1000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the simulation (default: one a core)")
    parser.add_argument("--time-one", type=int, nargs=2, metavar=("IMAGES", "CLASSES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_one:
        print(json.dumps(measure_time(*args.time_one)))
        return
    if not (args.coverage or args.timing):
        parser.error("choose --coverage, --timing or both")

    results = read_json(RESULT) if RESULT.exists() else {}
    if args.coverage:
        results["coverage"] = coverage(args.datasets, args.replicates, args.processes)
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
