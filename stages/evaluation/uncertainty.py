"""How far a number measured on a test set may be from that of its population: a bootstrap over lesions.

Images of one lesion are not independent, so lesions are drawn, not images (cluster bootstrap: Davison & Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). A replicate is a weight for each image, how often its
lesion was drawn, and a statistic computes its numbers for many replicates at once from the weights. With every weight 1
it gives the numbers of the test set itself, so that value and interval come from one formula.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

SEED = 0  # of the draws; the intervals are results, and results can be produced again
# Weights of so many images are held at once, 16 MB of float64 however large the test set: what is computed from them
# then fits into memory that is used again and again, which is several times as fast as fresh memory.
_CHUNK = 2_000_000

# From weights, shape (replicates, images), to arrays of shape (replicates,) or (replicates, k) by name; NaN where a
# replicate has no such number.
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


def lesion_weights(lesions: np.ndarray, replicates: int) -> Iterator[np.ndarray]:
    """Draw as many lesions as there are, with replacement, `replicates` times.

    Args:
        lesions: the lesion of each image, shape (n,).
        replicates: how often.

    Returns:
        Weights of the images, shape (some replicates, n) each time, until there are `replicates`; the same ones in
        every call, so that numbers of two models or two groups can be compared draw by draw.
    """
    random = np.random.default_rng(SEED)
    names, lesion_of = np.unique(np.asarray(lesions), return_inverse=True)
    at_once = max(1, _CHUNK // len(lesion_of))
    for start in range(0, replicates, at_once):
        # One replicate at a time, so that the draws do not depend on how many fit into memory.
        drawn = [
            np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(start, min(start + at_once, replicates))
        ]
        # The replicates of an image lie side by side: images are put in order far faster so.
        yield np.take(np.stack(drawn, axis=1).astype(np.float64), lesion_of, axis=0).T


def replicate(statistic: Statistic, lesions: np.ndarray, replicates: int) -> dict[str, np.ndarray]:
    """The numbers of every replicate: shape (replicates,) or (replicates, k) by name."""
    chunks = [statistic(weights) for weights in lesion_weights(lesions, replicates)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def estimate(
    statistic: Statistic,
    lesions: np.ndarray,
    replicates: int,
    confidence: float,
    gaps: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> dict:
    """Every number of a statistic with its percentile interval.

    Args:
        statistic: what is measured.
        lesions: the lesion of each image, shape (n,).
        replicates: of the bootstrap.
        confidence: the share of the replicates inside an interval, as 0.95.
        gaps: by the names of numbers that are sums of absolute gaps, as a calibration error is: what gives the gaps,
            with their signs, of shape (replicates, k) for weights. Their intervals are those of `_interval_of_gaps`.

    Returns:
        By name `{"value": number, "interval": [low, high]}`, or a list of them where the statistic has k numbers of a
        name. Both are None where there is no value; replicates without a value are left out of an interval.
    """
    lesions = np.asarray(lesions)
    once = np.ones((1, len(lesions)))
    values, drawn = statistic(once), replicate(statistic, lesions, replicates)
    numbers = {name: describe(values[name][0], drawn[name], confidence) for name in values}
    for name, gap in (gaps or {}).items():
        signed = replicate(lambda weights, gap=gap: {"gaps": gap(weights)}, lesions, replicates)["gaps"]
        numbers[name]["interval"] = _interval_of_gaps(gap(once)[0], signed, confidence)
    return numbers


def describe(value: np.ndarray, drawn: np.ndarray, confidence: float) -> dict | list[dict]:
    """A number, or k of them, with the interval that its replicates give: what `estimate` returns by name.

    Args:
        value: shape () or (k,).
        drawn: shape (replicates,) or (replicates, k).
        confidence: as 0.95.
    """
    if np.ndim(value):
        return [describe(*column, confidence) for column in zip(value, drawn.T)]
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(known):
        return {"value": None, "interval": None}
    return {"value": float(value), "interval": np.percentile(known, _tails(confidence)).tolist()}


def _tails(confidence: float) -> list[float]:
    """The percentiles that bound an interval."""
    return [50 * (1 - confidence), 50 * (1 + confidence)]


def _interval_of_gaps(gaps: np.ndarray, drawn: np.ndarray, confidence: float) -> list[float]:
    """An interval of the sum of absolute gaps.

    Chance never makes such a sum smaller than it is where all gaps are 0, so the replicates are too large, as is the
    value: their percentiles say of a perfectly calibrated model, every time, that it is not. Therefore the upper bound
    lies as far above the value as the upper percentile above the mean of the replicates, and the lower bound as far
    below it as that percentile lies above the value; it is 0 where gaps so wide might come from chance alone, which is
    what the distances of the replicates' gaps from the value's tell. benchmarks/README.md has the coverage.

    Args:
        gaps: shape (k,).
        drawn: those of the replicates, shape (replicates, k).
        confidence: as 0.95.
    """
    value, sums = np.abs(gaps).sum(), np.abs(drawn).sum(axis=1)
    _, upper = np.percentile(sums, _tails(confidence))
    _, by_chance = np.percentile(np.abs(drawn - gaps).sum(axis=1), _tails(confidence))
    low = 0.0 if value <= by_chance else max(0.0, 2 * value - upper)
    return [float(low), float(value + upper - sums.mean())]
