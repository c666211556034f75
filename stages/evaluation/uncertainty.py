"""How far a number measured on a test set may be from that of its population: a bootstrap over lesions.

Images of one lesion are not independent, so lesions are drawn, not images (cluster bootstrap: Davison & Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). A replicate is a weight for each image, how often its
lesion was drawn, and a statistic computes its numbers for many replicates at once from the weights. With every weight 1
it gives the numbers of the test set itself, so that value and interval come from one formula.

The replicates give a number's standard error; `score_interval` makes an interval of it that allows for few lesions and
for a number near the end of its range. The percentiles of the replicates do not: they miss too often, nearly always on
one side (benchmarks/README.md has the coverage of both).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from stages.evaluation.calibration import LARGEST_NLL
from stages.evaluation.weighted import DECIDED, is_mean_over_classes, mean_over_classes, unit_weights

SEED = 0  # of the draws; the intervals are results, and results can be produced again
# Weights of this many images are held at once, 2 MB of float64: what is computed from them stays in a core's cache,
# which is two to three times as fast. But of a few replicates, which lie side by side in memory.
_CHUNK, _FEWEST = 250_000, 8

# From weights, shape (replicates, images), to arrays of shape (replicates,) or (replicates, k) by name, as those of
# `weighted_metrics` and `weighted_calibration`; NaN where a replicate has no such number.
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]
Lesions = float | np.ndarray  # how many a number rests on, or each of several; degrees of freedom need not be whole
EffectiveLesions = Callable[[str], Lesions]  # by the name of a number

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # ranges: of most numbers, and of their differences
_MEANS_OVER_IMAGES = ("accuracy", "ece", "brier", "nll")
# Digits of a number that are more than rounding errors: a perfect AUROC may come out as 1 - 1e-16.
DIGITS = 12


@lru_cache(maxsize=2)  # an evaluation needs them twenty times
def _draws(lesions: int, replicates: int, at_once: int) -> list[np.ndarray]:
    """How often each lesion is drawn: uint16, each of shape (lesions, `at_once` replicates or what is left)."""
    random, chunks = np.random.default_rng(SEED), []
    for start in range(0, replicates, at_once):
        # One replicate at a time, so that the draws do not depend on how many fit into memory.
        drawn = [
            np.bincount(random.integers(lesions, size=lesions), minlength=lesions)
            for _ in range(start, min(start + at_once, replicates))
        ]
        # The replicates of an image lie side by side: images are put in order far faster so.
        chunks.append(np.stack(drawn, axis=1, dtype=np.uint16, casting="unsafe"))
    return chunks


def replicate(statistic: Statistic, lesions: np.ndarray, replicates: int) -> dict[str, np.ndarray]:
    """Draw as many lesions as there are, with replacement, `replicates` times.

    Args:
        statistic: what is computed of some replicates.
        lesions: the lesion of each image, shape (n,).
        replicates: how often.

    Returns:
        The numbers of every replicate: shape (replicates,) or (replicates, k) by name. The draws are the same ones in
        every call, so that numbers of two models or two groups can be compared draw by draw.
    """
    names, lesion_of = np.unique(np.asarray(lesions), return_inverse=True)
    at_once = max(_FEWEST, _CHUNK // len(lesion_of))
    # So small products are slower in several threads: a fifth of a second for HAM10000's test fold becomes a half.
    with threadpool_limits(1, "blas"):
        chunks = [
            statistic(np.take(drawn.astype(np.float64), lesion_of, axis=0).T)
            for drawn in _draws(len(names), replicates, at_once)
        ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def measure(statistic: Statistic, lesions: np.ndarray, replicates: int) -> tuple[dict, dict]:
    """The numbers of the test set itself, of shape () or (k,), and of its replicates, as `replicate` gives them."""
    values = {name: number for name, (number,) in statistic(unit_weights(lesions)).items()}
    return values, replicate(statistic, lesions, replicates)


def count_lesions(lesions: np.ndarray, is_positive: np.ndarray) -> tuple[int, int, int]:
    """How many lesions there are: all, positive ones and negative ones.

    Args:
        lesions: the lesion of each image, shape (n,).
        is_positive: bool, shape (n,): malignant, or of a class.
    """
    return len(np.unique(lesions)), len(np.unique(lesions[is_positive])), len(np.unique(lesions[~is_positive]))


def effective_lesions(metric: str, total: Lesions, positive: Lesions, negative: Lesions) -> Lesions:
    """How many lesions a metric rests on: all for a mean over images, else those of the rarer kind.

    At least 1, also of a metric that has no value. Of means over classes: of the number of each class, all counts of
    shape (classes,).
    """
    metric = metric.removeprefix(DECIDED).removeprefix("macro_")
    if metric.startswith(("sensitivity", "balanced_accuracy")):
        return np.maximum(1, positive)
    if metric.startswith("specificity"):
        return np.maximum(1, negative)
    return np.maximum(1, total if metric in _MEANS_OVER_IMAGES else np.minimum(positive, negative))


def combine_classes(drawn: np.ndarray, lesions: Lesions) -> tuple[np.ndarray, float]:
    """The replicates of a mean over classes, and the lesions that it rests on, for `score_interval`.

    The sum of a few variances, most of it often of the rarest classes, is known no better than theirs: its degrees of
    freedom are (Σ v)² / Σ (v² / (m − 1)) for classes with the variances v and m lesions (Welch, Biometrika 34:28, 1947;
    Satterthwaite, Biometrics Bulletin 2:110, 1946). Each v is m / (m − 1) times the variance of the replicates, as in
    `score_interval`, so what they draw of a rare class is spread by so much.

    Args:
        drawn: shape (replicates, classes); NaN where one has no such number.
        lesions: of each class, shape (classes,).

    Returns:
        Replicates of the mean, shape (replicates,), and one more than the degrees of freedom.
    """
    counts, known = np.asarray(lesions), np.isfinite(drawn)
    if (counts[known.any(axis=0)] < 2).all():
        return mean_over_classes(drawn), 1
    spread = np.where(known, drawn - mean_over_classes(drawn.T)[None], 0)
    others = np.maximum(counts - 1, 1)
    variance = (spread**2).sum(axis=0) / np.maximum(known.sum(axis=0), 1) * (others + 1) / others
    if not variance.round(DIGITS).any():  # none shows an error: as if it were the same of every lesion
        variance = known.any(axis=0) / others
    degrees = float(variance.sum() ** 2 / (variance**2 / others).sum())
    # What `score_interval` adds for the lesions of the mean is removed again.
    factor = np.sqrt((others + 1) / others * degrees / (degrees + 1))
    return mean_over_classes(drawn + spread * (factor - 1)), 1 + degrees


def range_of(metric: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have."""
    # The Brier score of diagnoses; that two classes have half of it changes no bound that can be seen.
    return {"brier": (0.0, 2.0), "nll": (0.0, LARGEST_NLL)}.get(metric, SHARE)


def combine(metric: str, parts: np.ndarray) -> np.ndarray:
    """A metric from what `weighted_metrics` or `weighted_calibration` give: of the last axis, where it has parts."""
    if metric == "ece":
        return np.abs(parts).sum(axis=-1)
    return mean_over_classes(parts) if is_mean_over_classes(metric) else parts


def estimate(
    statistic: Statistic,
    lesions: np.ndarray,
    replicates: int,
    confidence: float,
    effective: EffectiveLesions,
    bounds: tuple[float, float] | None = None,
) -> dict:
    """Every number of a statistic with its interval.

    Args:
        statistic: what is measured.
        lesions: the lesion of each image, shape (n,).
        replicates: of the bootstrap.
        confidence: as 0.95.
        effective: how many lesions a number rests on, by its name; one for all, or of shape (k,).
        bounds: the least and the largest value that all the numbers can have, such as `DIFFERENCE`; None: those of
            `range_of`.

    Returns:
        By name `{"value": number, "interval": [low, high]}`, or a list of them where the statistic has k numbers of a
        name that are not part of one. Both are None where there is no value; replicates without a value are left out of
        an interval.
    """
    values, drawn = measure(statistic, lesions, replicates)
    numbers = {}
    for name, value in values.items():
        draws, count = combine(name, drawn[name]), effective(name)
        if is_mean_over_classes(name):
            draws, count = combine_classes(drawn[name], count)
        numbers[name] = describe(combine(name, value), draws, confidence, count, bounds or range_of(name))
        if name == "ece" and np.ptp(drawn[name].round(DIGITS), axis=0).any():  # else they know nothing of chance
            numbers[name]["interval"] = _interval_of_gaps(value, drawn[name], confidence)
    return numbers


def describe(
    value: np.ndarray, drawn: np.ndarray, confidence: float, lesions: Lesions, bounds: tuple[float, float] = SHARE
) -> dict | list[dict]:
    """A number, or k of them, with the interval that its replicates give: what `estimate` returns by name.

    Args:
        value: shape () or (k,).
        drawn: shape (replicates,) or (replicates, k).
        confidence: as 0.95.
        lesions: how many each rests on.
        bounds: the least and the largest value that it can have.
    """
    low, high = score_interval(value, drawn, confidence, lesions, bounds)
    numbers = [
        {"value": None, "interval": None} if np.isnan(interval[0]) else {"value": float(number), "interval": interval}
        for number, *interval in zip(*(np.atleast_1d(part).tolist() for part in (value, low, high)))
    ]
    return numbers if np.ndim(value) else numbers[0]


def score_interval(
    value: np.ndarray,
    drawn: np.ndarray,
    confidence: float,
    lesions: Lesions,
    bounds: tuple[float | np.ndarray, float | np.ndarray] = SHARE,
) -> tuple[np.ndarray, np.ndarray]:
    """The score interval of numbers that lie in a range, with the effective sample size that their replicates give.

    Wilson's interval of a proportion p in n images holds every q with |p − q| ≤ z √(q (1 − q) / n) (Journal of the
    American Statistical Association 22:209, 1927). It never leaves the range, and near its end it reaches further to
    the middle. For images that are not independent, n becomes the effective sample size p (1 − p) / s² with the
    standard error s, and z the quantile of Student's t: Dean & Pagano, Journal of Survey Statistics and Methodology
    3:484, 2015; Franco, Little, Louis & Slud, same journal 7:334, 2019, recommend it among eight for clustered samples.
    Any number in a known range is treated so, as a share of that range.

    Here s² is the variance of the replicates times m / (m − 1) for the m lesions that the number rests on, and
    p (1 − p) is averaged over the replicates: a number that is not a mean can be at the end of its range while they
    are not.
    Where value and replicates all lie at the end of the range, they show no error, but m lesions without one do not
    prove that there is none: the effective sample size is m − 1. A single lesion gives the whole range.

    Args:
        value: shape () or (k,).
        drawn: of the replicates, shape (replicates,) or (replicates, k); NaN where one has no such number.
        confidence: as 0.95.
        lesions: m, one for all or of shape (k,).
        bounds: the ends of the range.

    Returns:
        The lower and the upper bounds, of the shape of `value`; NaN where there is no value or no replicate has one.
    """
    least, largest = bounds
    share, shares = (np.round((np.asarray(number) - least) / (largest - least), DIGITS) for number in (value, drawn))
    known = np.isfinite(shares)
    shares, count = np.where(known, shares, 0), np.maximum(known.sum(axis=0), 1)
    mean = shares.sum(axis=0) / count
    variance = (np.where(known, shares - mean, 0) ** 2).sum(axis=0) / count
    others = np.asarray(lesions) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        size = (shares * (1 - shares)).sum(axis=0) / count / variance * others / (others + 1)
        size = np.where((variance == 0) & ((share == 0) | (share == 1)), others, size)
        # The weight of the value against the middle of the range, n / (n + t²).
        own = 1 / (1 + stdtrit(others, (1 + confidence) / 2) ** 2 / size)
    own = np.where(others == 0, 0, own)
    middle = own * share + (1 - own) / 2
    half = np.sqrt(own * (1 - own) * share * (1 - share) + (1 - own) ** 2 / 4)
    low, high = (
        np.where(known.any(axis=0), least + (largest - least) * np.clip(middle + sign * half, 0, 1), np.nan)
        for sign in (-1, 1)
    )
    return np.minimum(low, value), np.maximum(high, value)  # not even a rounding error leaves the value outside


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
    upper, by_chance = (np.quantile(part, (1 + confidence) / 2) for part in (sums, np.abs(drawn - gaps).sum(axis=1)))
    low = 0.0 if value <= by_chance else max(0.0, 2 * value - upper)
    return [float(low), float(value + upper - sums.mean())]
