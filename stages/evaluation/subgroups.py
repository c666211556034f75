"""Whether the classifier serves everyone alike: its numbers in groups of patients, sites, sources and diagnoses."""

from itertools import pairwise

import numpy as np
import pandas as pd

from stages.dataset.encoding import UNKNOWN
from stages.evaluation.predictions import Predictions
from stages.evaluation.uncertainty import DIFFERENCE, count_lesions, describe, effective_lesions, measure
from stages.evaluation.weighted import weighted_areas, weighted_rates_of

# Fewer lesions say nothing: after 10 true positives of 10, 3 in 10 others might still be false negatives (95 %, the
# rule of three).
MIN_LESIONS = 10
AGE_BANDS = (0, 30, 45, 60, 75, 121)  # years
SKIN_TYPE = "skin_type"  # as Fitzpatrick's, where a dataset has it
METRICS = ("sensitivity", "specificity", "auroc")


def subgroup_table(images: pd.DataFrame) -> pd.DataFrame:
    """The group of each image by attribute, with the index of `images`.

    Args:
        images: columns age (years, NaN where unknown), sex, localization, dataset and dx_type; skin_type if known.

    Returns:
        These columns, all text: ages in bands, `dx_type` as histopathology against the rest, whose reference standard
        is weaker.
    """
    names = [f"{low}-{high - 1}" for low, high in pairwise(AGE_BANDS)]
    names = [f"under {AGE_BANDS[1]}", *names[1:-1], f"{AGE_BANDS[-2]} and older"]
    age = pd.Series(pd.cut(images["age"].astype(float), list(AGE_BANDS), right=False, labels=names))
    return pd.DataFrame(
        {
            "age": age.astype(object).where(age.notna(), UNKNOWN),
            "sex": images["sex"],
            "localization": images["localization"],
            "dataset": images["dataset"],
            "dx_type": np.where(images["dx_type"] == "histo", "histopathology", "other reference"),
            **({SKIN_TYPE: images[SKIN_TYPE]} if SKIN_TYPE in images else {}),
        }
    )


def not_assessable(images: pd.DataFrame) -> list[str]:
    """What the columns of the images do not allow to be assessed, one line each."""
    return [] if SKIN_TYPE in images else ["skin tone: the dataset does not record it"]


def most_frequent_first(column: pd.Series) -> list[str]:
    """The values of a column; equally frequent ones in the order of the alphabet."""
    return column.value_counts().sort_index().sort_values(ascending=False, kind="stable").index.tolist()


def assess_subgroups(
    predictions: Predictions, threshold: float, groups: pd.DataFrame, replicates: int, confidence: float
) -> dict:
    """Sensitivity and specificity of the decision, and AUROC, in each group, and the widest gap between two groups.

    Args:
        predictions: of n images.
        threshold: of the decision.
        groups: what `subgroup_table` gives, n rows.
        replicates: of the bootstrap.
        confidence: of the intervals.

    Returns:
        By attribute `groups`, the largest first, and `worst_gap`: by metric the two groups that lie furthest apart, of
        those with enough lesions to be assessed (`MIN_LESIONS` malignant ones for sensitivity, benign ones for
        specificity, both for AUROC), and their difference; None where fewer than two can be assessed. The gap was
        picked as the widest: its interval does not account for that.
    """
    score, called = predictions.malignant_probability, predictions.called_malignant(threshold)
    is_malignant, lesions, result = predictions.is_malignant, predictions.lesions, {}
    for attribute in groups.columns:
        names = most_frequent_first(groups[attribute])
        members = [(groups[attribute] == name).to_numpy() for name in names]

        def statistic(weights: np.ndarray, members: list[np.ndarray] = members) -> dict[str, np.ndarray]:
            columns = [
                weighted_rates_of(called[mine], is_malignant[mine], weights[:, mine])
                | {"auroc": weighted_areas(score[mine], is_malignant[mine], weights[:, mine])[0]}
                for mine in members
            ]
            return {metric: np.stack([column[metric] for column in columns], axis=1) for metric in METRICS}

        values, drawn = measure(statistic, lesions, replicates)
        counts = np.array([count_lesions(lesions[mine], is_malignant[mine]) for mine in members]).T
        effective = {metric: np.asarray(effective_lesions(metric, *counts)) for metric in METRICS}
        numbers = {metric: describe(values[metric], drawn[metric], confidence, effective[metric]) for metric in METRICS}
        described = [
            {
                "name": name,
                "images": int(members[row].sum()),
                **dict(zip(("lesions", "malignant_lesions", "benign_lesions"), counts[:, row].tolist())),
                "judged": {metric: bool(effective[metric][row] >= MIN_LESIONS) for metric in METRICS},
                **{metric: numbers[metric][row] for metric in METRICS},
            }
            for row, name in enumerate(names)
        ]
        gaps = {
            metric: _worst_gap(names, values[metric], drawn[metric], effective[metric], confidence)
            for metric in METRICS
        }
        result[attribute] = {"groups": described, "worst_gap": gaps}
    return result


def _worst_gap(
    names: list[str], values: np.ndarray, drawn: np.ndarray, lesions: np.ndarray, confidence: float
) -> dict | None:
    assessed = lesions >= MIN_LESIONS
    if assessed.sum() < 2:
        return None
    high = int(np.where(assessed, values, -np.inf).argmax())
    # Of equal ones the last: where all groups are alike, the two are still two.
    low = len(values) - 1 - int(np.where(assessed, values, np.inf)[::-1].argmin())
    gap, gaps = values[high] - values[low], drawn[:, high] - drawn[:, low]
    difference = describe(gap, gaps, confidence, min(lesions[high], lesions[low]), DIFFERENCE)
    return {"highest": names[high], "lowest": names[low], "difference": difference}
