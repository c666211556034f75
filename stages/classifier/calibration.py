"""What turns a network's output into a probability and a decision: kept beside the weights, used wherever it predicts.

Fitted on the validation images by `evaluate`, and frozen there.
"""

from collections.abc import Sequence
from dataclasses import fields
from decimal import ROUND_FLOOR, Context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from stages.checks import Count, Flag, Float, Number, Share, Text, checked
from stages.classifier.description import DESCRIPTION, read_description
from stages.errors import InputError, regenerate
from stages.files import JSON_DECIMALS, MODEL_WEIGHTS, MODELS, parse_json, read_json, sha256_of, write_json

CALIBRATION = "calibration.json"
_CHECKED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_TIE = 1e-12  # relative difference of expected costs that is a rounding error
_IF_THERE: Any = Field(default=None, exclude_if=lambda value: value is None)


def _check_square(rows: tuple) -> tuple:
    if any(len(row) != len(rows) for row in rows):
        raise ValueError("a square matrix")
    return rows


Costs = Annotated[tuple[tuple[Number, ...], ...], AfterValidator(_check_square)]


@dataclass(frozen=True, config=_CHECKED)
class FittedOn:
    """The part of a dataset that a calibration was fitted on."""

    dataset: Text
    """Name of its folder."""
    images: Count
    """Images of the part."""
    lesions: Count
    """Lesions of the part."""
    malignant_lesions: Count
    """Malignant lesions of the part."""

    def __str__(self) -> str:
        return f"{self.lesions} lesions of {self.dataset}, {self.malignant_lesions} of them malignant"


@dataclass(frozen=True, config=_CHECKED)
class Calibration:
    """What models/calibration.json holds: fitted on the validation images, frozen since."""

    test_time_augmentation: Flag
    """Whether probabilities are means over the 8 flips and quarter turns of an image."""
    temperature: Annotated[
        Float, Field(ge=1e-6, le=1e6)
    ]  # a smaller one would make infinite logits, and no probabilities
    """Divides the logarithms of the probabilities."""
    threshold: Share
    """An image is called malignant at or above this calibrated probability of malignancy."""
    target_sensitivity: Share
    """What threshold reaches on the validation images."""
    youden_threshold: Share
    """The threshold with the largest sum of sensitivity and specificity on the validation images."""
    costs: Costs | None = _IF_THERE
    """What it costs to decide for a class (column) where another is true (row), as `decide` takes it. Not there, as in
    files of earlier commits: the most probable class."""
    bias: tuple[Float, ...] | None = _IF_THERE
    """Of each class, added to the divided logarithm of its probability; not there where none is."""
    fitted_on: FittedOn | None = _IF_THERE
    """Not there where it was fitted on the model's own validation images; else these lesions stand for them."""


@dataclass(frozen=True, config=_CHECKED)
class _CalibrationFile(Calibration):
    weights_sha256: Text | None = None
    """The weights to whose outputs it was fitted; files of earlier commits, which `compare` reads, do not say it."""


def calibrate(probabilities: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrated probabilities of those that the network gives, both of shape (n, classes)."""
    return apply_temperature(probabilities, calibration.temperature, calibration.bias)


def apply_temperature(
    probabilities: np.ndarray, temperature: float, bias: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017) of probabilities.

    Logarithms of probabilities are logits up to a constant per image, which the softmax cancels; so means
    over several views of an image can be scaled like the output of one.

    Args:
        probabilities: shape (n, classes), rows that sum to 1.
        temperature: above 0; above 1 it lowers the confidence, below 1 it raises it.
        bias: of each class, added to the scaled logarithms: temperature scaling with bias correction (Alexandari et
            al., ICML 2020). None: nothing.

    Returns:
        Shape (n, classes), rows that sum to 1.

    Raises:
        ValueError: these are not probabilities.
    """
    # A NaN fails every comparison, so ask for what is right rather than for what is wrong.
    if not ((probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)):
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    if bias is not None:
        logits += np.asarray(bias)
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def decide(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The class of the lowest expected cost of each image; of equal ones the first.

    The decision of least risk of Bayesian decision theory (Duda, Hart & Stork, Pattern Classification, 2001, section
    2.2). Where every mistake costs the same it is the most probable class; where it costs 1/sⱼ to miss the class j, the
    one with the largest p / s.

    Args:
        probabilities: calibrated, rounded as they are written, shape (n, classes).
        costs: at least 0, a row for each true class and a column for each that can be decided for, shape (classes,
            classes).

    Returns:
        Numbers of classes, shape (n,).
    """
    expected = probabilities @ costs
    return (expected <= expected.min(axis=1, keepdims=True) * (1 + _TIE)).argmax(axis=1)


def cost_matrix(costs: Sequence[Sequence[float]] | None, classes: int) -> np.ndarray:
    """The costs of a calibration for `decide`, shape (classes, classes); None: 1 for every mistake."""
    return 1 - np.eye(classes) if costs is None else np.array(costs, np.float64)


def described(calibration: Calibration) -> dict:
    """What a calibration holds, as JSON has it, without what is not there."""
    return TypeAdapter(type(calibration)).dump_python(calibration, mode="json")


def save_calibration(calibration: Calibration, folder: Path = MODELS, path: Path | None = None) -> None:
    """Write `calibration.json` beside the weights in `folder` that it was fitted for, or to `path`."""
    content = _CalibrationFile(**described(calibration), weights_sha256=sha256_of(folder / MODEL_WEIGHTS.name))
    write_json(path or folder / CALIBRATION, described(content))


def as_written(number: float) -> float:
    """`number` rounded down to the significant digits that `calibration.json` keeps: a threshold includes its image."""
    return float(Context(JSON_DECIMALS, ROUND_FLOOR).create_decimal_from_float(number))


def load_calibration(folder: Path = MODELS) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        InputError: the file is missing, damaged, is not a calibration, or was fitted for other weights or classes
            than those beside it, if there are any.
    """
    path, weights = folder / CALIBRATION, folder / MODEL_WEIGHTS.name
    content: _CalibrationFile = read_json(path, _CalibrationFile)
    if content.weights_sha256 is not None and weights.exists() and content.weights_sha256 != sha256_of(weights):
        raise regenerate(f"{path} was not fitted for the weights in {weights}")
    try:
        return _for_classes(content, folder)
    except ValueError as error:
        raise regenerate(f"{path}: {error}") from None


def read_calibration(path: Path, folder: Path) -> Calibration:
    """Read another calibration for the weights in `folder`, as `validate --recalibrate` makes it.

    Raises:
        InputError: the file is missing, damaged, is not a calibration, or was fitted for other weights or classes.
    """
    weights = folder / MODEL_WEIGHTS.name
    try:
        content: _CalibrationFile = checked(parse_json(path.read_bytes()), _CalibrationFile)
        if content.weights_sha256 != sha256_of(weights):
            raise ValueError(f"it was not fitted for the weights in {weights}")
        return _for_classes(content, folder)
    except (OSError, ValueError) as error:
        advice = "name a file that `validate --recalibrate` made for this model"
        raise InputError(f"--calibration {path}: {error}; {advice}") from None


def _for_classes(content: _CalibrationFile, folder: Path) -> Calibration:
    """What a file holds, for the model in `folder`, if there is one; a ValueError where it is of other classes."""
    numbers = {"costs are": content.costs, "bias is": content.bias}
    if any(of is not None for of in numbers.values()) and (folder / DESCRIPTION).exists():
        count = len(read_description(folder / DESCRIPTION).classes)
        for name, of in numbers.items():
            if of is not None and len(of) != count:
                raise ValueError(f"{name} of {len(of)} classes; the model has {count}")
    return Calibration(**{field.name: getattr(content, field.name) for field in fields(Calibration)})
