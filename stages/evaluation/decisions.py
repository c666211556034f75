"""From a probability to a decision: thresholds, predictive values, and whether deciding so does more good than harm."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.classifier.calibration import apply_temperature, as_written, cost_matrix, decide
from stages.config import BALANCED, MOST_PROBABLE
from stages.dataset.taxonomy import Classes
from stages.errors import InputError, printable
from stages.evaluation.predictions import malignant_probability
from stages.evaluation.weighted import unit_weights, weighted_rates
from stages.files import DECIMALS

POWERS = np.linspace(0, 1, 21)  # of the shares of the classes


def read_decision(decision: str, classes: Sequence[str]) -> str | np.ndarray:
    """What `evaluation.decision` stands for.

    Args:
        decision: `MOST_PROBABLE`, `BALANCED`, or the path of a CSV file: a head with a first cell and the classes in
            any order, below it a row for each true class, its name first, then the cost of deciding for each class.
        classes: names of the model's, in the order of its outputs.

    Returns:
        The name of the rule, or costs for `decide`, shape (classes, classes), with six significant digits.

    Raises:
        InputError: the file cannot be read, is not of these classes, or holds something else than costs.
    """
    if decision in (MOST_PROBABLE, BALANCED):
        return decision
    try:
        table = pd.read_csv(decision, index_col=0, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except (OSError, ValueError) as error:
        raise InputError(
            f"evaluation.decision is {decision!r}, which cannot be read ({printable(error)}); it must be "
            f"{MOST_PROBABLE}, {BALANCED} or a CSV file of costs"
        ) from None
    for what, found in (("columns", list(table.columns)), ("rows", list(table.index))):
        if sorted(found) != sorted(classes):
            given, expected = printable(", ".join(found)) or "no classes", ", ".join(classes)
            raise InputError(f"{decision}: the {what} are of {given}; they must be of {expected}, each once")
    table = table.loc[list(classes), list(classes)]
    costs = np.array(
        [
            [_cost(cell, f"{decision}: row {true}, column {name}") for name, cell in row.items()]
            for true, row in table.iterrows()
        ]
    )
    for number, true in enumerate(classes):
        least = int(np.where(np.arange(len(classes)) == number, np.inf, costs[number]).argmin())
        if costs[number, number] >= costs[number, least]:
            raise InputError(
                f"{decision}: row {true}: the right decision costs {costs[number, number]:g} and a wrong one, "
                f"{classes[least]}, {costs[number, least]:g}; the right one must cost less than all others of its row"
            )
    return costs


def _cost(cell: str, place: str) -> float:
    try:
        cost = float(cell)
    except ValueError:
        cost = math.nan
    if not 0 <= cost < math.inf:
        raise InputError(f"{place} is {printable(cell)!r}; it must be a number of at least 0")
    return as_written(cost)


def decision_costs(
    rule: str | np.ndarray, probabilities: np.ndarray, labels: np.ndarray, class_counts: np.ndarray
) -> np.ndarray:
    """The costs that `decide` is to take, with as many digits as `calibration.json` keeps.

    `BALANCED` is for a high balanced accuracy. Of perfect posterior probabilities p the decision for the largest p / s,
    with the shares s of the classes, has the highest (Menon et al., Long-tail learning via logit adjustment, ICLR
    2021, section 2). A network's are not perfect, and training may have balanced the classes already; so it is p / sᵃ,
    with the power a that suits the validation images. These hold few images of a rare class, of which each moves the
    balanced accuracy by more than the powers differ. Therefore it is not the power of the highest peak, but that where
    a parabola through the balanced accuracies of all powers is highest: one image more or less moves it little.

    Args:
        rule: `MOST_PROBABLE`, `BALANCED`, or the costs themselves, as `read_decision` gives it.
        probabilities: of the validation images, calibrated, rounded as they are written, shape (n, classes).
        labels: of the validation images, shape (n,).
        class_counts: training images of each class, shape (classes,); of a class without, as if it had one.

    Returns:
        Shape (classes, classes).
    """
    if not isinstance(rule, str):
        return rule
    equal = cost_matrix(None, len(class_counts))
    if rule == MOST_PROBABLE:
        return equal
    counts = np.maximum(class_counts, 1)
    candidates = [equal / (counts[:, None] / counts.sum()) ** power for power in POWERS]
    of_classes = [labels == number for number in np.unique(labels)]
    decisions = [decide(probabilities, costs) for costs in candidates]
    balanced = [np.mean([np.mean(decided[mine] == labels[mine]) for mine in of_classes]) for decided in decisions]
    smooth = np.polynomial.Polynomial.fit(POWERS, balanced, deg=2)(POWERS)
    # Of equal ones, but for rounding errors, the smallest.
    return np.vectorize(as_written)(candidates[int(smooth.round(9).argmax())])


def choose_thresholds(
    probabilities: np.ndarray,
    temperature: float,
    is_malignant: np.ndarray,
    classes: Classes,
    sensitivity: float,
    bias: Sequence[float] | None = None,
) -> tuple[float, float]:
    """The thresholds of a calibration, on the images that it is fitted to: for a sensitivity, and Youden's.

    Args:
        probabilities: as the network gives them, shape (n, classes).
        temperature: of the calibration.
        is_malignant: bool, shape (n,).
        classes: what the probabilities are of.
        sensitivity: to reach.
        bias: of the calibration.

    Raises:
        InputError: the images are all benign or all malignant.
    """
    # As they will be written: a threshold has to include its image in the file as well.
    score = malignant_probability(apply_temperature(probabilities, temperature, bias).round(DECIMALS), classes)
    threshold = threshold_for_sensitivity(score, is_malignant, sensitivity)
    return as_written(threshold), as_written(youden_threshold(score, is_malignant))


def threshold_for_sensitivity(score: np.ndarray, is_positive: np.ndarray, sensitivity: float) -> float:
    """The highest score at or above which at least `sensitivity` of the positives lie.

    Args:
        score: shape (n,).
        is_positive: bool, shape (n,).
        sensitivity: above 0, at most 1.

    Raises:
        InputError: there is no positive.
    """
    positives = np.sort(score[is_positive])[::-1]
    if not len(positives):
        raise InputError(
            "the validation images hold no malignant lesion, so no threshold can be chosen; "
            "choose another split.val_fold, or add lesions"
        )
    # 0.9 of 10 images are 9, not the 10 that rounding errors would make of them.
    needed = max(1, int(np.ceil(sensitivity * len(positives) - 1e-9)))
    return float(positives[needed - 1])


def youden_threshold(score: np.ndarray, is_positive: np.ndarray) -> float:
    """The score with the largest sum of sensitivity and specificity (Youden, Cancer 3:32, 1950); of ties the highest.

    Arguments as for `threshold_for_sensitivity`.

    Raises:
        InputError: the images are all of one kind.
    """
    candidates = np.unique(score)[::-1]
    rates = weighted_rates(score, is_positive, candidates, unit_weights(score))
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    if not positives or not negatives:
        raise InputError(
            "the validation images are all benign or all malignant, so no threshold can be chosen; "
            "choose another split.val_fold, or add lesions"
        )
    # The sum times the positives times the negatives, in whole numbers: fractions would break ties by rounding errors.
    index = rates["true_positives"] * negatives - rates["false_positives"] * positives
    return float(candidates[index[0].argmax()])


def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV where `prevalence` of the images are malignant, by Bayes' theorem; NaN where no image is called so.

    Arguments of shapes that numpy broadcasts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ppv = sensitivity * prevalence / (sensitivity * prevalence + (1 - specificity) * (1 - prevalence))
        npv = specificity * (1 - prevalence) / (specificity * (1 - prevalence) + (1 - sensitivity) * prevalence)
    return ppv, npv


def net_benefit(
    true_positives: np.ndarray, false_positives: np.ndarray, total: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """True positives per image, less the false ones at the rate of exchange that the threshold stands for.

    Whoever acts at or above a probability of 0.1 weighs one false negative like nine false positives
    (Vickers & Elkin, Medical Decision Making 26:565, 2006).

    Args:
        true_positives: shape (replicates, k).
        false_positives: shape (replicates, k).
        total: images, shape (replicates, 1).
        thresholds: probabilities below 1, shape (k,).
    """
    return (true_positives - false_positives * thresholds / (1 - thresholds)) / total
