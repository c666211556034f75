"""What the numbers of an evaluation amount to, in sentences: what the report page says before all tables."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from stages.evaluation.subgroups import METRICS, MIN_LESIONS
from stages.evaluation.verdict import BROKEN, HOLDS, MARGINS, UNTOLD, less, told
from stages.reporting import ATTRIBUTES, PROMISES, capitalized, estimate, number

STATES: Any = {HOLDS: "good", BROKEN: "bad", UNTOLD: "open"}
CHANCE = 0.5  # the AUROC of a coin
MOST_SHOWN = 3  # names in a sentence


class Finding(NamedTuple):
    """One thing that was looked for.

    Attributes:
        state: good: it holds; open: too few lesions to say, or a limit to be known; bad: it does not hold.
        title: the claim that was looked into.
        text: what was found.
    """

    state: Literal["good", "open", "bad"]
    title: str
    text: str


def judge(details: dict) -> list[Finding]:
    """Judge an evaluation: discrimination first, then what the image adds, the promises, leaks, shortcuts and groups.

    Of a promise `told` says whether it holds, as on another dataset.

    Args:
        details: the content of metrics/details.json.
    """
    test = details["test"]
    claims = [
        _discrimination(test),
        *_added_by_the_image(details),
        _promised_sensitivity(test, details["calibration"]["target_sensitivity"]),
        _calibration(test),
    ]
    return [
        # Of another dataset, what `validate` says of it, beside the model's own test images.
        *(map(_promise, details["verdict"]["promises"]) if "verdict" in details else claims),
        _leaks(details["leakage"], "verdict" in details),
        *_shortcuts(details.get("sources")),
        *_groups(test, "verdict" in details),
    ]


def _promise(promise: dict) -> Finding:
    return Finding(STATES[promise["status"]], PROMISES[promise["name"]], promise["sentence"])


def malignant_auroc(metrics: dict) -> str:
    """The name, among the metrics of 2 classes or of diagnoses, of the AUROC of malignancy."""
    return "auroc" if "auroc" in metrics else "malignant_auroc"


def _discrimination(test: dict) -> Finding:
    title, auroc = "Malignant is told from benign", test["metrics"][malignant_auroc(test["metrics"])]
    if auroc["value"] is None:
        return Finding("open", title, "The images are all benign or all malignant: nothing can be said.")
    low, high = auroc["interval"]
    if low > CHANCE:
        return Finding("good", title, f"Told apart better than by chance: AUROC {estimate(auroc)}.")
    if high < CHANCE:
        return Finding(
            "bad", title, f"Told apart worse than by tossing a coin: AUROC {estimate(auroc)}, by chance 0.5."
        )
    return Finding(
        "bad", title, f"Not shown to be told apart: AUROC {estimate(auroc)}, and tossing a coin has {CHANCE}."
    )


def _added_by_the_image(details: dict) -> Iterator[Finding]:
    if details["baselines"] is None:
        return
    adds = details["baselines"]["metadata"]["image_adds"]
    title, added = "The image tells more than the metadata", adds[malignant_auroc(adds)]
    known = ", ".join(details["baselines"]["metadata"]["columns"])
    if added["value"] is None:
        yield Finding("open", title, f"It cannot be compared with {known} alone.")
    elif added["interval"][0] > 0:
        yield Finding("good", title, f"More than {known} tell: AUROC higher by {estimate(added)}.")
    elif added["interval"][1] < 0:
        yield Finding(
            "bad", title, f"{capitalized(known)} alone tell more: with the image AUROC changes by {estimate(added)}."
        )
    else:
        text = f"Not shown to be more than {known} tell: AUROC changes by {estimate(added)}."
        yield Finding("open" if added["value"] > 0 else "bad", title, text)


def _promised_sensitivity(test: dict, target: float) -> Finding:
    title, point = "The promised sensitivity is reached", test["operating_points"]["target_sensitivity"]
    found = point["sensitivity"]
    status, _ = told(less(found, target), MARGINS["sensitivity_at_threshold"], two_sided=False)
    promised = f"{number(target)} was promised by the threshold {number(point['threshold'])}"
    return Finding(STATES[status], title, f"{status.capitalize()}: {estimate(found)}; {promised}.")


def _calibration(test: dict) -> Finding:
    title, error = "Probabilities are calibrated", test["calibration"]["after"]["ece"]
    # Its interval starts at 0 where chance alone makes an error so large.
    if error["value"] is None:
        return Finding("open", title, "There is nothing to judge them by.")
    if error["interval"][0] > 0:
        return Finding("bad", title, f"Off by more than chance explains: ECE {estimate(error)}.")
    return Finding("good", title, f"Off by no more than chance explains: ECE {estimate(error)}.")


def _leaks(leakage: dict | None, elsewhere: bool) -> Finding:
    title = "The images are new to the model" if elsewhere else "No leaks"
    if leakage is None:
        return Finding("open", title, "Not looked for: which images the model was trained on is not known here.")
    places = "both here and in what the model has seen" if elsewhere else "in two splits"
    found = {
        "lesions": leakage["lesions_in_more_than_one_split"],
        "known duplicates": len(leakage["known_duplicates_apart"]),
        "images that look alike": len(leakage["near_duplicates"]["pairs"]),
    }
    if leaks := "; ".join(f"{what} {places}: {count}" for what, count in found.items() if count):
        return Finding("bad", title, f"What tests may have been trained on. {capitalized(leaks)}.")
    return Finding("good", title, f"No lesion, known duplicate or image that looks alike is {places}.")


def _shortcuts(sources: dict | None) -> Iterator[Finding]:
    if sources is None:
        return
    title, lacking = "No shortcuts between sources", sources["lacks"]
    told = sources.get("told")
    if not lacking:
        yield Finding("good", title, "None found: every source has lesions of the diagnoses that the others have.")
        return
    names = "; ".join(
        f"{name} has next to none of {', '.join(dxs)}" for name, dxs in list(lacking.items())[:MOST_SHOWN]
    )
    seen = ""
    if told:
        seen = (
            f" The network's last layer tells the sources apart with a balanced accuracy of {number(told['features'])}"
            f", chance {number(told['chance'])}."
        )
    yield Finding("bad", title, f"The source may stand for the diagnosis: {names}.{seen}")


def _groups(test: dict, elsewhere: bool) -> Iterator[Finding]:
    gaps, small = [], {}
    for attribute, title in ATTRIBUTES.items():
        if attribute not in test["subgroups"]:
            continue
        found = test["subgroups"][attribute]
        gap = found["worst_gap"]["sensitivity"]
        if gap and gap["difference"]["interval"] and gap["difference"]["interval"][0] > 0:
            gaps.append(f"by {title} {gap['highest']} over {gap['lowest']} by {estimate(gap['difference'])}")
        few = [group["name"] for group in found["groups"] if not all(group["judged"][name] for name in METRICS)]
        if few:
            small[title] = f"{len(few)} of {len(found['groups'])} by {title}"
    if gaps:
        text = f"Sensitivity differs: {'; '.join(gaps)}. The widest gaps were picked, which makes them look wider."
        yield Finding("open", "Groups", text)
    if small and not elsewhere:  # else a remark of the verdict names them
        text = (
            f"With fewer than {MIN_LESIONS} malignant or benign lesions, so that nothing is said of them: "
            f"{', '.join(small.values())}."
        )
        yield Finding("open", "Groups too small", text)
    if not gaps and not small:
        yield Finding("good", "Groups", "None is shown to be served worse than another.")
    if test["not_assessable"]:
        yield Finding("open", "Not assessable", "; ".join(map(capitalized, test["not_assessable"][:MOST_SHOWN])) + ".")
