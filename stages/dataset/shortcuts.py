"""How far the source of a lesion tells its diagnosis: what a network may learn in place of the lesion."""

import numpy as np
import pandas as pd

from stages.files import SPLIT_METRICS

FEWEST_EXPECTED = 5  # lesions: fewer may be lacking by chance (at 5, once in 150 times: Poisson)
LARGEST_LACK = 0.1


def audit_sources(manifest: pd.DataFrame) -> dict:
    """How far the source of a lesion tells its diagnosis, or that it has not some: a shortcut for a network.

    Cramér's V is 0 where all sources have the same mix of diagnoses, 1 where each source decides: the root of
    χ² / (n (k - 1)), k being the smaller number of sources and diagnoses (H. Cramér, Mathematical Methods of
    Statistics, 1946, 21.9). Of lesions, for images of one are no further evidence.

    Args:
        manifest: columns lesion_id, dx and dataset, of several datasets.

    Returns:
        `lesions` of each diagnosis in each source; `cramers_v`, None where all are of one diagnosis; and `lacks`: by
        source the diagnoses of which it has less than a tenth of what the others' mix lets expect, which is at least 5.
    """
    lesions = manifest.drop_duplicates(["dataset", "lesion_id", "dx"])
    table = pd.crosstab(lesions["dataset"], lesions["dx"])
    counts = table.to_numpy()
    total, of_source, of_dx = counts.sum(), counts.sum(axis=1, keepdims=True), counts.sum(axis=0)
    by_chance, degrees = of_source * of_dx / total, min(counts.shape) - 1
    chi_squared = ((counts - by_chance) ** 2 / by_chance).sum()
    expected = of_source * (of_dx - counts) / np.maximum(total - of_source, 1)
    lacking = (expected >= FEWEST_EXPECTED) & (counts < LARGEST_LACK * expected)
    return {
        "lesions": table.to_dict("index"),
        "cramers_v": float(np.sqrt(chi_squared / (total * degrees))) if degrees else None,
        "lacks": {name: list(table.columns[row]) for name, row in zip(table.index, lacking) if row.any()},
    }


def describe_sources(sources: dict) -> str:
    """What `audit_sources` found as one line; a warning where a source nearly decides a diagnosis."""
    association = f"diagnosis and source: Cramér's V {sources['cramers_v'] or 0:.2f} ({SPLIT_METRICS})"
    if not sources["lacks"]:
        return association
    lacks = "; ".join(f"{name} has next to none of {', '.join(dx)}" for name, dx in sources["lacks"].items())
    return f"warning: {lacks}: a network may learn the source in place of the lesion; {association}"
