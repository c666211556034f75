"""What turns a network's output into a probability and a decision: kept beside the weights, used wherever it predicts.

Fitted on the validation images by `evaluate`, and frozen there.
"""

import math
from dataclasses import asdict, dataclass, fields
from decimal import ROUND_FLOOR, Context
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.files import JSON_DECIMALS, MODEL_WEIGHTS, MODELS, read_json, sha256_of, write_json

CALIBRATION = "calibration.json"
FITTED_FOR = "weights_sha256"  # in the file: the weights whose outputs it was fitted to


@dataclass(frozen=True)
class Calibration:
    """What `calibration.json` holds.

    Attributes:
        test_time_augmentation: whether the probabilities are means over the 8 flips and quarter turns of an image.
        temperature: divides the logarithms of the probabilities.
        threshold: an image is called malignant at or above this calibrated probability of malignancy.
        target_sensitivity: what `threshold` reaches on the validation images.
        youden_threshold: the threshold with the largest sum of sensitivity and specificity there, for comparison.
    """

    test_time_augmentation: bool
    temperature: float
    threshold: float
    target_sensitivity: float
    youden_threshold: float


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017) of probabilities.

    Logarithms of probabilities are logits but for a constant of each image, which the softmax takes out again; so means
    over several views of an image can be scaled like the output of one.

    Args:
        probabilities: shape (n, classes), rows that sum to 1.
        temperature: above 0; above 1 it lowers the confidence, below 1 it raises it.

    Returns:
        Shape (n, classes), rows that sum to 1.

    Raises:
        ValueError: these are no probabilities.
    """
    # A NaN fails every comparison, so ask for what is right rather than for what is wrong.
    if not ((probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)):
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def save_calibration(calibration: Calibration, folder: Path = MODELS) -> None:
    """Write `calibration.json` beside the weights that it was fitted for."""
    write_json(folder / CALIBRATION, asdict(calibration) | {FITTED_FOR: sha256_of(folder / MODEL_WEIGHTS.name)})


def as_written(number: float) -> float:
    """`number` rounded down to the significant digits that `calibration.json` keeps: a threshold includes its image."""
    return float(Context(JSON_DECIMALS, ROUND_FLOOR).create_decimal_from_float(number))


def load_calibration(folder: Path = MODELS) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        InputError: the file is missing, damaged, holds numbers that are no calibration, or was fitted for other weights
            than those beside it, if there are any.
    """
    path, weights = folder / CALIBRATION, folder / MODEL_WEIGHTS.name
    content = read_json(path)
    names = [field.name for field in fields(Calibration)]
    # Files of earlier commits, which `compare` reads, do not say it.
    fitted_for = content.pop(FITTED_FOR, None) if isinstance(content, dict) else None
    if not isinstance(content, dict) or set(content) != set(names):
        raise InputError(f"{path} must hold {', '.join(names)}; run `dvc repro` to regenerate it")

    def check(key: str, valid: bool, expected: str) -> None:
        if not valid:
            raise InputError(f"{path}: {key} is {content[key]!r}; it must be {expected}")

    def number(key: str) -> bool:
        return type(content[key]) in (int, float) and math.isfinite(content[key])

    check("test_time_augmentation", type(content["test_time_augmentation"]) is bool, "true or false")
    check("temperature", number("temperature") and content["temperature"] > 0, "a number above 0")
    for key in ("threshold", "target_sensitivity", "youden_threshold"):
        check(key, number(key) and 0 <= content[key] <= 1, "a number from 0 to 1")
    if fitted_for is not None and weights.exists() and fitted_for != sha256_of(weights):
        raise InputError(f"{path} was not fitted for the weights in {weights}; run `dvc repro` to regenerate it")
    return Calibration(**content)
