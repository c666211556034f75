"""The teacher of a training: a model whose probabilities are learned beside the labels."""

from pathlib import Path

import torch

from stages.classifier.description import DESCRIPTION, read_description
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.classifier.weights import WEIGHTS, load_model
from stages.config import Config
from stages.dataset.encoding import MetadataEncoding
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import Classes
from stages.errors import InputError
from stages.files import sha256_of


def load_teacher(
    config: Config, split: Path, store: PixelStore, classes: Classes, encoding: MetadataEncoding | None,
    device: torch.device,
) -> tuple[NormalizedNetwork | Ensemble | None, list[Path]]:  # fmt: skip
    """The model in the folder `training.teacher`, or in a folder there, that was trained by the student's split.

    One of another split may know lesions that the student is validated or tested on, and pass on what it knows: the
    student's numbers would be too good.

    Args:
        config: the parameters.
        split: table of the splits.
        store: the student's images.
        classes: that it tells apart.
        encoding: of the metadata that it takes.
        device: where to put it.

    Returns:
        The model, None where nobody teaches; and its files, the weights first.

    Raises:
        InputError: there is no such model, or it is of other classes, images or metadata.
    """
    name = config.training.teacher
    if name is None:
        return None, []
    paths = [path for place in (DESCRIPTION, f"*/{DESCRIPTION}") for path in sorted(Path(name).glob(place))]
    found = {path: read_description(path) for path in paths}
    path = next((path for path, it in found.items() if it.split_sha256 == sha256_of(split)), None)
    if path is None:
        problem = f"is what {', '.join(map(str, paths))} does not say" if paths else f"takes a {DESCRIPTION}"
        raise InputError(
            f"training.teacher is {name!r}; it must be the folder of a model, or of several, one of them trained by "
            f"{split}: which {problem}. Others may know the test lesions, as a release does; let a model of this split "
            "teach, trained with model.ensemble=5 and model.ensemble_over=folds"
        )
    here = {
        "classes": list(classes.names),
        "image_size": store.image_size,
        "detail": config.data.detail,
        "metadata": encoding,
    }
    for key, own in here.items():
        given = getattr(found[path], key)
        if given != own and (key, given) != ("metadata", None):  # it may know the image alone
            raise InputError(
                f"training.teacher is {name!r}, but {path} says that its {key} is {given}; it must be {own}, as here"
            )
    network, _ = load_model(path.parent)
    return network.to(device), [path.with_name(WEIGHTS), path]
