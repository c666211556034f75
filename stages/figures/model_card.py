"""The model card: what a trained model is for, what it was made from, how good it is, and where its limits are."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from stages.config import Config
from stages.dataset.folds import SPLITS
from stages.dataset.pixels import are_synthetic
from stages.evaluation.subgroups import most_frequent_first
from stages.figures.rendering import render_template
from stages.files import md5_of, replacing
from stages.reporting import ATTRIBUTES, MISSING, in_order, rounded_percent

REFERENCE_STANDARDS = {
    "histo": "histopathology",
    "follow_up": "follow-up",
    "consensus": "consensus of experts",
    "confocal": "confocal microscopy",
}
# Names that the Hugging Face Hub knows; the other metrics keep ours.
_HUB_METRICS = {
    "auroc": "roc_auc",
    "malignant_auroc": "roc_auc",
    "macro_auroc": "roc_auc",
    "sensitivity": "recall",
    "macro_sensitivity": "recall",
    "macro_precision": "precision",
    "macro_f1": "f1",
    "brier": "brier_score",
}
_MOST_LOCALIZATIONS = 6
_HUB_DECIMALS = 4  # and no exponent, which the Hub's YAML reader takes for text


class Source(NamedTuple):
    """Where images come from: a short name, a name for the Hub, and the licence of a model trained on them."""

    name: str
    hub_name: str
    licence: str


SYNTHETIC = Source("synthetic sample", "synthetic", "apache-2.0")
HAM10000 = Source("HAM10000", "ham10000", "cc-by-nc-4.0")
OWN = Source("a user-provided dataset", "custom", "unknown")


def write_model_card(
    path: Path,
    details: dict,
    description: dict,
    weights: Path,
    config: Config,
    manifest: pd.DataFrame,
    split: pd.DataFrame,
) -> None:
    """Write the model card: Markdown with the metadata block that the Hugging Face Hub reads.

    The same inputs give the same bytes: there are no versions in it, no date, and no commit, which does not
    exist yet.

    Args:
        path: the file to write.
        details: the content of metrics/details.json; of a release that of all folds, with its own calibration.
        description: the content of model.json.
        weights: the file of the weights.
        config: the parameters of the run.
        manifest: what `PixelStore` holds: one row per image.
        split: columns image_id and split; of a release other names than `SPLITS`.
    """
    images = manifest.merge(split[["image_id", "split"]], on="image_id", validate="one_to_one")
    diagnoses = description["taxonomy"]
    malignant = [dx for dx, diagnosis in diagnoses.items() if diagnosis["malignant"]]
    images["malignant"] = images["dx"].isin(malignant)
    splits = sorted(set(images["split"])) if "folds" in details else SPLITS
    source = source_of(images)
    content = weights.read_bytes()
    text = render_template(
        "model_card.md.j2",
        metadata=_yaml(_metadata(details, description, config, source)),
        details=details,
        test=details["test"],
        description=description,
        diagnoses=diagnoses,
        malignant=malignant,
        config=config,
        in_timm=_in_timm(description),
        source=source,
        synthetic=source is SYNTHETIC,
        ham10000=source is HAM10000,
        images=images,
        characteristics=list(_characteristics(images, diagnoses, splits)),
        reference_standards=_reference_standards(images),
        splits=splits,
        weights=weights.name,
        md5=md5_of(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=_yaml(_parameters(config)),
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def source_of(images: pd.DataFrame) -> Source:
    """Where the images come from, by their ids: a card must not claim what is not so.

    Args:
        images: columns image_id and lesion_id.
    """
    if are_synthetic(images["image_id"]):
        return SYNTHETIC
    if (images["image_id"].str.startswith("ISIC_") & images["lesion_id"].str.startswith("HAM_")).all():
        return HAM10000
    return OWN


def _metadata(details: dict, description: dict, config: Config, source: Source) -> dict:
    architecture = description["architecture"]
    numbers = [
        {"type": _HUB_METRICS.get(name, name), "value": round(it["value"], _HUB_DECIMALS), "name": metric.title}
        for name, metric, it in in_order(details["test"]["metrics"])
        if it["value"] is not None
    ]
    fold = f"test fold {config.split.test_fold} of {config.split.folds}"
    if "folds" in details:
        fold = f"{config.split.folds}-fold cross-validation"
    if config.split.by == "source":
        fold = f"the source {config.split.test_source}, which was held out"
    return {
        "license": source.licence,
        **({"library_name": "timm"} if _in_timm(description) else {}),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "dermatology", "dermoscopy", "skin-lesion", source.hub_name],
        "metrics": list(dict.fromkeys(number["type"] for number in numbers)),
        "model-index": [
            {
                "name": f"skin-lesion-{architecture}-{len(description['classes'])}-classes",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {"type": source.hub_name, "name": f"{source.name}, {fold}", "split": "test"},
                        "metrics": numbers,
                    }
                ],
            }
        ],
    }


def _in_timm(description: dict) -> bool:
    own = description["architecture"] == "baseline_cnn" or description["metadata"]
    return description["networks"] == 1 and not own


def _parameters(config: Config) -> dict:
    parameters = asdict(config)
    del parameters["runtime"]["num_workers"]  # changes nothing but the speed
    parameters["evaluation"]["prevalences"] = list(config.evaluation.prevalences)
    return parameters


def _yaml(content: dict) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000  # no line is broken
    yaml.dump(content, stream)
    return stream.getvalue().rstrip()


def _characteristics(
    images: pd.DataFrame, diagnoses: Iterable[str], splits: Iterable[str]
) -> Iterator[tuple[str, list[str]]]:
    """What the images of each split are: a name and a cell for each split, row by row."""
    parts = [images[images["split"] == name] for name in splits]
    yield "images", [str(len(part)) for part in parts]
    yield "lesions", [str(part["lesion_id"].nunique()) for part in parts]
    yield "malignant", [_share(part["malignant"]) for part in parts]
    for dx in diagnoses:
        yield f"diagnosis: {dx}", [_share(part["dx"] == dx) for part in parts]
    yield "age in years: median (quartiles)", [_quartiles(part["age"]) for part in parts]
    yield "age: missing", [_share(part["age"].isna()) for part in parts]
    for column in ("sex", "localization", "dataset", "dx_type", "skin_type"):
        most = _MOST_LOCALIZATIONS if column == "localization" else None
        names = most_frequent_first(images[column]) if column in images else []
        if column == "dataset" and len(names) == 1:
            continue
        title = ATTRIBUTES[column]
        for name in names[:most]:
            shown = REFERENCE_STANDARDS.get(name, name) if column == "dx_type" else name
            yield f"{title}: {shown}", [_share(part[column] == name) for part in parts]
        rest = names[most:] if most else []
        if rest:
            yield f"{title}: {len(rest)} others", [_share(part[column].isin(rest)) for part in parts]


def _share(members: pd.Series) -> str:
    return f"{members.sum()} ({rounded_percent(members.mean())})" if len(members) else MISSING


def _quartiles(age: pd.Series) -> str:
    if age.isna().all():
        return MISSING
    low, middle, high = age.quantile([0.25, 0.5, 0.75])
    return f"{middle:g} ({low:g} to {high:g})"


def _reference_standards(images: pd.DataFrame) -> list[tuple[str, str, str]]:
    """How the diagnoses were made, the most frequent first: name, share of malignant and of benign images."""
    malignant, benign = images[images["malignant"]], images[~images["malignant"]]
    return [
        (REFERENCE_STANDARDS.get(name, name), _share(malignant["dx_type"] == name), _share(benign["dx_type"] == name))
        for name in most_frequent_first(images["dx_type"])
    ]
