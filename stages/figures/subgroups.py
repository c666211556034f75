"""The forest plot of subgroups."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stages.evaluation.metrics import of_malignancy
from stages.evaluation.predictions import Predictions
from stages.evaluation.subgroups import METRICS, MIN_LESIONS
from stages.figures.style import BLACK, BLUE, GREY, SMALL, describe, new_figure
from stages.reporting import ATTRIBUTES, number, percent

_ROW = 0.24  # inches
_OVERALL = {"color": BLACK, "marker": "D", "linestyle": "none", "markersize": 7}
_JUDGED = {"color": BLUE, "marker": "o", "linestyle": "none", "markersize": 7}
_TOO_FEW = {"color": GREY, "marker": "o", "linestyle": "none", "markersize": 6, "markerfacecolor": "white"}


def flat_subgroups(details: dict) -> pd.DataFrame:
    """The subgroups of metrics/details.json as a table, one row per group of an attribute.

    Returns:
        Columns attribute, group, subgroup (both, as "sex: male"), images, lesions, malignant_lesions, benign_lesions,
        and by metric (sensitivity and specificity at the decision threshold, auroc) its value, `_lower` and `_upper`,
        NaN where there is none, and `_judged`: whether there are enough lesions.
    """
    rows = []
    for attribute in (name for name in ATTRIBUTES if name in details["test"]["subgroups"]):
        for group in _in_order(attribute, details["test"]["subgroups"][attribute]["groups"]):
            row = {"attribute": attribute, "group": group["name"], "subgroup": f"{attribute}: {group['name']}"}
            row |= {name: group[name] for name in ("images", "lesions", "malignant_lesions", "benign_lesions")}
            for metric in METRICS:
                value, (lower, upper) = group[metric]["value"], group[metric]["interval"] or (None, None)
                row |= {metric: value, f"{metric}_lower": lower, f"{metric}_upper": upper}
                row[f"{metric}_judged"] = group["judged"][metric]
            rows.append(row)
    numbers = [f"{metric}{ending}" for metric in METRICS for ending in ("", "_lower", "_upper")]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def _in_order(attribute: str, groups: list[dict]) -> list[dict]:
    """Ages rise, for a trend to be seen; of other attributes the largest group is first, as in metrics/details.json."""
    return sorted(groups, key=lambda group: group["name"].removeprefix("under ")) if attribute == "age" else groups


def draw_subgroups(predictions: Predictions, details: dict, groups: pd.DataFrame) -> Figure:
    """Sensitivity and specificity at the decision threshold, and AUROC, of each group and of all images.

    Args:
        predictions: of the evaluated images.
        details: what metrics/details.json holds of them.
        groups: what `flat_subgroups` gives.
    """
    names, lines = _lay_out(predictions, groups)
    overall = of_malignancy(details["test"]) | details["test"]["operating_points"]["target_sensitivity"]
    figure, panels = new_figure(1.3 + _ROW * len(names), columns=len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS):
        _draw_panel(axes, groups, lines, metric, overall[metric])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_yticks(range(len(names)), names)
    headings = set(range(1, len(names))) - set(lines)
    for line, label in enumerate(panels[0].get_yticklabels()):
        label.set_weight("bold" if line in headings else "normal")
    figure.legend(*_key(), loc="outside lower left", ncols=2, alignment="left")
    describe(
        figure, "Subgroups", predictions, "After each name: malignant + benign lesions. "
        f"Sensitivity and specificity at the threshold {number(details['calibration']['threshold'])}; "
        f"{percent(details['confidence'])} intervals, bootstrap over lesions; "
        "those of too small groups may be cut off.",
    )  # fmt: skip
    return figure


def _lay_out(predictions: Predictions, groups: pd.DataFrame) -> tuple[list[str], list[int]]:
    """The text of each line: all images, then each attribute with its groups below; and the lines of the groups."""
    lesions, is_malignant = pd.Series(predictions.lesions), predictions.is_malignant
    names, lines = [_name("all images", lesions[is_malignant].nunique(), lesions[~is_malignant].nunique())], []
    for attribute, members in groups.groupby("attribute", sort=False):
        names.append(ATTRIBUTES[str(attribute)])
        lines += range(len(names), len(names) + len(members))
        names += map(_name, members["group"], members["malignant_lesions"], members["benign_lesions"])
    return names, lines


def _name(group: str, malignant: int, benign: int) -> str:
    return f"{group}  {malignant} + {benign}"


def _draw_panel(axes: Axes, groups: pd.DataFrame, lines: list[int], metric: str, overall: dict) -> None:
    groups = groups.assign(line=lines)
    known, judged = groups[metric].notna(), groups[f"{metric}_judged"]
    lowest = pd.concat([groups[metric], groups[f"{metric}_lower"][judged]]).min()
    if overall["value"] is not None:
        low, high = overall["interval"]
        lowest = min(low, lowest)
        axes.axvline(overall["value"], color=BLACK, linestyle=":", linewidth=1.5)
        axes.axvspan(low, high, color=BLACK, alpha=0.08, linewidth=0)
        axes.hlines(0, low, high, color=BLACK)
        axes.plot(overall["value"], 0, **_OVERALL)
    for some, style in ((groups[known & judged], _JUDGED), (groups[known & ~judged], _TOO_FEW)):
        axes.hlines(some["line"], some[f"{metric}_lower"], some[f"{metric}_upper"], color=style["color"])
        axes.plot(some[metric], some["line"], **style)
    for line in groups["line"][~known]:
        axes.text(0.05, line, "none", transform=axes.get_yaxis_transform(), size=SMALL, color=GREY, va="center")
    # The intervals of groups that are too small would leave the others no room.
    span = 1 if np.isnan(lowest) else max(1 - lowest, 0.2)
    axes.set_xlim(1 - 1.06 * span, 1 + 0.06 * span)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_title("AUROC" if metric == "auroc" else metric, loc="center")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def _key() -> tuple[list[Line2D], list[str]]:
    """What the markers mean."""
    meanings = {
        "all images": _OVERALL,
        "group": _JUDGED,
        f"too few to assess: fewer than {MIN_LESIONS} lesions": _TOO_FEW,
    }
    return [Line2D([], [], **style) for style in meanings.values()], list(meanings)
