"""Whether one model is better than another on the same test images, or only luckier: a paired bootstrap over lesions.

Both models are weighted by the same draws of lesions, so that what makes a draw easy or hard for both cancels out of
their difference. Every headline metric is compared, and every verdict allows for all of them (Holm, Scandinavian
Journal of Statistics 6:65, 1979): with thirteen metrics uncorrected, two equal models would differ in one of them in
every third comparison. There is no primary metric that is tested first: a sensitivity that got worse is to be seen
whether the AUROC moved or not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from stages.dataset.images import name_first
from stages.errors import InputError
from stages.evaluation.metrics import effective_lesions_of, headline
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import MIN_LESIONS, subgroup_table
from stages.evaluation.uncertainty import (
    DIGITS,
    SHARE,
    EffectiveLesions,
    Lesions,
    Statistic,
    combine,
    combine_classes,
    count_lesions,
    effective_lesions,
    measure,
    range_of,
)
from stages.evaluation.weighted import is_mean_over_classes, weighted_areas

BETTER, WORSE, MIXED = "better", "worse", "mixed"
NO_EVIDENCE = "no evidence of a difference"
LOWER_IS_BETTER = ("ece", "brier", "nll")
AT_THRESHOLD = ("sensitivity_at_threshold", "specificity_at_threshold")


class Pair(NamedTuple):
    """A number of two models.

    Attributes:
        base: of the first, on the test set itself.
        new: of the second.
        drawn: new − base in each replicate, shape (replicates,); NaN where a replicate has no such number.
        lesions: how many the number rests on.
    """

    base: float
    new: float
    drawn: np.ndarray
    lesions: Lesions


def compare_predictions(
    base: Predictions,
    new: Predictions,
    images: pd.DataFrame | None,
    thresholds: tuple[float | None, float | None],
    replicates: int,
    confidence: float,
) -> dict:
    """Compare two models on one test set.

    Where they have other classes, both are compared as models of malignancy.

    Args:
        base: predictions of the first model for the test images, in any order.
        new: those of the second.
        images: rows of the manifest, these images among them; None: no subgroups are compared.
        thresholds: the decision threshold of each model; where one has none, nothing is compared at the thresholds.
        replicates: of the bootstrap.
        confidence: of the intervals, as 0.95; 1 − confidence is the chance that two equal models get a verdict.

    Returns:
        `verdict`: better if a metric is better and none is worse, worse if it is the other way round, mixed if there is
        one of each, else no evidence of a difference. `metrics`: by name what `paired_test` gives, `p_adjusted` for all
        these metrics, `lower_is_better` and `verdict`. `not_compared`: by name the reason. `subgroups`: `looked_at`,
        how many differences, and `worse`, those that got worse, allowing for all that were looked at. `changed`: the
        images of each kind whose decision changed. Besides these `images`, `lesions`, `classes`, `thresholds`,
        `bootstrap_replicates` and `confidence`.

    Raises:
        InputError: the predictions are not of the same images, lesions and labels.
    """
    if problem := differences_of_test_sets(base, new):
        raise InputError(f"the predictions are of different test sets: {problem}")
    if base.classes != new.classes:
        base, new = base.benign_or_malignant, new.benign_or_malignant
    base, new = _in_order(base), _in_order(new)
    first, second = thresholds
    decided = None if first is None or second is None else (first, second)
    # Without thresholds others stand for them, whose numbers are left out below.
    pairs = paired_headline(base, new, decided or (0.5, 0.5), replicates)
    not_compared = {
        name: f"without a value in one: {pair.base:.3f} → {pair.new:.3f}".replace("nan", "none")
        for name, pair in pairs.items()
        if not np.isfinite(pair.new - pair.base)
    }
    not_compared |= {} if decided else dict.fromkeys(AT_THRESHOLD, "a model has no decision threshold")

    metrics = {
        name: paired_test(pair, confidence, range_of(name)) for name, pair in pairs.items() if name not in not_compared
    }
    for metric, adjusted in zip(metrics.values(), holm([metric["p"] for metric in metrics.values()])):
        metric["p_adjusted"] = adjusted
    for name, metric in metrics.items():
        metric["lower_is_better"] = name in LOWER_IS_BETTER
        metric["verdict"] = _verdict(metric, confidence)
    return {
        "images": len(base.lesions),
        "lesions": len(np.unique(base.lesions)),
        "classes": list(base.classes.names),
        "thresholds": list(thresholds),
        "bootstrap_replicates": replicates,
        "confidence": confidence,
        "verdict": _overall({metric["verdict"] for metric in metrics.values()}),
        "metrics": metrics,
        "not_compared": not_compared,
        "subgroups": None if images is None else _compare_subgroups(base, new, images, decided, replicates, confidence),
        "changed": _changed_decisions(base, new, decided) if decided else None,
    }


def differences_of_test_sets(
    base: Predictions, new: Predictions, names: Sequence[str] = ("base", "new"), *, ids: bool = True
) -> str:
    """How the images, lesions or labels of two tables of predictions differ; empty if they do not.

    Args:
        base: predictions, in any order.
        new: others.
        names: what to call the two.
        ids: whether to name images.
    """

    def examples(of: Iterable[str]) -> str:
        return f" ({name_first(list(of))})" if ids else ""

    for model, name in zip((base, new), names):
        images = model.table["image_id"]
        if images.empty:
            return f"{name} has no test images"
        if images.duplicated().any():
            return f"{name} has an image more than once{examples(images[images.duplicated()])}"
    both = [set(model.table["image_id"]) for model in (base, new)]
    alone = [(name, sorted(mine - other)) for name, mine, other in zip(names, both, both[::-1])]
    if any(only for _, only in alone):
        parts = [f"{len(only)} only in {name}{examples(only)}" for name, only in alone if only]
        return f"{len(both[0] & both[1])} images are in both, " + " and ".join(parts)

    base, new = _in_order(base), _in_order(new)
    same_classes = base.classes == new.classes
    columns = {
        "lesions": (base.lesions, new.lesions),
        "labels": tuple(model.table["label"] if same_classes else model.is_malignant for model in (base, new)),
    }
    for what, (first, second) in columns.items():
        differ = np.asarray(first) != np.asarray(second)
        if differ.any():
            return f"{differ.sum()} images have other {what}{examples(base.table['image_id'][differ])}"
    return ""


def _in_order(predictions: Predictions) -> Predictions:
    return replace(predictions, table=predictions.table.sort_values("image_id", ignore_index=True))


def paired_replicates(
    base: Statistic, new: Statistic, lesions: np.ndarray, replicates: int, effective: EffectiveLesions
) -> dict[str, Pair]:
    """Every number of two models that are weighted by the same draws of lesions.

    Args:
        base: the statistic of the first.
        new: the same of the second.
        lesions: the lesion of each image, shape (n,).
        replicates: of the bootstrap.
        effective: how many lesions a number rests on, by its name.
    """
    models = [measure(statistic, lesions, replicates) for statistic in (base, new)]
    pairs = {}
    for name in models[0][0]:
        values, drawn = ([model[part][name] for model in models] for part in (0, 1))
        count = effective(name)
        if is_mean_over_classes(name):
            difference, count = combine_classes(drawn[1] - drawn[0], count)
        else:
            moved = _move_gaps(values, drawn) if name == "ece" else drawn
            difference = combine(name, moved[1]) - combine(name, moved[0])
        first, second = (float(combine(name, value)) for value in values)
        pairs[name] = Pair(first, second, difference, count)
    return pairs


def _move_gaps(values: Sequence[np.ndarray], drawn: Sequence[np.ndarray]) -> np.ndarray:
    """The replicates' gaps of two calibration errors, as if they scattered about the gaps of the population.

    Gaps of a test set are wider than those of the population. Replicates scatter about them, so that far fewer of their
    gaps change sign than chance would make change it, and the difference of two ECEs scatters too much: of equal models
    too few would differ. Therefore the replicates' gaps are moved, to scatter about gaps whose squares add up to those
    of the test set less their variances, an unbiased estimate. It is made of both models together, as the null
    hypothesis has it.

    Args:
        values: the gaps of both models, each of shape (k,).
        drawn: those of the replicates, each of shape (replicates, k).

    Returns:
        Shape (2, replicates, k).
    """
    gaps = np.stack(values)
    square, by_chance = np.mean(gaps**2, axis=0), np.mean(np.var(drawn, axis=1), axis=0)
    real = max(0.0, 1 - by_chance.sum() / square.sum()) if square.any() else 0.0
    expected = np.sign(gaps) * np.sqrt(real * square)
    return np.stack(drawn) + (expected - gaps)[:, None]


def paired_headline(
    base: Predictions, new: Predictions, thresholds: tuple[float, float], replicates: int
) -> dict[str, Pair]:
    """Every headline metric of two models, as `paired_replicates` gives it.

    Args:
        base: predictions of the first model.
        new: those of the second, for the same images in the same order.
        thresholds: the decision threshold of each.
        replicates: of the bootstrap.
    """
    by_cost = not (base.is_most_probable and new.is_most_probable)
    statistics = headline(base, thresholds[0], by_cost), headline(new, thresholds[1], by_cost)
    return paired_replicates(*statistics, base.lesions, replicates, effective_lesions_of(base))


def paired_test(pair: Pair, confidence: float, bounds: tuple[float, float] = SHARE) -> dict:
    """The difference of two models with its interval and p-value, which always agree.

    The replicates give the standard error s of the difference d. Under the null hypothesis what the lesions contribute
    scatters about 0 and not about d, so its variance is s² + d²/n for n lesions, and p is that of d over its root in a
    normal distribution. With one image per lesion and the metric accuracy this is McNemar's test (Psychometrika 12:153,
    1947). The interval holds the differences that the same test would not reject at 1 − confidence:
    d ± z s / √(1 − z²/n).

    The percentiles of the replicates cannot replace it. Where m lesions changed, all to one side, chance does that in 1
    of 2ᵐ⁻¹ cases, but their p is 2e⁻ᵐ: they are overconfident just where Holm's method looks. And 2000 replicates know
    no p below 0.001, where sixty numbers are compared. benchmarks/README.md has the false positives of both.

    Args:
        pair: the number of both models, and the replicates of its difference.
        confidence: as 0.95.
        bounds: the least and the largest value that the number can have; no difference is outside of what they allow.

    Returns:
        `base`, `new`, `difference` (`{"value", "interval"}`; the interval is None where so few lesions could not show
        any difference) and the two-sided `p`.
    """
    difference = float(np.round(pair.new - pair.base, DIGITS))
    error = float(np.std(np.round(pair.drawn[np.isfinite(pair.drawn)], DIGITS)))
    quantile = ndtri((1 + confidence) / 2)
    interval = None
    if pair.lesions > quantile**2:
        half = float(quantile * error / np.sqrt(1 - quantile**2 / pair.lesions))
        largest = bounds[1] - bounds[0]
        interval = [max(difference - half, -largest), min(difference + half, largest)]
    return {
        "base": float(pair.base),
        "new": float(pair.new),
        "difference": {"value": difference, "interval": interval},
        "p": float(2 * ndtr(-abs(difference) / np.sqrt(error**2 + difference**2 / pair.lesions)))
        if difference
        else 1.0,
    }


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979).

    Where the adjusted ones below 0.05 are called significant, the chance of one or more false ones is at most 5 %,
    however they depend on one another.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def _verdict(metric: dict, confidence: float) -> str:
    if metric["p_adjusted"] >= 1 - confidence:
        return NO_EVIDENCE
    return BETTER if (metric["difference"]["value"] > 0) != metric["lower_is_better"] else WORSE


def _overall(verdicts: set[str]) -> str:
    if {BETTER, WORSE} <= verdicts:
        return MIXED
    return next((verdict for verdict in (BETTER, WORSE) if verdict in verdicts), NO_EVIDENCE)


def _compare_subgroups(
    base: Predictions,
    new: Predictions,
    images: pd.DataFrame,
    thresholds: tuple[float, float] | None,
    replicates: int,
    confidence: float,
) -> dict:
    missing = set(base.table["image_id"]) - set(images["image_id"])
    if missing:
        raise InputError(f"the manifest lacks {len(missing)} of the test images")
    lesions, is_malignant = base.lesions, base.is_malignant
    table = subgroup_table(images.set_index("image_id").loc[base.table["image_id"]])
    looked_at = {}
    for attribute in table.columns:
        for name in sorted(table[attribute].unique()):
            members = (table[attribute] == name).to_numpy()
            counts = count_lesions(lesions[members], is_malignant[members])
            for metric in ("auroc",) if thresholds is None else ("sensitivity", "specificity", "auroc"):
                effective = effective_lesions(metric, *counts)
                if effective >= MIN_LESIONS:
                    group = {"attribute": attribute, "name": name, "metric": metric, "lesions": counts[0]}
                    looked_at[f"{attribute}, {name}, {metric}"] = (group, members, effective)

    def statistic_of(model: Predictions, threshold: float) -> Statistic:
        score = model.malignant_probability
        right = model.called_malignant(threshold) == is_malignant

        def measure(metric: str, members: np.ndarray, weights: np.ndarray) -> np.ndarray:
            if metric == "auroc":
                return weighted_areas(score[members], is_malignant[members], weights[:, members])[0]
            kind = members & (is_malignant if metric == "sensitivity" else ~is_malignant)
            with np.errstate(invalid="ignore"):  # a replicate without such images: NaN, as documented
                return weights[:, kind] @ right[kind] / weights[:, kind].sum(axis=1)

        return lambda weights: {
            key: measure(group["metric"], members, weights) for key, (group, members, _) in looked_at.items()
        }

    first, second = thresholds or (0.5, 0.5)
    statistics = statistic_of(base, first), statistic_of(new, second)
    pairs = paired_replicates(*statistics, lesions, replicates, lambda key: looked_at[key][2]) if looked_at else {}
    tests = [{**looked_at[key][0], **paired_test(pair, confidence)} for key, pair in pairs.items()]
    for test, adjusted in zip(tests, holm([test["p"] for test in tests])):
        test["p_adjusted"] = adjusted
    worse = [test for test in tests if test["difference"]["value"] < 0 and test["p_adjusted"] < 1 - confidence]
    return {"looked_at": len(tests), "worse": sorted(worse, key=lambda test: test["p"])}


def _changed_decisions(base: Predictions, new: Predictions, thresholds: tuple[float, float]) -> dict:
    right = [
        model.called_malignant(threshold) == model.is_malignant for model, threshold in zip((base, new), thresholds)
    ]
    ids = base.table["image_id"].to_numpy()
    return {
        name: {
            "images": int(kind.sum()),
            "wrong_to_right": ids[kind & ~right[0] & right[1]].tolist(),
            "right_to_wrong": ids[kind & right[0] & ~right[1]].tolist(),
        }
        for name, kind in (("malignant", base.is_malignant), ("benign", ~base.is_malignant))
    }
