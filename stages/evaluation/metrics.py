"""How good predictions are: threshold metrics, ranking metrics and the confusion matrix."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multiclass_specificity,
)

from stages.dataset.taxonomy import class_names, malignant_classes


def compute_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """The metrics of a set of predictions, each image decided for its most probable class.

    For two classes sensitivity, specificity, precision, F1, AUROC and AUPRC are those of malignancy. For seven, those
    of each diagnosis against the rest, their unweighted means with the prefix `macro_`, and `malignant_auroc`: that of
    the summed probability of the malignant diagnoses. A class without images has no metrics of its own (None) and is
    left out of the means; specificity, AUROC and AUPRC need images outside the class as well. Average precision is the
    step-wise sum (Davis & Goadrich, ICML 2006), not the trapezoid.

    Args:
        probabilities: shape (n, 2) or (n, 7), in [0, 1], rows that sum to 1.
        labels: numbers of classes, shape (n,).

    Returns:
        `metrics`: name to number; `classes`: the metrics of each class by its name, for seven classes;
        `confusion_matrix`: counts, a row for each true class and a column for each predicted one.

    Raises:
        ValueError: no images, or numbers that are no probabilities or no classes.
    """
    scores, target, names = _checked(probabilities, labels)
    matrix = multiclass_confusion_matrix(scores, target, len(names))
    # torchmetrics counts the classes that neither labels nor predictions have; balanced accuracy must not.
    present = [bool(count) for count in matrix.sum(dim=1)]
    per_class = {
        name: metrics if here else dict.fromkeys(metrics)
        for name, here, metrics in zip(names, present, _class_metrics(scores, target, len(names)))
    }
    shared = {
        "accuracy": multiclass_accuracy(scores, target, len(names), average="micro").item(),
        "balanced_accuracy": _mean(metrics["sensitivity"] for metrics in per_class.values()),
    }
    result = {"confusion_matrix": matrix.tolist()}
    if len(names) == 2:
        return {"metrics": {**shared, **per_class["malignant"]}, **result}
    macro = {
        f"macro_{key}": _mean(metrics[key] for metrics in per_class.values())
        for key in ("sensitivity", "specificity", "precision", "f1", "auroc", "auprc")
    }
    malignant = torch.tensor([name in malignant_classes(len(names)) for name in names])
    is_malignant = malignant[target]
    if len(is_malignant.unique()) == 2:
        shared["malignant_auroc"] = binary_auroc(
            scores[:, malignant].sum(dim=1).clamp(max=1), is_malignant.long()
        ).item()
    else:
        shared["malignant_auroc"] = None
    return {"metrics": {**shared, **macro}, "classes": per_class, **result}


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or probabilities.shape[1] not in (2, 7) or not len(probabilities):
        raise ValueError(
            f"probabilities have the shape {probabilities.shape}; it must be (n, 2) or (n, 7), n at least 1"
        )
    # A NaN fails every comparison, so ask for what is right rather than for what is wrong.
    valid = (probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    if not valid:
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row")
    classes = probabilities.shape[1]
    if labels.shape != (len(probabilities),) or not np.isin(labels, np.arange(classes)).all():
        raise ValueError(f"labels must be {len(probabilities)} numbers of classes, from 0 to {classes - 1}")
    return torch.from_numpy(probabilities), torch.from_numpy(labels.astype(np.int64)), class_names(classes)


def _class_metrics(scores: Tensor, target: Tensor, classes: int) -> list[dict[str, float | None]]:
    columns = {
        "sensitivity": multiclass_recall(scores, target, classes, average=None),
        "specificity": multiclass_specificity(scores, target, classes, average=None),
        "precision": multiclass_precision(scores, target, classes, average=None),
        "f1": multiclass_f1_score(scores, target, classes, average=None),
    }
    metrics = []
    for number in range(classes):
        is_class = (target == number).long()
        others = bool((target != number).any())
        ranked = others and bool(is_class.any())
        metrics.append(
            {key: column[number].item() for key, column in columns.items()}
            | ({} if others else {"specificity": None})
            | {
                "auroc": binary_auroc(scores[:, number], is_class).item() if ranked else None,
                "auprc": binary_average_precision(scores[:, number], is_class).item() if ranked else None,
            }
        )
    return metrics


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
