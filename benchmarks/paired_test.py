"""How often the paired test of `stages.commands.compare` calls two equal models different, and finds a real difference.

    python -m benchmarks.paired_test

Test sets are simulated: lesions with one to four images, whose errors are correlated within a lesion and between the
two models. Under the null hypothesis both models are drawn in the same way, so that neither is better; the share of
test sets with p < 0.05 is the rate of false positives. Beside it stands the rate of the percentile p-value, the usual
one of the bootstrap, from the same replicates. In one more scenario the second model is really better.

Writes benchmarks/results/paired_test.json.
"""

import argparse
import os
import platform
import time
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import Pool as start_pool
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from benchmarks.plain import told_apart
from stages.evaluation.comparison import Pair, holm, paired_headline, paired_test
from stages.evaluation.decisions import threshold_for_sensitivity
from stages.evaluation.predictions import Predictions, malignant_probability, predictions_table
from stages.files import write_json

RESULT = Path("benchmarks/results/paired_test.json")
LEVEL, BAND = 0.05, 0.015
KINDS = ("paired test", "Holm", "percentiles")  # of p-values
ANY_METRIC = "any metric"
TARGET_SENSITIVITY = 0.9
IMAGES_PER_LESION = (0.74, 0.19, 0.06, 0.01)  # shares of one, two, three and four: HAM10000's
HAM10000_MIX = (0.03, 0.045, 0.097, 0.01, 0.082, 0.723, 0.013)  # of lesions, in the order of `told_apart(7).names`
OF_LESION, OF_IMAGE = 0.6, 0.4  # parts of the variance of an image's evidence


class Scenario(NamedTuple):
    """How test sets are drawn.

    Attributes:
        lesions: of a test set.
        mix: the share of each class among them.
        separation: of the evidence for an image's own class, in standard deviations.
        shared: the part of the evidence's variance that both models see.
        sharpness: factor of the logits; 1 is perfectly calibrated, above 1 is overconfident.
        gain: how much larger the separation of the second model is.
        band: whether the rates have to lie within `BAND` of `LEVEL`, or are only recorded.
        part: of the number of test sets; large ones take long.
    """

    lesions: int
    mix: tuple[float, ...]
    separation: float = 1.3
    shared: float = 0.7
    sharpness: float = 1.3
    gain: float = 0.0
    band: bool = False
    part: float = 1.0


SCENARIOS = {
    "two classes": Scenario(300, (0.8, 0.2), band=True),
    "two classes, models that agree less": Scenario(300, (0.8, 0.2), shared=0.3, band=True),
    "two classes, models that agree more": Scenario(300, (0.8, 0.2), shared=0.9, band=True),
    "two classes, as many lesions as data/sample holds out": Scenario(57, (0.65, 0.35)),
    "seven classes, as many lesions as a fold of HAM10000": Scenario(1067, HAM10000_MIX, separation=2.0, part=0.5),
    "seven classes, three lesions of the rarest": Scenario(300, HAM10000_MIX, separation=2.0, part=0.25),
    "two classes, the second model is better": Scenario(300, (0.8, 0.2), gain=0.35),
}


def draw(scenario: Scenario, lesions: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a test set of n images.

    Returns:
        Lesions, shape (n,), labels, shape (n,), and the probabilities of both models, shape (2, n, classes).
    """
    classes = len(scenario.mix)
    lesion_of = np.repeat(np.arange(lesions), random.choice(4, lesions, p=IMAGES_PER_LESION) + 1)
    labels = random.choice(classes, lesions, p=scenario.mix)[lesion_of]

    def evidence(models: int) -> np.ndarray:
        of_lesion = random.normal(size=(models, lesions, classes))[:, lesion_of]
        return np.sqrt(OF_LESION) * of_lesion + np.sqrt(OF_IMAGE) * random.normal(size=of_lesion.shape)

    noise = np.sqrt(scenario.shared) * evidence(1) + np.sqrt(1 - scenario.shared) * evidence(2)
    separation = scenario.separation + np.array([0, scenario.gain])[:, None, None]
    logits = separation * (noise + separation * np.eye(classes)[labels]) + np.log(scenario.mix)
    return lesion_of, labels, softmax(scenario.sharpness * logits, axis=2)


@cache
def thresholds(scenario: Scenario) -> tuple[float, float]:
    """The decision thresholds of both models, from many lesions; equal models have one, or they were not equal."""
    _, labels, probabilities = draw(scenario, 100_000, np.random.default_rng(0))
    told = told_apart(len(scenario.mix))
    is_malignant = told.is_malignant[labels]
    first, second = (
        threshold_for_sensitivity(malignant_probability(own, told), is_malignant, TARGET_SENSITIVITY)
        for own in probabilities
    )
    return first, second if scenario.gain else first


def percentile_p(pair: Pair) -> float:
    """The usual p-value of a bootstrap: twice the share of the replicates at or beyond 0, which counts as one more."""
    drawn = pair.drawn[np.isfinite(pair.drawn)]
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))


def p_values(scenario: Scenario, replicates: int, seed: tuple[int, int]) -> dict[str, list[float]]:
    """p-values of one test set: the paired test's, adjusted by Holm, and of the percentiles, by metric."""
    lesion_of, labels, probabilities = draw(scenario, scenario.lesions, np.random.default_rng(seed))
    told = told_apart(len(scenario.mix))
    images = pd.DataFrame({"image_id": np.arange(len(labels)), "lesion_id": lesion_of})
    base, new = (
        Predictions(predictions_table(images, "test", [told.names[label] for label in labels], own, told), told)
        for own in probabilities
    )
    pairs = paired_headline(base, new, thresholds(scenario), replicates)
    p = [paired_test(pair, 1 - LEVEL)["p"] for pair in pairs.values()]
    percentiles = map(percentile_p, pairs.values())
    return {name: list(values) for name, *values in zip(pairs, p, holm(p), percentiles)}


def measure(number: int, scenario: Scenario, datasets: int, replicates: int, pool: Pool) -> dict:
    """The shares of the test sets with a p-value below `LEVEL`."""
    start, count = time.perf_counter(), round(scenario.part * datasets)
    seeds = [(number, seed) for seed in range(count)]
    tested = pool.map(partial(p_values, scenario, replicates), seeds, chunksize=5)
    below = np.array([list(of.values()) for of in tested]) < LEVEL  # test set, metric, kind of p-value
    rates = dict(zip([*tested[0], ANY_METRIC], [*below.mean(axis=0), below.any(axis=1).mean(axis=0)]))
    return {
        **scenario._asdict(),
        "rates": {name: dict(zip(KINDS, kinds.tolist())) for name, kinds in rates.items()},
        "outside_the_band": [name for name in tested[0] if abs(rates[name][0] - LEVEL) > BAND],
        "datasets": count,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the false positives and the power of the paired test.")
    parser.add_argument("--datasets", type=int, default=2000, help="simulated test sets of a scenario (default: 2000)")
    parser.add_argument("--replicates", type=int, default=500, help="of each bootstrap (default: 500)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(default: one per core)")
    args = parser.parse_args()

    results = {}
    with start_pool(args.processes) as pool:
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            results[name] = measure(number, scenario, args.datasets, args.replicates, pool)
            print(f"{name} ({results[name]['seconds']:.0f} s): p < {LEVEL} in a share of", flush=True)
            print(f"  {'':26}" + "".join(f"{kind:>12}" for kind in KINDS))
            for metric, rates in results[name]["rates"].items():
                print(f"  {metric:26}" + "".join(f"{rate:12.3f}" for rate in rates.values()))
            if scenario.band:
                print(f"  outside {LEVEL} ± {BAND}: {', '.join(results[name]['outside_the_band']) or 'none'}")
    from stages.classifier.hardware import processor  # takes seconds to import

    write_json(
        RESULT,
        {
            "command": "python -m benchmarks.paired_test",
            "datasets": args.datasets,
            "replicates": args.replicates,
            "scenarios": results,
            "hardware": {"cpu": processor(), "cores": os.cpu_count()},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "pandas", "scipy")},
            },
        },
    )


if __name__ == "__main__":
    main()
