"""One model of a cross-validated run: the average of the networks of all its folds, with a calibration of its own."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.classifier.calibration import Calibration
from stages.classifier.description import DESCRIPTION, ModelDescription
from stages.classifier.fusion import METADATA
from stages.classifier.networks import Ensemble
from stages.classifier.weights import WEIGHTS, load_model
from stages.config import MOST_NETWORKS, EvaluationConfig
from stages.dataset.encoding import widest
from stages.errors import InputError
from stages.evaluation.averaging import calibrate_average
from stages.evaluation.decisions import BALANCED, decision_costs
from stages.experiments.pooling import Fold, by_two_networks, mean_of_two_networks
from stages.files import MODEL_DESCRIPTION, MODEL_WEIGHTS


def gather_networks(folds: Sequence[Fold]) -> tuple[Ensemble, ModelDescription]:
    """The networks of all folds as one model, from DVC's cache or remote.

    Raises:
        InputError: weights are not available, or there are too many networks.
    """
    members, descriptions = [], []
    for fold in folds:
        with tempfile.TemporaryDirectory() as folder:
            for path, name in ((MODEL_WEIGHTS, WEIGHTS), (MODEL_DESCRIPTION, DESCRIPTION)):
                content = fold.revision.read(path)
                if content is None:
                    raise fold.revision.lacks(path)
                (Path(folder) / name).write_bytes(content)
            try:
                network, description = load_model(Path(folder))
            except InputError as error:
                raise InputError(f"{fold.revision.name}: {str(error).replace(folder, 'models')}") from None
        members += network.members
        descriptions.append(description)
    if len(members) > MOST_NETWORKS:
        raise InputError(
            f"the folds have {len(members)} networks together, and a model at most {MOST_NETWORKS}; lower split.folds, "
            "or model.ensemble"
        )
    first = descriptions[0]
    for fold, other in zip(folds, descriptions):
        for key in ("architecture", "classes", "taxonomy", "image_size", "detail", "mean", "std"):
            if getattr(other, key) != getattr(first, key):
                raise InputError(f"the models of {fold.revision.name} and {folds[0].revision.name} differ in {key}")
    # The training images of one fold may lack a site that those of another have.
    encodings = [each.metadata for each in descriptions for _ in range(each.networks) if each.metadata]
    metadata = widest(encodings) if encodings else None
    for member, own in zip(members, encodings):
        getattr(member.backbone, METADATA).adopt(own, metadata)
    return Ensemble(members), replace(
        first,
        networks=len(members),
        metadata=metadata,
        split_sha256=None,
        teacher_sha256=None,
        epochs=[epoch for each in descriptions for epoch in each.epochs],
        val_losses=[loss for each in descriptions for loss in each.val_losses],
        validation_folds=[
            number
            for fold, each in zip(folds, descriptions)
            for number in each.validation_folds or [(fold.number + 1) % len(folds)] * each.networks
        ],
        batch_size=min(each.batch_size for each in descriptions),
        accumulate_grad_batches=max(each.accumulate_grad_batches for each in descriptions),
    )


def calibrate_release(folds: Sequence[Fold], config: EvaluationConfig) -> Calibration:
    """The calibration of the average of the folds' networks, as `calibrate_average` has it.

    Costs that the folds have in common stay. Those that each found on its validation images, for a balanced accuracy,
    are found anew on the mean of two networks at the temperature of that: of calibrated probabilities they do not
    depend on how many networks are averaged.
    """
    pooled, tested, validated = by_two_networks(folds)
    labels, classes = pooled.labels, pooled.classes
    settings = replace(config, test_time_augmentation=folds[0].calibration.test_time_augmentation)
    calibration = calibrate_average(tested, validated, labels, classes, len(folds), settings)
    costs = [fold.calibration.costs for fold in folds]
    if all(each == costs[0] for each in costs):
        return replace(calibration, costs=costs[0])
    counts = np.bincount(labels, minlength=len(classes.names))
    found = decision_costs(BALANCED, mean_of_two_networks(pooled, tested, validated).probabilities, labels, counts)
    return replace(calibration, costs=tuple(map(tuple, found.tolist())))
