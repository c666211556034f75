"""How numbers, names and tables are written for people: in a terminal, in Markdown and on the pages.

One notation everywhere: three decimals, a minus sign as wide as a digit, an interval as "0.849 to 0.971", since a dash
could be taken for a minus, and "–" for a number that does not exist.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.errors import printable

MISSING = "–"  # a number that does not exist, as the sensitivity where nothing is malignant


class Metric(NamedTuple):
    """A metric's name and what it means, in words."""

    title: str
    meaning: str


# In the order in which they are shown.
METRICS = {
    "auroc": Metric("AUROC", "chance that a malignant image scores higher than a benign one"),
    "malignant_auroc": Metric("AUROC of malignancy", "chance that a malignant image scores higher than a benign one"),
    "macro_auroc": Metric("AUROC, macro", "each diagnosis against the rest, mean over the diagnoses"),
    "auprc": Metric("AUPRC", "precision averaged over all sensitivities; by chance the share of malignant images"),
    "macro_auprc": Metric("AUPRC, macro", "each diagnosis against the rest, mean over the diagnoses"),
    "sensitivity_at_threshold": Metric("Sensitivity at the threshold", "malignant images that are called malignant"),
    "specificity_at_threshold": Metric("Specificity at the threshold", "benign images that are called benign"),
    "accuracy": Metric("Accuracy", "images whose most probable class is the right one"),
    "balanced_accuracy": Metric("Balanced accuracy", "the same in each class, mean over the classes"),
    "decided_accuracy": Metric(
        "Accuracy, decided", "images of which the class of the lowest expected cost is the right one"
    ),
    "decided_balanced_accuracy": Metric("Balanced accuracy, decided", "the same in each class, mean over the classes"),
    "sensitivity": Metric("Sensitivity", "malignant images whose most probable class is malignant"),
    "macro_sensitivity": Metric("Sensitivity, macro", "by the most probable class, mean over the diagnoses"),
    "specificity": Metric("Specificity", "benign images whose most probable class is benign"),
    "macro_specificity": Metric("Specificity, macro", "by the most probable class, mean over the diagnoses"),
    "precision": Metric("Precision", "of the images whose most probable class is malignant, those that are"),
    "macro_precision": Metric("Precision, macro", "by the most probable class, mean over the diagnoses"),
    "f1": Metric("F1", "harmonic mean of precision and sensitivity"),
    "macro_f1": Metric("F1, macro", "harmonic mean of precision and sensitivity, mean over the diagnoses"),
    "ece": Metric("ECE", "expected calibration error: distance of confidence and accuracy; lower is better"),
    "brier": Metric("Brier score", "mean squared error of the probabilities; lower is better"),
    "nll": Metric("Log loss", "negative log-likelihood in nats; lower is better"),
}
PROMISES = {  # of a model, held against another dataset
    **{name: METRICS[name].title for name in ("sensitivity_at_threshold", "auroc", "malignant_auroc", "macro_auroc")},
    "mean_probability": "Mean probability of malignancy",
    "calibration_slope": "Calibration slope",
}
LOWER_IS_BETTER = ("ece", "brier", "nll")
ATTRIBUTES = {
    "age": "age in years",
    "sex": "sex",
    "localization": "localization",
    "dataset": "source",
    "dx_type": "reference standard",
    "skin_type": "skin type (Fitzpatrick)",
}
OPERATING_POINTS = {"target_sensitivity": "target sensitivity", "youden": "Youden's index"}


def number(value: float | None) -> str:
    """Three decimals and a minus sign that is as wide as a digit."""
    # Adding 0 makes 0 of the -0 that rounding leaves.
    return MISSING if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def signed(difference: float) -> str:
    """As "+0.012" or "−0.012"."""
    return f"{round(difference, 3) + 0.0:+.3f}".replace("-", "−")


def interval(estimated: dict) -> str:
    """The interval of `{"value": …, "interval": …}`, as "0.849 to 0.971"."""
    return MISSING if estimated["interval"] is None else " to ".join(map(number, estimated["interval"]))


def estimate(estimated: dict) -> str:
    """Value and interval, as "0.919 (0.849 to 0.971)"."""
    return MISSING if estimated["value"] is None else f"{number(estimated['value'])} ({interval(estimated)})"


def change(estimated: dict) -> str:
    """A difference and its interval, as "+0.012 (0.003 to 0.021)"."""
    return f"{signed(estimated['value'])} ({interval(estimated)})"


def counted(count: int, noun: str) -> str:
    """As "1 image", "2 images", with a space at which no line breaks."""
    return f"{count}\N{NO-BREAK SPACE}{noun}{'' if count == 1 else 's'}"


def capitalized(text: str) -> str:
    """`text` with a capital at its start, and all else as it is."""
    return text[:1].upper() + text[1:]


def percent(fraction: float) -> str:
    """A fraction in percent with the digits it needs: 0.02 is "2 %", with a space at which no line breaks."""
    return f"{100 * fraction:.4g}\N{NO-BREAK SPACE}%"


def rounded_percent(fraction: float) -> str:
    """A fraction in whole percent, below one with a decimal: 0.3837 is "38 %", 0.0012 "0.1 %"."""
    return percent(round(fraction, 2 if fraction >= 0.01 else 3))


def in_order(metrics: dict) -> list[tuple[str, Metric, dict]]:
    """Name, title and number of each metric, in the order of `METRICS`."""
    return [(name, METRICS[name], metrics[name]) for name in sorted(metrics, key=list(METRICS).index)]


def shortened(text: str, length: int) -> str:
    """`text`, of which no more is shown than so many letters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def escape_markdown(text: object) -> str:
    """`text` on one line that means nothing in Markdown or HTML, inside a table too: a branch may be called <b>."""
    return "".join(f"\\{character}" if character in r"\`*_[]<>|#&~" else character for character in printable(text))


def code(text: object) -> str:
    """`text` on one line as code, in which Markdown and HTML mean nothing.

    Not with `escape_markdown`: a client of a forge that reads Markdown and writes it again, as CML does, drops the
    backslash before a "|", which then breaks a table.
    """
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # Of a space at both ends one is no part of the code.
    space = "" if shown and shown == shown.strip(" `") else " "
    return f"{fence}{space}{shown}{space}{fence}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of Markdown, of which the first is the head, as a table; a "|" in a cell, in code too, ends no cell."""
    head, *rest = ([re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells] for cells in rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rest))


TERMINAL = 100  # columns that a table may take


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, of which the first is the head, as aligned columns of plain text."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
