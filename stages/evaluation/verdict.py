"""Which of a model's promises hold on another dataset, and which do not: each in one sentence with its numbers.

A promise is broken where the interval of the difference to it lies wholly on the wrong side. It holds where the
interval does not, and also rules out a difference as large as `MARGINS`; else there are too few lesions to tell. So at
95 % one in forty promises that are just kept is said to be broken, and one in forty that are broken by the margin is
said to hold.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.special import expit, logit, stdtrit

from stages.classifier.calibration import Calibration
from stages.errors import printable
from stages.evaluation.calibration import SMALLEST, weighted_gaps
from stages.evaluation.metrics import effective_lesions_of
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import MIN_LESIONS
from stages.evaluation.uncertainty import DIFFERENCE, combine, count_lesions, estimate
from stages.evaluation.weighted import unit_weights, weighted_areas, weighted_rates
from stages.reporting import ATTRIBUTES, PROMISES, number, rounded_percent
from stages.reporting import estimate as with_interval

HOLDS, BROKEN, UNTOLD = "holds", "broken", "cannot be told"
# Of areas and the slope, the precision that Riley et al., Statistics in Medicine 40:4230, 2021, ask of a validation.
MARGINS = {
    "sensitivity_at_threshold": 0.1,
    "auroc": 0.05,
    "malignant_auroc": 0.05,
    "macro_auroc": 0.05,
    "mean_probability": 0.05,
    "calibration_slope": 0.2,
}
_TWO_SIDED = ("mean_probability", "calibration_slope")  # of the others, more than was promised is as good
_UNKNOWN = {"value": None, "interval": None}


def judge(
    there: Predictions,
    own: Predictions | None,
    calibration: Calibration,
    replicates: int,
    confidence: float,
    missing: str = "",
) -> dict:
    """Judge a model's promises on another dataset.

    Args:
        there: its calibrated predictions of that dataset.
        own: those of its own test images, of the same classes; None where they are not known.
        calibration: of the predictions there.
        replicates: of the bootstrap.
        confidence: of the intervals, as 0.95.
        missing: why its own are not known.

    Returns:
        `promises` and `summary`, as docs/details.schema.json describes them.
    """
    both = [it for it in (there, own) if it is not None]
    shared = np.all([np.isin(np.arange(len(it.classes.names)), it.labels) for it in both], axis=0)
    found, *known = (_estimates(it, calibration.threshold, shared, replicates, confidence) for it in both)
    _, malignant, benign = count_lesions(there.lesions, there.is_malignant)
    target, observed = calibration.target_sensitivity, float(there.is_malignant.mean())
    promises = []
    for name in (name for name in MARGINS if name in found):
        number_there, of, own_number = found[name], "", _UNKNOWN
        match name:
            case "sensitivity_at_threshold":
                promised, difference, said = target, less(number_there, target), f"{number(target)} was promised"
            case "mean_probability":
                promised, difference = observed, found["excess"]
                said = f"{number(observed)} of the images are malignant, a difference of {with_interval(difference)}"
            case "calibration_slope":
                promised, difference = 1.0, less(number_there, 1)
                said = (
                    "it should be 1; the probabilities are too extreme where it is less, too cautious where it is more"
                )
            case _:
                if name == "macro_auroc" and known and not shared.all():
                    of = f" of the {shared.sum()} diagnoses that both have"
                own_number = known[0][name] if known else _UNKNOWN
                promised, difference = own_number["value"], independent_difference(number_there, own_number)
                said = f"on the model's own test images it is {number(promised)}, a difference of "
                said += with_interval(difference)
                if not known:
                    said = f"that of the model's own test images is not known ({missing})"
        status, factor = told(difference, MARGINS[name], name in _TWO_SIDED, own_number)
        if number_there["value"] is None or (not malignant * benign and name != "sensitivity_at_threshold"):
            said = "it takes malignant and benign lesions"
        elif status == UNTOLD and factor < math.inf:
            needed = max(malignant + 1, _rounded_up(factor * malignant))
            said += f"; {malignant} malignant lesions are too few to tell, about {needed} are needed"
        elif status == UNTOLD and known:
            said += "; the model's own test images are too few to tell"
        promises.append(
            {
                "name": name,
                "status": status,
                "promised": promised,
                "found": number_there,
                "difference": difference,
                "sentence": f"{status.capitalize()}: {PROMISES[name]}{of} is {with_interval(number_there)}; {said}.",
            }
        )
    return {"promises": promises, "summary": _summary(promises)}


def _estimates(
    predictions: Predictions, threshold: float, shared: np.ndarray, replicates: int, confidence: float
) -> dict[str, dict]:
    """The numbers that promises are about, with their intervals; of a mean over diagnoses those of `shared` only."""
    score, is_malignant, labels = predictions.malignant_probability, predictions.is_malignant, predictions.labels
    probabilities, of_diagnoses = predictions.probabilities, predictions.classes.are_diagnoses
    settings = replicates, confidence, effective_lesions_of(predictions)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = weighted_rates(score, is_malignant, np.array([threshold]), weights)
        area, _ = weighted_areas(score, is_malignant, weights)
        numbers = {
            "sensitivity_at_threshold": rates["sensitivity"][:, 0],
            "malignant_auroc" if of_diagnoses else "auroc": area,
            "mean_probability": weights @ score / weights.sum(axis=1),
        }
        if of_diagnoses:
            areas = np.full((len(weights), len(shared)), np.nan)
            for column in np.flatnonzero(shared):
                areas[:, column], _ = weighted_areas(probabilities[:, column], labels == column, weights)
            numbers["macro_auroc"] = areas
        return numbers

    def excess(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"excess": weights @ (score - is_malignant) / weights.sum(axis=1)}

    return {
        **estimate(statistic, predictions.lesions, *settings),
        **estimate(excess, predictions.lesions, *settings, DIFFERENCE),
        "calibration_slope": calibration_slope(score, is_malignant, predictions.lesions, confidence),
    }


def independent_difference(one: dict, other: dict) -> dict:
    """One number less another of other lesions, with the interval that both intervals give.

    Its lower bound is as far from the difference as the lower bound of the first and the upper one of the second are
    together, by Pythagoras: Newcombe, Statistics in Medicine 17:873, 1998, method 10; for any numbers Zou & Donner,
    same journal 27:1693, 2008.

    Args:
        one: as `estimate` gives it.
        other: likewise.

    Returns:
        Likewise; None for both where one has no value.
    """
    if one["value"] is None or other["value"] is None:
        return _UNKNOWN
    (below, above), (other_below, other_above) = _reach(one), _reach(other)
    difference = one["value"] - other["value"]
    interval = [difference - math.hypot(below, other_above), difference + math.hypot(above, other_below)]
    return {"value": difference, "interval": interval}


def told(difference: dict, margin: float, two_sided: bool, own: dict = _UNKNOWN) -> tuple[str, float]:
    """What a difference to a promise tells of it.

    Args:
        difference: as `estimate` gives it; below 0 is worse.
        margin: above 0.
        two_sided: whether above 0 is worse, too.
        own: the number that was promised, where that is of a sample, too.

    Returns:
        `HOLDS`, `BROKEN` or `UNTOLD`, and how many times as many lesions it would take to tell if the difference stayed
        the same: infinite where none would do.
    """
    if difference["value"] is None:
        return UNTOLD, math.inf
    value, (low, high) = difference["value"], difference["interval"]
    if high < 0 or (two_sided and low > 0):
        return BROKEN, 1
    if low > -margin and not (two_sided and high >= margin):
        return HOLDS, 1
    own_below, own_above = (0, 0) if own["value"] is None else _reach(own)

    def factor(reach: float, own_reach: float, room: float) -> float:
        """How many times as many lesions make so wide an interval fit into `room`; those of `own` stay as they are."""
        left = room**2 - own_reach**2
        return (reach**2 - own_reach**2) / left if room > 0 and left > 0 else math.inf

    below, above = (value - low, own_above), (high - value, own_below)
    kept, broken = factor(*below, margin + value), factor(*above, -value)
    if two_sided:
        kept, broken = max(kept, factor(*above, margin - value)), min(broken, factor(*below, value))
    return UNTOLD, min(kept, broken)


def calibration_slope(score: np.ndarray, is_malignant: np.ndarray, lesions: np.ndarray, confidence: float) -> dict:
    """The slope of a logistic regression of malignancy on the logit of its probability.

    1 where probabilities are as far apart as they should be (Cox, Biometrika 45:562, 1958; Van Calster et al., BMC
    Medicine 17:230, 2019). Its standard error is the sandwich estimator's with the lesions as clusters (Liang & Zeger,
    Biometrika 73:13, 1986), its interval that of Student's t with the rarer kind of lesions.

    Args:
        score: probability of malignancy, shape (n,).
        is_malignant: bool, shape (n,).
        lesions: the lesion of each image, shape (n,).
        confidence: of the interval.

    Returns:
        What `estimate` gives of a number; None for both where there is no such slope, as where a threshold tells all.
    """
    from scipy.optimize import minimize  # which the report page, that judges by `told`, need not load

    logits = logit(np.clip(score, SMALLEST, 1 - SMALLEST))
    malignant, benign = logits[is_malignant], logits[~is_malignant]
    others = min(count_lesions(lesions, is_malignant)[1:]) - 1
    if others < 1 or malignant.min() >= benign.max() or benign.min() >= malignant.max():
        return _UNKNOWN
    design = np.stack([np.ones(len(logits)), logits], axis=1)

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        linear = design @ coefficients
        gradient = design.T @ (expit(linear) - is_malignant)
        return (np.logaddexp(0, linear) - is_malignant * linear).mean(), gradient / len(linear)

    coefficients = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    expected = expit(design @ coefficients)
    errors = design * (is_malignant - expected)[:, None]
    information = design.T @ (design * (expected * (1 - expected))[:, None])
    _, lesion_of = np.unique(lesions, return_inverse=True)
    of_lesions = np.stack([np.bincount(lesion_of, column) for column in errors.T], axis=1)
    covariance = np.linalg.solve(information, np.linalg.solve(information, of_lesions.T @ of_lesions).T)
    slope, reach = float(coefficients[1]), math.sqrt(covariance[1, 1] * (others + 1) / others)
    reach *= float(stdtrit(others, (1 + confidence) / 2))
    return {"value": slope, "interval": [slope - reach, slope + reach]}


def remarks(there: Predictions, own: Predictions | None, assessment: dict) -> Iterator[str]:
    """What else is to be known of a dataset that a model is judged on, one sentence each.

    Args:
        there: the predictions of it.
        own: those of the model's own test images, of the same classes; None where they are not known.
        assessment: what `assess` says of the dataset.
    """
    shares, errors = ([of(it) for it in (there, own) if it is not None] for of in (_share_of_lesions, _ece))
    of_own = " of the model's own test lesions"
    yield f"{shares[0]} of the lesions are malignant" + "".join(f", {share}{of_own}" for share in shares[1:]) + "."
    here = with_interval(assessment["metrics"]["ece"])
    yield f"ECE is {here}" + "".join(f", {error} on the model's own test images" for error in errors[1:]) + "."
    absent = [name for name in there.classes.names if name not in set(there.table["label"])]
    if absent and there.classes.are_diagnoses:
        yield f"No image is of {', '.join(absent)}: means over the diagnoses leave these out."
    few = {
        ATTRIBUTES[attribute]: [printable(group["name"]) for group in of["groups"] if not all(group["judged"].values())]
        for attribute, of in assessment["subgroups"].items()
    }
    if any(few.values()):
        named = "; ".join(f"{title}: {', '.join(names)}" for title, names in few.items() if names)
        yield f"These groups have fewer than {MIN_LESIONS} malignant or benign lesions, too few to judge: {named}."


def _share_of_lesions(predictions: Predictions) -> str:
    total, malignant, _ = count_lesions(predictions.lesions, predictions.is_malignant)
    return rounded_percent(malignant / total)


def _ece(predictions: Predictions) -> str:
    labels = predictions.labels
    return number(float(combine("ece", weighted_gaps(predictions.probabilities, labels, unit_weights(labels)))[0]))


def _summary(promises: list[dict]) -> str:
    told_of = {
        status: [PROMISES[promise["name"]] for promise in promises if promise["status"] == status]
        for status in (HOLDS, BROKEN, UNTOLD)
    }
    verbs = {HOLDS: ("holds", "hold"), BROKEN: ("is broken", "are broken"), UNTOLD: (UNTOLD, UNTOLD)}
    parts = [
        f"{len(names) or 'none'} {verbs[status][len(names) > 1]}" + f" ({', '.join(names)})" * bool(names)
        for status, names in told_of.items()
        if names or status == HOLDS
    ]
    return f"Of the model's {len(promises)} promises {', '.join(parts)}."


def _reach(estimated: dict) -> tuple[float, float]:
    """How far the ends of an interval lie from its number."""
    low, high = estimated["interval"]
    return estimated["value"] - low, high - estimated["value"]


def less(estimated: dict, promised: float) -> dict:
    """A number less what was promised, with its interval, as `estimate` gives it."""
    if estimated["value"] is None:
        return _UNKNOWN
    return {"value": estimated["value"] - promised, "interval": [end - promised for end in estimated["interval"]]}


def _rounded_up(count: float) -> int:
    """To two digits, as an estimate deserves."""
    step = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / step) * step
