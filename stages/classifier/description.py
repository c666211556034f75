"""What is needed to use a model's weights, as JSON beside them; checked before anything is built from it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from stages.checks import Count, Float, Number, Share, Text, Whole, relation
from stages.config import MOST_NETWORKS, Side
from stages.dataset.encoding import MetadataEncoding
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT, Classes, Taxonomy, diagnoses_of
from stages.files import read_json

DESCRIPTION = "model.json"
TRAINED_ON_SYNTHETIC = "the model was trained on synthetic images: it knows nothing about skin"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelDescription:
    """What `model.json` holds.

    Attributes:
        architecture: timm's name of the network, or baseline_cnn; no path, and no address of a hub.
        networks: of this architecture, whose probabilities are averaged.
        classes: their names, in the order of the outputs.
        taxonomy: of the images that it was trained on: the diagnoses by their codes.
        image_size: pixels of a side of the square input.
        detail: as `data.detail` of its images; None, and not in the file, where they have all of theirs.
        mean: of each colour, in [0, 1], subtracted from the input.
        std: of each colour, in [0, 1], that the input is divided by.
        epochs: for each network, the epoch, from 0, whose weights were kept.
        val_losses: the loss of each in that epoch on its validation images, in nats: that of `training.monitor`.
        validation_folds: of an ensemble over folds, the fold that each network was validated on; empty where
            all have the split's validation images.
        batch_size: images of one device that went through the network at a time, in the end: fewer than
            `training.batch_size` where the GPU's memory was too small.
        accumulate_grad_batches: how many such batches made one step of the optimizer.
        synthetic: true where it was trained on images that a program drew; None, and not in the file, where not.
        metadata: that it takes beside the image; None: none, and then the file does not have it.
        split_sha256: of the table of splits that it was trained by; not there for a release, whose networks had one
            each, nor in files of earlier commits.
        teacher_sha256: of the weights of the model that taught it; not there where none did.
    """

    architecture: Annotated[Text, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")]
    networks: Count
    classes: list[Text]
    taxonomy: Taxonomy
    image_size: Side
    mean: Annotated[list[Share], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Float, Field(ge=1e-3, le=1)]], Field(min_length=3, max_length=3)]
    epochs: Annotated[list[Whole], Field(min_length=1, max_length=MOST_NETWORKS)]
    val_losses: list[Number]
    validation_folds: list[Whole]
    batch_size: Count
    accumulate_grad_batches: Count
    detail: Side | None = None
    synthetic: Literal[True] | None = None
    metadata: MetadataEncoding | None = None
    split_sha256: Text | None = None
    teacher_sha256: Text | None = None

    @property
    def told_apart(self) -> Classes:
        """What the outputs are of."""
        return next(known for known in self._known() if list(known.names) == self.classes)

    def _known(self) -> tuple[Classes, Classes]:
        return BENIGN_OR_MALIGNANT, diagnoses_of(self.taxonomy)

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        if not any(list(known.names) == self.classes for known in self._known()):
            names = " or ".join(str(list(known.names)) for known in self._known())
            raise relation(f"classes is {self.classes}; it must be {names}")
        for key in ("epochs", "val_losses", "validation_folds"):
            value = getattr(self, key)
            if len(value) != self.networks and (value or key != "validation_folds"):
                raise relation(f"{key} is {value}; it must have an entry for each of the {self.networks} networks")
        return self


def read_description(path: Path) -> ModelDescription:
    """Read and check `model.json`.

    Raises:
        InputError: it is missing, damaged, or describes no model.
    """
    return read_json(path, ModelDescription)
